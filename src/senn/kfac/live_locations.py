"""Which locations of a linear map can change the loss at all; the others (padding, masked pixels) weigh nothing.

A location is *live* if a path leads from it to an output entry that has gradient or curvature. K-FAC's factors are
means over the live locations alone. With R of them in N samples,

    A = 1/R sum a a^T    S = 1/R sum s s^T    G = 1/R sum dz a^T    F = R/N A (x) S    g = R/N G

so that eta = R/N Tr(S^-1 G A^-1 G^T). Without padding R/N is the number of locations T, and this is K-FAC "expand"
(Eschenhagen et al. 2023, arXiv 2311.00636). Dead locations enter no sum, so neither their number nor the values that
fill them change a figure.

That a row of s and dz is zero doesn't make its location dead. Where all units of a narrow ReLU layer are off, or where
max pooling prefers a neighbor, the row is zero by the values of the moment; it belongs to the data, and to A. So paths
are followed by a backward pass of random numbers in which such operations hand gradients on to all of their inputs.
Masks (products with zeros, attention that is masked out, an index that leaves positions out) stop it as they stop every
gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from senn.kfac.recorder import grad_at


def live_gradients(
    output: Tensor, edges: Sequence[GradientEdge], live: Tensor | None
) -> tuple[Tensor | None, ...]:
    """Backpropagate random numbers that are non-zero wherever a path leads to a live output.

    Args:
        output: the model's outputs, with their graph, which is kept.
        edges: places in it.
        live: output entries that have gradient or curvature, Boolean, of as many entries as `output`; None for all.

    Returns:
        For each edge a tensor of its shape, zero where nothing live is reached; None where no path leads to it.
    """
    # random rather than ones: a softmax or a norm has no gradient along ones
    generator = torch.Generator().manual_seed(0)
    seeds = torch.randn(output.shape, generator=generator, dtype=torch.float32).to(output)
    if live is not None:
        seeds = torch.where(live.reshape(output.shape), seeds, 0.0)
    with _open_gates(output):
        return grad_at(output, edges, seeds, retain_graph=True, allow_unused=True)


def live_rows(rows: Tensor) -> Tensor | None:
    """Tell which rows hold a number other than zero.

    Args:
        rows: (samples, locations, m).

    Returns:
        (samples, locations) Boolean; None if all do.
    """
    live = (rows != 0).any(2)
    return None if bool(live.all()) else live


Hook = Callable[[Any, tuple[Tensor | None, ...], tuple[Tensor | None, ...]], Any]


def _pass(node: Any, inputs: tuple[Tensor | None, ...], outputs: tuple[Tensor | None, ...]) -> Any:
    """Hand the gradient on as it is, to all inputs of the output's own shape."""
    (given,) = outputs
    return tuple(
        one if one is None or given is None or one.shape != given.shape else given for one in inputs
    )


def _spread_pooled(dims: int) -> Hook:
    """Spread a gradient over each window of a max pooling, as average pooling does."""

    def hook(node: Any, inputs: tuple[Tensor | None, ...], outputs: Any) -> Any:
        size, stride, padding, dilation = (
            tuple(getattr(node, f"_saved_{name}"))
            for name in ("kernel_size", "stride", "padding", "dilation")
        )
        if inputs[0] is None or set(dilation) != {1}:  # average pooling knows no dilation
            return None
        backward = (torch.ops.aten.avg_pool2d_backward, torch.ops.aten.avg_pool3d_backward)[
            dims - 2
        ]
        arguments = (size, stride, padding, node._saved_ceil_mode, True, None)
        return (backward(outputs[0].contiguous(), inputs[0], *arguments),)

    return hook


def _spread_adaptive(dims: int) -> Hook:
    def hook(node: Any, inputs: tuple[Tensor | None, ...], outputs: Any) -> Any:
        if inputs[0] is None:
            return None
        name = "_adaptive_avg_pool2d_backward" if dims == 2 else "_adaptive_avg_pool3d_backward"
        return (getattr(torch.ops.aten, name)(outputs[0].contiguous(), inputs[0]),)

    return hook


def _spread_reduced(node: Any, inputs: tuple[Tensor | None, ...], outputs: Any) -> Any:
    """Spread the gradient of a maximum along dimensions over all that it was taken of."""
    given, read = outputs[0], inputs[0]
    if read is None or given is None:
        return None
    if given.dim() < read.dim() and given.dim():
        held = node._saved_dim
        dims = held if isinstance(held, Sequence) else (held,)
        # a C++ dimension is unsigned here: a negative one comes as 2^64 less its distance
        positions = sorted((d - (1 << 64) if d >= 1 << 63 else d) % read.dim() for d in dims)
        for dim in positions:
            given = given.unsqueeze(dim)
    return (given.expand_as(read),)


# By the name of the autograd node: operations whose derivative can be zero by the values of the moment.
_GATES: dict[str, Hook] = {
    **dict.fromkeys(
        (
            *("ReluBackward0", "ThresholdBackward0", "LeakyReluBackward0", "PreluKernelBackward0"),
            *("HardtanhBackward0", "HardsigmoidBackward0", "HardswishBackward0", "EluBackward0"),
            *("HardshrinkBackward0", "SoftshrinkBackward0", "RreluWithNoiseBackward0"),
            *("ClampBackward0", "ClampBackward1", "ClampMinBackward0", "ClampMinBackward1"),
            *("ClampMaxBackward0", "ClampMaxBackward1", "MaximumBackward0", "MinimumBackward0"),
            *("GeluBackward0", "SiluBackward0", "MishBackward0", "SoftplusBackward0"),
            *("SigmoidBackward0", "TanhBackward0", "LogSigmoidBackward0", "CeluBackward0"),
            *("AbsBackward0", "PowBackward0"),
        ),
        _pass,
    ),
    "MaxPool2DWithIndicesBackward0": _spread_pooled(2),
    "MaxPool3DWithIndicesBackward0": _spread_pooled(3),
    "AdaptiveMaxPool2DBackward0": _spread_adaptive(2),
    "AdaptiveMaxPool3DBackward0": _spread_adaptive(3),
    **dict.fromkeys(
        ("AmaxBackward0", "AminBackward0", "MaxBackward0", "MinBackward0", "MaxBackward1"),
        _spread_reduced,
    ),
}


@contextmanager
def _open_gates(output: Tensor) -> Iterator[None]:
    """Let gates hand on every gradient while a backward pass runs."""
    handles, seen, left = [], set(), [output.grad_fn]
    try:
        while left:
            node = left.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            left += [after for after, _ in node.next_functions]
            hook = _GATES.get(node.name())
            if hook is not None:
                handles.append(node.register_hook(_bound(hook, node)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _bound(hook: Hook, node: Any) -> Any:
    return lambda inputs, outputs: hook(node, inputs, outputs)
