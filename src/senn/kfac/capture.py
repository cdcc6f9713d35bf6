"""Statistics of every linear map of a model on one batch: inputs, output gradients and pseudo-gradients.

One forward pass in eval mode, and two backward passes to the outputs of the maps: one of the true gradient, one of
random rows v with E[v v^T] = H, the loss's Hessian at the outputs. What the second brings to a map's output is s, and
E[s s^T] is the Fisher there: curvature propagation (Martens, Sutskever and Swersky 2012, *Estimating the Hessian by
back-propagating curvature*, arXiv 1206.6464). K-FAC samples labels from the model instead (Martens and Grosse 2015,
arXiv 1503.05671, section 5); signs have less variance, and serve any loss with a Hessian.

No gradient of a parameter is formed, so `.grad` isn't touched; modes, buffers and the global random state come back as
they were.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from senn import pytree
from senn.errors import DivergenceError, UnsupportedError
from senn.kfac.batch_layout import BatchLayout, RowLayout
from senn.kfac.layer_inputs import ConvInput, DenseInput, LayerInput, upcast
from senn.kfac.layer_statistics import BlockCall, LayerRows, LayerStatistics, RowChunk
from senn.kfac.live_locations import live_gradients, live_rows
from senn.kfac.live_outputs import live_outputs
from senn.kfac.loss_metric import LossMetric
from senn.kfac.pseudo_grad import Among, draw_pseudo_grad
from senn.kfac.recorder import LinearCall, Tables, forward, grad_at, record_linear_calls
from senn.preserve import preserve_model_state
from senn.pytree import Inputs, Output, Targets


def capture(
    model: nn.Module,
    names: Sequence[str],
    inputs: Inputs,
    targets: Targets,
    metric: LossMetric,
    *,
    generator: torch.Generator,
    weights: Tensor | None = None,
    find: Output | None = None,
    layouts: Mapping[str, BatchLayout] | None = None,
    blocks: Sequence[str] = (),
    among: Among | None = None,
    tables: Tables | None = None,
) -> LayerStatistics:
    """Collect the rows of linear maps on one batch.

    Args:
        model: any module; it is run once, in eval mode.
        names: linear maps: the module's name where the weight is its `weight`, else the parameter's full name.
        inputs: (samples, ...), or any nesting of such tensors.
        targets: as the loss takes them.
        metric: the loss with the metric of its outputs.
        generator: source of the random signs.
        weights: (samples,) sample weights with mean 1, or None for ones.
        find: finds the outputs in the model's return value; None where this is a tensor.
        layouts: where samples are in the maps' tensors (`infer_batch_layouts`); None if first dimensions count samples.
        blocks: names of residual blocks whose calls are collected too.
        among: which samples of a larger batch these are (`LossMetric.pseudo_grad`).
        tables: those of the names that are tables.

    Returns:
        The statistics; rows are in the dtype of the activations, float32 at least.

    Raises:
        DivergenceError: the outputs or the loss are NaN or infinite.
        UnsupportedError: a map is not reached or makes no difference, or the outputs are not a tensor.
    """
    if not names:
        raise UnsupportedError("the model has no linear map whose inputs could be read")
    with torch.enable_grad(), preserve_model_state(model):
        with (
            record_linear_calls(model, names, tables=tables) as seen,
            _running(model, blocks) as runs,
        ):
            output = forward(model, inputs, find)
        _check_reached(names, seen)
        y = output.detach()
        loss = _finite_loss(metric, y, targets, weights)
        calls = [(name, call) for name in names for call in seen[name]]
        # drawn after the loss is known to be finite: a bad batch leaves the generator where it was
        local = metric.local(y, targets, weights, checked=True)
        live = live_outputs(metric, local, y, targets)
        signs = draw_pseudo_grad(local, generator, among, live)
        dz, s = _backward(output, calls, runs, (local.gradient, signs))
        chunks = _chunks(calls, dz, s, layouts, len(y))
        lively = _find_live(output, calls, runs, chunks, live=live, layouts=layouts)
    read_inputs = _reading_inputs(inputs, {name: seen[name][0] for name in names})
    rows = {
        label: LayerRows(tuple(several), label in read_inputs) for label, several in chunks.items()
    }
    return LayerStatistics(
        rows=rows,
        blocks=_block_calls(runs, dz[len(calls) :], s[len(calls) :], lively),
        loss=loss,
        score_limit=local.score_limit,
        gradient_square=_mean_square(local.gradient),
        curvature_trace=_mean_square(signs),
        output=y,
        used=None if live is None or bool(live.any(1).all()) else live.any(1),
    )


def _mean_square(rows: Tensor) -> float:
    """Mean over rows of their square length."""
    return float(rows.double().square().sum() / len(rows))


def _find_live(
    output: Tensor,
    calls: Sequence[tuple[str, LinearCall]],
    runs: Mapping[str, _Run],
    chunks: dict[str, list[RowChunk]],
    *,
    live: Tensor | None,
    layouts: Mapping[str, BatchLayout] | None,
) -> Sequence[Tensor | None]:
    """Note in the chunks which locations are live; for blocks, return numbers that are non-zero where they are."""
    # a row with a gradient is live, so there is nothing to find out where all have one
    has_gradient = all(
        live_rows(part.output_grad) is None or live_rows(part.pseudo_grad) is None
        for several in chunks.values()
        for part in several
    )
    if live is None and has_gradient:
        return [None] * len(runs)
    edges = [call.edge for _, call in calls if call.edge is not None]
    edges += [run.edge for run in runs.values()]
    found = live_gradients(output, edges, live)
    for label, masks in live_chunks(calls, found, layouts, len(output)).items():
        # a map that nothing reaches in this batch has no gradient either: all of its rows stay
        if all(mask is None or bool(mask.any()) for mask in masks):
            chunks[label] = [
                replace(part, live=mask) for part, mask in zip(chunks[label], masks, strict=True)
            ]
    return found[len(calls) :]


def live_chunks(
    calls: Sequence[tuple[str, LinearCall]],
    found: Sequence[Tensor | None],
    layouts: Mapping[str, BatchLayout] | None,
    samples: int,
) -> dict[str, list[Tensor | None]]:
    """Arrange what `live_gradients` found at the calls of maps.

    Args:
        calls: the calls, with the names of their maps.
        found: for each call numbers of the shape of its output; further ones are left out.
        layouts: where samples are in the maps' tensors; None if first dimensions count samples.
        samples: how many there are.

    Returns:
        By label the live locations of each call, (samples, locations) Boolean, or None for all.
    """
    masks: dict[str, list[Tensor | None]] = {}
    number: Counter[str] = Counter()
    for (name, call), numbers in zip(calls, found, strict=False):
        layout = layout_of(layouts, name, number[name])
        number[name] += 1
        groups = 1 if call.kernel is None else call.kernel.groups
        assert numbers is not None  # a map without a path to the outputs was refused
        rows = per_layer_grads(call, layout, numbers, samples).chunk(groups, 2)
        for label, own in zip(labels(name, groups), rows, strict=True):
            masks.setdefault(label, []).append(live_rows(own))
    return masks


def _reading_inputs(inputs: Inputs, first_calls: Mapping[str, LinearCall]) -> set[str]:
    """Name the maps that read the model's inputs themselves."""
    # Compared by storage, since a view of the inputs (flattened, say) is still the data.
    storages = {x.untyped_storage().data_ptr() for x in pytree.tensor_leaves(inputs)}
    return {
        name
        for name, call in first_calls.items()
        if call.x.untyped_storage().data_ptr() in storages
    }


