"""Blocks of the approximate Fisher matrix: Kronecker factors of a linear map, a diagonal for any other parameter.

A block holds bias-corrected moving averages and the inverses made of them, and no module. The joint gradient of a
linear map is [W | b], (m, c), with c = in + 1 if there is a bias. A is (c, c); S is (m, m) and holds the *sum* over a
sample's locations, so that F = A (x) S (Martens and Grosse 2015, arXiv 1503.05671; Grosse and Martens 2016, arXiv
1602.01407, for several locations).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from senn.errors import SennError
from senn.kfac.factors import cholesky

State = dict[str, Any]


class Average:
    """Moving average M <- (1 - 1/w) M + (1/w) M_new with w <- decay w + 1, which has no bias towards zero at the start.

    Args:
        decay: weight of the past, in [0, 1); it forgets after about 1 / (1 - decay) updates.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.weight = 0.0
        self.value: Tensor | None = None

    def update(self, new: Tensor) -> None:
        """Add one more estimate."""
        # w tends to 1 / (1 - decay), so that at first all estimates count alike
        self.weight = self.decay * self.weight + 1
        self.value = new if self.value is None else self.value.lerp_(new, 1 / self.weight)

    @property
    def current(self) -> Tensor:
        """Average of all estimates so far.

        Raises:
            SennError: there is none yet.
        """
        if self.value is None:
            raise SennError("the curvature is needed before any batch was seen")
        return self.value


