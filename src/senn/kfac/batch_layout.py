"""Where the rows of each sample are in a linear map's tensors: time-major, flattened, samples first or not.

Shapes alone don't tell: (6, d) may be two samples at three locations, in either order, or six samples. So it is tried
out: the output of each of a few samples is backpropagated on its own, and shows which rows are that sample's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from senn import pytree
from senn.kfac.recorder import LinearCall, forward, grad_at, record_linear_calls
from senn.preserve import preserve_model_state
from senn.pytree import Inputs, Output

SAMPLES = 3
"""Samples from which layouts are inferred, each by a backward pass: more than one, as any layout fits a single one."""


@dataclass(frozen=True)
class RowLayout:
    """Where samples are in a map's output.

    Attributes:
        axis: dimension that counts samples, alone or together with locations.
        inner: True if samples alternate along it (time-major), False if each has its locations side by side.
    """

    axis: int = 0
    inner: bool = False

    def fits(self, size: int, samples: int) -> bool:
        """True if a dimension can be divided into samples.

        Args:
            size: of the dimension.
            samples: how many there are.
        """
        return size > 0 and size % samples == 0

    def by_sample(self, tensor: Tensor, samples: int) -> Tensor:
        """Arrange a tensor by sample and location.

        Args:
            tensor: features in its last dimension.
            samples: how many there are.

        Returns:
            (samples, locations, features).
        """
        size = tensor.shape[self.axis] // samples
        # time-major rows are (locations, samples), else (samples, locations)
        parts = (size, samples) if self.inner else (samples, size)
        # the sample dimension goes first; locations are what is left of it and the dimensions between
        tensor = torch.unflatten(tensor, self.axis, parts).movedim(self.axis + self.inner, 0)
        return tensor.reshape(samples, -1, tensor.shape[-1])


@dataclass(frozen=True, kw_only=True)
class BatchLayout:
    """Where the rows of each sample are in the calls of one map.

    Attributes:
        layouts: one for each call.
        locations: rows per sample, of all calls together.
        biased: True if the calls add a bias.
        groups: groups of a convolution, each a map of its own.
    """

    layouts: tuple[RowLayout, ...]
    locations: int
    biased: bool
    groups: int = 1


def infer_batch_layouts(
    model: nn.Module,
    uses: Mapping[str, int],
    inputs: Inputs,
    output: Output | None = None,
    *,
    whole: int | None = None,
) -> dict[str, BatchLayout | str]:
    """Find out where each sample's rows are in every map's tensors.

    A few samples go through the model, and the output of each is backpropagated on its own: the gradient must reach
    rows of that sample only. The layout under which it does is the map's.

    Args:
        model: any module.
        uses: by map, how often a forward pass uses its weight.
        inputs: a batch, of which the first samples are taken.
        output: finds the outputs in the model's return value; None where this is a tensor.
        whole: number of samples if the batch can't be cut into them (a graph); None if it can.

    Returns:
        For each map its layout, or one sentence that says why it has none.
    """
    if whole is None:
        number = min(SAMPLES, pytree.count(inputs))
        inputs = pytree.head(inputs, number)
        probes = [torch.tensor([sample]) for sample in range(number)]
    else:
        number, probes = whole, _halves(whole)
    # a copy, since a forward pass may write to its inputs
    inputs = pytree.clone(inputs)
    with (
        torch.enable_grad(),
        preserve_model_state(model),
        record_linear_calls(model, [*uses]) as seen,
    ):
        y = forward(model, inputs, output)
        calls = [(name, call) for name, several in seen.items() for call in several]
        reached = _reached(y, [call for _, call in calls], number, probes)
    result: dict[str, BatchLayout | str] = {}
    for name, n_uses in uses.items():
        several = [
            (call, gradients)
            for (owner, call), gradients in zip(calls, reached, strict=True)
            if owner == name
        ]
        if several and len(several) != n_uses:
            result[name] = f"{name} is also applied in a way that isn't read"
        else:
            result[name] = _batch_layout(name, several, number, probes)
    return result


def _halves(samples: int) -> list[Tensor]:
    """Return random halves of all samples: between any two samples, one of them tells apart with probability 1/2."""
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randperm(samples, generator=generator)[: samples // 2] for _ in range(2 * SAMPLES)
    ]


def _reached(
    y: Tensor, calls: Sequence[LinearCall], samples: int, probes: Sequence[Tensor]
) -> list[list[Tensor | None]]:
    """Backpropagate the outputs of some samples on their own.

    Args:
        y: the outputs.
        calls: recorded calls.
        samples: number of samples.
        probes: numbers of samples, one at a time or some of them together.

    Returns:
        For each call one gradient per probe, None where the samples' outputs don't depend on the call. No gradients at
        all where the outputs aren't one row per sample.
    """
    reached: list[list[Tensor | None]] = [[] for _ in calls]
    edges = [call.edge for call in calls if call.edge is not None]
    if len(y) != samples or not y.requires_grad or not edges:
        return reached
    # random rather than ones: a softmax, for one, has no gradient along ones
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(y.shape, generator=generator, dtype=torch.float32).to(y)
    for probe in probes:
        # these samples' outputs, with zeros for the others: what they reach is theirs
        only = torch.zeros_like(rows)
        only[probe] = rows[probe]
        found = iter(grad_at(y, edges, only, retain_graph=True, allow_unused=True))
        for gradients, call in zip(reached, calls, strict=True):
            gradients.append(next(found) if call.edge is not None else None)
    return reached


def _batch_layout(
    name: str,
    several: list[tuple[LinearCall, list[Tensor | None]]],
    samples: int,
    probes: Sequence[Tensor],
) -> BatchLayout | str:
    if not several:
        return f"{name} is applied inside a fused operation, or not at all"
    if not any(gradients for _, gradients in several):
        return "the outputs do not depend on any trainable parameter, or their first dimension doesn't count samples"
    layouts, locations = [], 0
    for one, gradients in several:
        found = [gradient for gradient in gradients if gradient is not None]
        if len(found) < len(gradients):
            return f"the model's outputs do not depend on {name}"
        layout = _layout(found, one.kernel is not None, samples, probes)
        if layout is None:
            return f"{name} reads rows that can't be told apart by samples"
        layouts.append(layout)
        locations += _locations(one) // samples
    if (
        len({one.kernel is None for one, _ in several}) > 1
        or len({id(one.bias) for one, _ in several}) > 1
    ):
        return f"{name} is applied in ways that differ"
    # all calls agree, as was just tested
    kernel = several[0][0].kernel
    return BatchLayout(
        layouts=tuple(layouts),
        locations=locations,
        biased=several[0][0].bias is not None,
        groups=1 if kernel is None else kernel.groups,
    )


def _locations(call: LinearCall) -> int:
    """Number of rows of a call, of all samples together."""
    if call.kernel is None:
        return call.shape.numel() // call.shape[-1]
    # a transposed convolution maps the pixels of its input
    shape = call.x.shape if call.kernel.transposed else call.shape
    return shape.numel() // shape[1]


def _layout(
    gradients: Sequence[Tensor], convolution: bool, samples: int, probes: Sequence[Tensor]
) -> RowLayout | None:
    """Find the layout under which each probe's gradient stays within its samples' rows; None if there is none."""
    first = gradients[0]
    # convolutions are documented to have samples first; any dimension but the features may count them otherwise
    axes = [0] if convolution else list(range(first.dim() - 1))
    if convolution and len(first) != samples:
        return None
    for axis in axes:
        for inner in (False, True):
            layout = RowLayout(axis, inner)
            if not layout.fits(first.shape[axis], samples):
                continue
            if all(
                _is_alone(
                    g.flatten(1)[:, None] if convolution else layout.by_sample(g, samples), probe
                )
                for probe, g in zip(probes, gradients, strict=True)
            ):
                return layout
    return None


def _is_alone(rows: Tensor, own: Tensor) -> bool:
    """True if rows (samples, locations, features) are zero for all samples but some."""
    others = torch.ones(len(rows), dtype=torch.bool)
    others[own] = False
    return not bool(rows[others].any())