def _block_calls(
    runs: Mapping[str, _Run],
    output_grad: Sequence[Tensor],
    pseudo_grad: Sequence[Tensor],
    live: Sequence[Tensor | None],
) -> dict[str, BlockCall]:
    of_runs = zip(runs.items(), output_grad, pseudo_grad, live, strict=True)
    return {
        name: BlockCall(
            args=run.args, kwargs=run.kwargs, output_grad=gradient, pseudo_grad=signs, live=numbers
        )
        for (name, run), gradient, signs, numbers in of_runs
    }


def _check_reached(names: Sequence[str], seen: Mapping[str, object]) -> None:
    missing = [name for name in names if name not in seen]
    if missing:
        raise UnsupportedError(f"{missing[0]} was not reached by the forward pass")


def _finite_loss(metric: LossMetric, y: Tensor, targets: Targets, weights: Tensor | None) -> float:
    loss = float(metric.loss(y, targets, weights))
    if not torch.isfinite(y).all() or not math.isfinite(loss):
        reason = "the network has diverged or the batch holds bad values"
        raise DivergenceError(f"the loss on this batch is {loss}: {reason}")
    return loss


def _backward(
    output: Tensor,
    calls: Sequence[tuple[str, LinearCall]],
    runs: Mapping[str, _Run],
    rows: tuple[Tensor, Tensor],
) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """Backpropagate two sets of output rows to the maps' outputs and to the blocks' outputs.

    Returns:
        For each set one tensor per call of a map, of the shape of its output, followed by one per block.
    """
    # an edge is missing where nothing before the map's output needs a gradient
    edges = [call.edge for _, call in calls if call.edge is not None]
    if len(edges) < len(calls):
        raise UnsupportedError("the outputs do not depend on any trainable parameter")
    edges += [run.edge for run in runs.values()]
    true, signs = (values.to(output.dtype).reshape(output.shape) for values in rows)
    # allow_unused, so that the map without influence can be named
    dz = grad_at(output, edges, true, retain_graph=True, allow_unused=True)
    loose = [name for (name, _), gradient in zip(calls, dz, strict=False) if gradient is None]
    if loose:
        raise UnsupportedError(f"the model's outputs do not depend on {loose[0]}")
    # the graph is kept: which locations are live may have to be found out
    return dz, grad_at(output, edges, signs, retain_graph=True)