class KroneckerBlock:
    """Block F = A (x) S of one linear map, damped by factored Tikhonov regularization.

    Args:
        decay: of the moving averages.
    """

    def __init__(self, decay: float) -> None:
        self.inputs = Average(decay)
        self.outputs = Average(decay)
        self.inverses: tuple[Tensor, Tensor] | None = None

    def update(
        self,
        a: Tensor,
        probes: Sequence[Tensor],
        weight: Tensor | None,
        live: Tensor | None = None,
    ) -> None:
        """Add one batch.

        Args:
            a: (N, ..., c) inputs with their constant.
            probes: rows s (N, ..., m), for one draw of pseudo-gradients or several of the same batch.
            weight: (N,) sample weights, which s carries already; None for ones.
            live: (N, ...) Boolean, rows that can change the loss (`senn.kfac.live_locations`); None for all.
        """
        samples = len(a)
        rows: int | Tensor = a[..., 0].numel()
        weights = a.new_ones(samples) if weight is None else weight
        weights = weights.reshape(-1, *(1,) * (a.ndim - 1))
        weighted = a if weight is None else a * weights
        if live is not None:
            # padding weighs nothing: A is a mean over live rows, and s is zero at the others
            rows = (weights * live[..., None]).sum()
            weighted = torch.where(live[..., None], weighted, 0.0)
            a = torch.where(live[..., None], a, 0.0)
        # locations are further rows: the expand setting of Eschenhagen et al. (2023)
        a, weighted = a.reshape(-1, a.shape[-1]), weighted.reshape(-1, a.shape[-1])
        # weighted on one side only: on both, the weights would enter squared
        self.inputs.update(weighted.mT @ a / rows)
        s = torch.cat([probe.reshape(-1, probe.shape[-1]) for probe in probes])
        # divided by samples only: S sums over locations, A is their mean
        self.outputs.update(s.mT @ s / (samples * len(probes)))

    @property
    def stale(self) -> bool:
        """True if it was never inverted."""
        return self.inverses is None

    def refresh(self, damping: float) -> None:
        """Invert both factors, damped, in float64."""
        # (A + pi sqrt(damping) I)^-1 and (S + sqrt(damping) / pi I)^-1, with pi^2 = (tr A / c) / (tr S / m)
        a, s = self.inputs.current, self.outputs.current
        for_a, for_s = split_damping(a, s, damping)
        self.inverses = _inverse(a, for_a), _inverse(s, for_s)

    def apply(self, gradients: Sequence[Tensor]) -> list[Tensor]:
        """Compute F^-1 g for g = (dW,) or (dW, db), of the shapes and dtypes of g."""
        if self.inverses is None:
            raise SennError("the curvature is needed before it was inverted")
        a, s = self.inverses
        weight = gradients[0]
        joint = torch.cat([weight, gradients[1][:, None]], 1) if len(gradients) > 1 else weight
        # (A (x) S)^-1 vec(g) = vec(S^-1 g A^-1)
        direction = (s @ joint.to(s) @ a).to(weight)
        return (
            [direction[:, : weight.shape[1]], direction[:, -1]]
            if len(gradients) > 1
            else [direction]
        )

    def state(self) -> State:
        """Collect all averages and inverses, for `Optimizer.state_dict`."""
        return {
            "inputs": self.inputs.value,
            "outputs": self.outputs.value,
            "inputs_weight": self.inputs.weight,
            "outputs_weight": self.outputs.weight,
            "inverses": self.inverses,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Restore copies of what `state` collected."""
        # copies, since averages are updated in place, which would change the saved state
        self.inputs.value, self.outputs.value = _clone(state["inputs"]), _clone(state["outputs"])
        self.inputs.weight, self.outputs.weight = state["inputs_weight"], state["outputs_weight"]
        inverses = state["inverses"]
        self.inverses = None if inverses is None else (inverses[0].clone(), inverses[1].clone())


class DiagonalBlock:
    """Diagonal of F for a parameter in no linear map: norms, activations, embeddings, convolutions.

    The batch sum h = sum_i J_i^T v_i of pseudo-gradients has E[h^2] = N diag F, since they are independent over
    samples: unbiased, and free with the backward pass of the factors, though noisy. So the mean over the parameter is
    mixed in, half and half.

    Args:
        decay: of the moving average.
    """

    def __init__(self, decay: float) -> None:
        self.squares = Average(decay)
        self.inverse: Tensor | None = None

    def update(self, probes: Sequence[Tensor], samples: int) -> None:
        """Add one batch.

        Args:
            probes: sums h over the batch, one for each draw of pseudo-gradients.
            samples: number of samples in the batch.
        """
        self.squares.update(torch.stack([probe**2 for probe in probes]).mean(0) / samples)

    @property
    def stale(self) -> bool:
        """True if it was never inverted."""
        return self.inverse is None

    def refresh(self, damping: float) -> None:
        """Invert the damped diagonal."""
        squares = self.squares.current
        # the floor leaves room for products of inverses: 1 / tiny would overflow
        smallest = torch.finfo(squares.dtype).tiny ** 0.5
        self.inverse = 1 / ((squares + squares.mean()) / 2 + damping).clamp_min(smallest)

    def apply(self, gradients: Sequence[Tensor]) -> list[Tensor]:
        """Compute F^-1 g for the one gradient in the sequence."""
        if self.inverse is None:
            raise SennError("the curvature is needed before it was inverted")
        return [(self.inverse * gradients[0]).to(gradients[0])]

    def state(self) -> State:
        """Collect all averages and inverses, for `Optimizer.state_dict`."""
        return {
            "squares": self.squares.value,
            "weight": self.squares.weight,
            "inverse": self.inverse,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Restore copies of what `state` collected."""
        self.squares.value, self.squares.weight = _clone(state["squares"]), state["weight"]
        self.inverse = _clone(state["inverse"])


def split_damping(a: Tensor, s: Tensor, damping: float) -> tuple[float, float]:
    """Divide a block's damping between A and S (Martens and Grosse 2015, section 6.3).

    (A + pi sqrt(d) I) (x) (S + sqrt(d) / pi I) exceeds A (x) S + d I by pi sqrt(d) I (x) S + sqrt(d) / pi A (x) I,
    which is least, in the trace norm, for pi^2 = (tr A / c) / (tr S / m).

    Args:
        a: (c, c) A.
        s: (m, m) S.
        damping: d.

    Returns:
        What is added to the diagonals of A and of S.
    """
    mean_a, mean_s = float(a.diagonal().mean()), float(s.diagonal().mean())
    if mean_a <= 0 or mean_s <= 0:
        return damping**0.5, damping**0.5  # a dead unit's map: the block is the damping alone
    # A factor of size one is a number, so the other one can take the whole damping, exactly.
    if len(s) == 1:
        return damping / mean_s, 0.0
    if len(a) == 1:
        return 0.0, damping / mean_a
    pi = (mean_a / mean_s) ** 0.5
    return pi * damping**0.5, damping**0.5 / pi


def _inverse(matrix: Tensor, damping: float) -> Tensor:
    """Invert M + damping I by a float64 Cholesky factor, over a floor at the rounding of M's dtype."""
    identity = torch.eye(len(matrix), dtype=torch.float64, device=matrix.device)
    factor = cholesky(
        matrix.double() + damping * identity, damping=10 * torch.finfo(matrix.dtype).eps
    )
    return torch.cholesky_inverse(factor).to(matrix.dtype)


def _clone(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.clone()
