"""BatchNorms whose weight silences the copy of a residual block, read as linear maps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from senn.kfac.batch_layout import BatchLayout, RowLayout
from senn.kfac.layer_inputs import DenseInput, upcast
from senn.kfac.layer_statistics import RowChunk
from senn.kfac.live_locations import live_rows


def norm_rows(
    x: Tensor,
    layout: RowLayout,
    output_grad: Tensor,
    pseudo_grad: Tensor,
    live: Tensor | None,
    *,
    count: int,
) -> RowChunk:
    """Rows of a BatchNorm as a linear map that is diagonal: a constant and the normalized channels.

    Args:
        x: what it returns with a weight of one and no bias, (samples, channels, ...) or (rows, channels).
        layout: where samples are in such rows.
        output_grad: gradient at its output.
        pseudo_grad: pseudo-gradient at its output.
        live: where its output matters; None for everywhere.
        count: number of samples.
    """

    def by_location(tensor: Tensor) -> Tensor:
        # (samples, channels, locations...), or (rows, channels), where a sample may have several rows (tokens)
        tensor = upcast(tensor)
        return layout.by_sample(tensor, count) if tensor.dim() == 2 else tensor.flatten(2).mT

    x = by_location(x)
    return RowChunk(
        layer_input=DenseInput(torch.cat([x.new_ones(*x.shape[:2], 1), x], 2), bias=False),
        output_grad=by_location(output_grad),
        pseudo_grad=by_location(pseudo_grad),
        live=None if live is None else live_rows(by_location(live)),
    )


def flat_layout(block: str, layouts: Mapping[str, BatchLayout]) -> RowLayout:
    """Tell where a block's samples are in rows of all of its locations: as its maps have them.

    Args:
        block: path of the block.
        layouts: of all maps.
    """
    maps = [one.layouts[0] for name, one in layouts.items() if name.startswith(f"{block}.")]
    # Samples that are the second dimension (time-major) alternate once both dimensions are one.
    return RowLayout(inner=any(one.inner or one.axis == 1 for one in maps))


@contextmanager
def record_norms(
    model: nn.Module, names: set[str]
) -> Iterator[dict[str, tuple[Tensor, GradientEdge]]]:
    """Record what BatchNorms would return with a weight of one and no bias, and the edges of their outputs.

    Args:
        model: the copied block.
        names: of the norms.
    """
    seen: dict[str, tuple[Tensor, GradientEdge]] = {}

    def recorder(name: str) -> Any:
        def hook(module: Any, args: tuple[Tensor, ...], output: Tensor) -> None:
            x = upcast(args[0].detach())
            shape = (1, -1, *[1] * (x.dim() - 2))
            # Eval mode: running statistics, as in the pass that is scored.
            mean, variance = (
                buffer.to(x).view(shape) for buffer in (module.running_mean, module.running_var)
            )
            seen[name] = (x - mean) / (variance + module.eps).sqrt(), get_gradient_edge(output)

        return hook

    handles = [
        model.get_submodule(name).register_forward_hook(recorder(name)) for name in sorted(names)
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