def _chunks(
    calls: Sequence[tuple[str, LinearCall]],
    output_grad: Sequence[Tensor],
    pseudo_grad: Sequence[Tensor],
    layouts: Mapping[str, BatchLayout] | None,
    samples: int,
) -> dict[str, list[RowChunk]]:
    """Split what was collected into the calls of each map, by label; a grouped convolution is a map per group."""
    chunks: dict[str, list[RowChunk]] = {}
    number: Counter[str] = Counter()
    of_calls = zip(
        calls, output_grad, pseudo_grad, strict=False
    )  # gradients of blocks come after those of calls
    for (name, call), gradient, sign in of_calls:
        # a map that is called twice has a layout for each call
        layout = layout_of(layouts, name, number[name])
        number[name] += 1
        reads = layer_inputs(name, call, layout, samples)
        by_group = [
            per_layer_grads(call, layout, values, samples).chunk(len(reads), 2)
            for values in (gradient, sign)
        ]
        for label, read, own, own_sign in zip(
            labels(name, len(reads)), reads, *by_group, strict=True
        ):
            chunks.setdefault(label, []).append(
                RowChunk(layer_input=read, output_grad=own, pseudo_grad=own_sign)
            )
    return chunks


@dataclass(frozen=True, eq=False, kw_only=True)
class _Run:
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    edge: GradientEdge


@contextmanager
def _running(model: nn.Module, names: Sequence[str]) -> Iterator[dict[str, _Run]]:
    """Collect calls of modules that take a tensor first, and return one or several of which the first counts."""
    runs: dict[str, _Run] = {}

    def keep(name: str) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            given = pytree.tensor_leaves(output)[0]
            # A copy of the block after it reads the block's output where the block read its own input: its first
            # argument, by position or by name.
            if args:
                runs[name] = _Run(
                    args=(given.detach(), *args[1:]), kwargs=kwargs, edge=get_gradient_edge(given)
                )
            else:
                first = next(iter(kwargs))
                runs[name] = _Run(
                    args=(), kwargs={**kwargs, first: given.detach()}, edge=get_gradient_edge(given)
                )

        return hook

    handles = [
        model.get_submodule(name).register_forward_hook(keep(name), with_kwargs=True)
        for name in names
    ]
    try:
        yield runs
    finally:
        for handle in handles:
            handle.remove()


def layout_of(layouts: Mapping[str, BatchLayout] | None, name: str, number: int) -> RowLayout:
    """Look up the layout of one call of a map.

    Args:
        layouts: of all maps, or None if first dimensions count samples.
        name: of the map.
        number: which call it is, from 0.

    Returns:
        The layout.

    Raises:
        UnsupportedError: the forward pass calls the map more often than on the samples that layouts were inferred from.
    """
    if layouts is None:
        return RowLayout()
    if number >= len(layouts[name].layouts):
        raise UnsupportedError(
            f"{name} is applied more often than on the first samples: the forward depends on data"
        )
    return layouts[name].layouts[number]


def labels(name: str, groups: int) -> list[str]:
    """Name the groups of a map, each of which is a map of its own: `name[0]`, `name[1]`, ...

    Args:
        name: of the map.
        groups: how many there are; a single one keeps the map's name.

    Returns:
        A name for each group.
    """
    return [name] if groups == 1 else [f"{name}[{group}]" for group in range(groups)]


def layer_inputs(name: str, one: LinearCall, layout: RowLayout, samples: int) -> list[LayerInput]:
    """Arrange the input of a call by sample and location.

    Args:
        name: of the map, for messages.
        one: the call.
        layout: where samples are in its tensors.
        samples: how many there are.

    Returns:
        One input for each group of a convolution, a single one otherwise.

    Raises:
        UnsupportedError: the input can't be divided into that many samples.
    """
    # the bias itself isn't needed: its column of ones is
    x, biased, kernel = upcast(one.x.detach()), one.bias is not None, one.kernel
    if not layout.fits(x.shape[layout.axis], samples) or (kernel is not None and len(x) != samples):
        raise UnsupportedError(
            f"{name} reads a tensor whose first dimension doesn't count samples: leave it out by ignore"
        )
    if kernel is None:
        return [DenseInput(layout.by_sample(x, samples), biased)]
    if kernel.transposed:
        return [DenseInput(x.flatten(2).mT, biased)]
    # each group is a convolution of its own over its share of the channels
    alone = replace(kernel, groups=1)
    return [ConvInput.of(own, biased, alone) for own in torch.chunk(x, kernel.groups, 1)]


def per_layer_grads(one: LinearCall, layout: RowLayout, gradient: Tensor, samples: int) -> Tensor:
    """Arrange the gradient at a call's output by sample and location.

    Args:
        one: the call.
        layout: where samples are in its tensors.
        gradient: of the shape of the call's output.
        samples: how many there are.

    Returns:
        (samples, locations, m), float32 at least.
    """
    gradient = upcast(gradient)
    if one.kernel is None:
        return layout.by_sample(gradient, samples)
    if one.kernel.transposed:
        # Its pixels are mapped to patches of the output, so the roles of input and gradient are exchanged.
        patches = ConvInput.of(gradient, False, one.kernel)
        return patches.rows().view(samples, patches.locations, -1)
    return gradient.flatten(2).mT
