"""The approximate Fisher matrix as blocks: Kronecker factors of a linear map, a diagonal for any other parameter.

A block holds bias-corrected moving averages and the inverse made of them, and no module. Layout: the joint
gradient of a linear map is [W | b], (m, c), with c = in + 1 if there is a bias; A is (c, c), S is (m, m) and holds
the sum over the locations of a sample, so that F = A (x) S (Martens and Grosse, arXiv 1503.05671; Grosse and Martens,
arXiv 1602.01407 for several locations).
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
    """Moving average M <- (1 - 1/w) M + (1/w) M_new with w <- decay w + 1: no bias towards zero at the start."""

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.weight = 0.0
        self.value: Tensor | None = None

    def update(self, new: Tensor) -> None:
        """Take in one more estimate."""
        self.weight = self.decay * self.weight + 1
        self.value = new if self.value is None else self.value.lerp_(new, 1 / self.weight)

    @property
    def current(self) -> Tensor:
        """The average."""
        if self.value is None:
            raise SennError("the curvature was asked for before any batch was seen")
        return self.value


class KroneckerBlock:
    """F = A (x) S of one linear map, damped with split Tikhonov regularisation.

    Args:
        decay: of the moving averages.
    """

    def __init__(self, decay: float) -> None:
        self.inputs = Average(decay)
        self.outputs = Average(decay)
        self.inverses: tuple[Tensor, Tensor] | None = None

    def update(self, a: Tensor, probes: Sequence[Tensor], weight: Tensor | None) -> None:
        """Take in rows a (N, ..., c) and, for one probe or several of the same batch, rows s (N, ..., m).

        Weights (N,) of the samples enter s already, and a here.
        """
        samples = len(a)
        locations = a[0, ..., 0].numel()
        weighted = a if weight is None else a * weight.reshape(-1, *(1,) * (a.ndim - 1))
        a, weighted = a.reshape(-1, a.shape[-1]), weighted.reshape(-1, a.shape[-1])
        self.inputs.update(weighted.mT @ a / (samples * locations))
        s = torch.cat([probe.reshape(-1, probe.shape[-1]) for probe in probes])
        self.outputs.update(s.mT @ s / (samples * len(probes)))

    @property
    def stale(self) -> bool:
        """Whether it was never inverted."""
        return self.inverses is None

    def refresh(self, damping: float) -> None:
        """Invert (A + pi sqrt(damping) I) and (S + sqrt(damping) / pi I) in float64, pi^2 = (tr A / c) / (tr S / m)."""
        a, s = self.inputs.current, self.outputs.current
        for_a, for_s = split_damping(a, s, damping)
        self.inverses = _inverse(a, for_a), _inverse(s, for_s)

    def apply(self, gradients: Sequence[Tensor]) -> list[Tensor]:
        """F^-1 g for g = (dW,) or (dW, db)."""
        if self.inverses is None:
            raise SennError("the curvature was asked for before it was inverted")
        a, s = self.inverses
        weight = gradients[0]
        joint = torch.cat([weight, gradients[1][:, None]], 1) if len(gradients) > 1 else weight
        direction = (s @ joint.to(s) @ a).to(weight)
        return [direction[:, : weight.shape[1]], direction[:, -1]] if len(gradients) > 1 else [direction]

    def state(self) -> State:
        """Everything, for `Optimizer.state_dict`."""
        return {
            "inputs": self.inputs.value,
            "outputs": self.outputs.value,
            "inputs_weight": self.inputs.weight,
            "outputs_weight": self.outputs.weight,
            "inverses": self.inverses,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` gave."""
        self.inputs.value, self.outputs.value = _clone(state["inputs"]), _clone(state["outputs"])
        self.inputs.weight, self.outputs.weight = state["inputs_weight"], state["outputs_weight"]
        inverses = state["inverses"]
        self.inverses = None if inverses is None else (inverses[0].clone(), inverses[1].clone())


class DiagonalBlock:
    """The diagonal of F for a parameter that is in no linear map: norms, activations, embeddings, convolutions.

    A batch gradient h = sum_i J_i^T v_i of random signs v_i has E[h^2] = N diag F, since samples are independent:
    unbiased and free with the backward pass of the factors, though noisy. So half of the mean is mixed in.
    """

    def __init__(self, decay: float) -> None:
        self.squares = Average(decay)
        self.inverse: Tensor | None = None

    def update(self, probes: Sequence[Tensor], samples: int) -> None:
        """Take in sums h over a batch of that many samples, one for each probe."""
        self.squares.update(torch.stack([probe**2 for probe in probes]).mean(0) / samples)

    @property
    def stale(self) -> bool:
        """Whether it was never inverted."""
        return self.inverse is None

    def refresh(self, damping: float) -> None:
        """Invert the diagonal with the damping added."""
        squares = self.squares.current
        self.inverse = 1 / ((squares + squares.mean()) / 2 + damping).clamp_min(torch.finfo(squares.dtype).tiny ** 0.5)

    def apply(self, gradients: Sequence[Tensor]) -> list[Tensor]:
        """F^-1 g for the one gradient."""
        if self.inverse is None:
            raise SennError("the curvature was asked for before it was inverted")
        return [(self.inverse * gradients[0]).to(gradients[0])]

    def state(self) -> State:
        """Everything, for `Optimizer.state_dict`."""
        return {"squares": self.squares.value, "weight": self.squares.weight, "inverse": self.inverse}

    def load(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` gave."""
        self.squares.value, self.squares.weight = _clone(state["squares"]), state["weight"]
        self.inverse = _clone(state["inverse"])


def split_damping(a: Tensor, s: Tensor, damping: float) -> tuple[float, float]:
    """How much of a block's damping goes to A and to S (Martens and Grosse, section 6.3).

    A factor of size one is a number, so that the other one takes the whole damping, exactly. Where a trace is zero (a
    dead unit's map) the block is the damping alone.
    """
    mean_a, mean_s = float(a.diagonal().mean()), float(s.diagonal().mean())
    if mean_a <= 0 or mean_s <= 0:
        return damping**0.5, damping**0.5
    if len(s) == 1:
        return damping / mean_s, 0.0
    if len(a) == 1:
        return 0.0, damping / mean_a
    pi = (mean_a / mean_s) ** 0.5
    return pi * damping**0.5, damping**0.5 / pi


def _inverse(matrix: Tensor, damping: float) -> Tensor:
    """(M + damping I)^-1 by a float64 Cholesky factor; a floor in the dtype's noise is added, more where it must."""
    identity = torch.eye(len(matrix), dtype=torch.float64, device=matrix.device)
    factor = cholesky(matrix.double() + damping * identity, damping=10 * torch.finfo(matrix.dtype).eps)
    return torch.cholesky_inverse(factor).to(matrix.dtype)


def _clone(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.clone()
