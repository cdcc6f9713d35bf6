"""What passes through each linear map of a model on one batch; nothing is left behind.

One forward pass in eval mode and two backward passes to the maps' outputs: the true gradient, and random signs through
the square root of the output metric (curvature propagation). No parameter gradient is formed, so no `.grad` is touched;
modes and the global random state come back as they were.
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
from senn.kfac.layer_inputs import ConvInput, DenseInput, LayerInput, upcast
from senn.kfac.loss_metric import Among, LossMetric
from senn.kfac.recorder import BatchLayout, LinearCall, RowLayout, forward, record_linear_calls
from senn.preserve import preserve_model_state
from senn.pytree import Inputs, Output


@dataclass(frozen=True, eq=False, kw_only=True)
class RowChunk:
    """One application of a linear map to all samples.

    Attributes:
        read: what it reads.
        dz: gradient of each sample's loss with respect to the map's output, true targets, (samples, locations, m).
        s: curvature-propagated random signs there, E[s s^T] = S, of the same shape.
    """

    layer_input: LayerInput
    output_grad: Tensor
    pseudo_grad: Tensor

    def select(self, samples: slice) -> RowChunk:
        """Some of the samples."""
        return RowChunk(
            layer_input=self.layer_input.select(samples),
            output_grad=self.output_grad[samples],
            pseudo_grad=self.pseudo_grad[samples],
        )


@dataclass(frozen=True, eq=False)
class LayerRows:
    """Rows of one linear map, sample-major: (samples * locations, ...).

    Attributes:
        parts: one for each application; a further one is like further locations.
        data: whether the map reads the model's inputs themselves, so that the moment of a is a statistic of the data.
    """

    chunks: tuple[RowChunk, ...]
    reads_inputs: bool

    @property
    def locations(self) -> int:
        """Rows per sample."""
        return sum(part.layer_input.locations for part in self.chunks)

    @property
    def a(self) -> Tensor:
        """Inputs with a trailing 1 where the map has a bias, (rows, c)."""
        return self._rows([part.layer_input.rows().view(*part.output_grad.shape[:2], -1) for part in self.chunks])

    @property
    def output_grad(self) -> Tensor:
        """Output gradients, (rows, m)."""
        return self._rows([part.output_grad for part in self.chunks])

    @property
    def pseudo_grad(self) -> Tensor:
        """Signs, (rows, m)."""
        return self._rows([part.pseudo_grad for part in self.chunks])

    def _rows(self, values: list[Tensor]) -> Tensor:
        return torch.cat(values, 1).flatten(0, 1)


@dataclass(frozen=True, eq=False, kw_only=True)
class BlockCall:
    """One run of a residual block.

    Attributes:
        args: what a copy after it would be called with: its output in the place of its first argument.
        kwargs: the same.
        output_grad: gradient of each sample's loss with respect to its output, of the output's shape.
        pseudo_grad: curvature-propagated random signs there.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output_grad: Tensor
    pseudo_grad: Tensor

    def select(self, samples: slice) -> BlockCall:
        """Some of the samples."""
        args, kwargs = pytree.index_batch((self.args, self.kwargs), samples, len(self.output_grad))
        return BlockCall(
            args=args, kwargs=kwargs, output_grad=self.output_grad[samples], pseudo_grad=self.pseudo_grad[samples]
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class LayerStatistics:
    """One batch, seen at every linear map.

    Attributes:
        rows: by the linear map's name; of a grouped convolution by `labels`.
        blocks: runs of the blocks that were asked for, by name.
        loss: mean loss of the batch, in the loss's own unit (nats for cross-entropy).
        score_limit: lambda, the most that eta can be on this batch.
        output: the model's outputs, detached.
    """

    rows: dict[str, LayerRows]
    blocks: dict[str, BlockCall]
    loss: float
    score_limit: float
    output: Tensor


def capture(
    model: nn.Module,
    names: Sequence[str],
    inputs: Inputs,
    targets: Tensor,
    metric: LossMetric,
    *,
    generator: torch.Generator,
    weights: Tensor | None = None,
    find: Output | None = None,
    layouts: Mapping[str, BatchLayout] | None = None,
    blocks: Sequence[str] = (),
    among: Among | None = None,
) -> LayerStatistics:
    """Read the rows of the named linear maps on one batch.

    Args:
        model: any module; run once, in eval mode.
        names: linear maps: the module's name where the weight is its `weight`, else the parameter's.
        inputs: (samples, ...) or a tuple of such tensors.
        targets: (samples, ...).
        metric: the loss and its output metric.
        generator: source of the random signs.
        weights: (samples,) with mean 1, or None.
        find: finds the outputs in what the model returns.
        layouts: how maps are to be read (`infer_batch_layouts`); without, first dimensions count samples.
        blocks: modules whose runs are wanted too.
        among: of which samples these are some, see `LossMetric.probe`.

    Raises:
        DivergenceError: the outputs or the loss are NaN or infinite.
        UnsupportedError: a map is not reached or makes no difference, or the outputs are not a tensor.
    """
    if not names:
        raise UnsupportedError("the model has no linear map whose inputs could be read")
    with torch.enable_grad(), preserve_model_state(model):
        with record_linear_calls(model, names) as seen, _running(model, blocks) as runs:
            output = forward(model, inputs, find)
        missing = [name for name in names if name not in seen]
        if missing:
            raise UnsupportedError(f"{missing[0]} was not reached by the forward pass")
        y = output.detach()
        loss = _finite_loss(metric, y, targets, weights)
        calls = [(name, call) for name in names for call in seen[name]]
        true = metric.gradient(y, targets, weights)
        signs = metric.pseudo_grad(y, targets, generator, weights, among)
        dz, s = _backward(output, calls, runs, (true, signs))
    at_inputs = {x.untyped_storage().data_ptr() for x in pytree.tensor_leaves(inputs)}
    read_inputs = {name for name in names if seen[name][0].x.untyped_storage().data_ptr() in at_inputs}
    chunks = _chunks(calls, dz, s, layouts, len(y))
    of_blocks = zip(runs.items(), dz[len(calls) :], s[len(calls) :], strict=True)
    return LayerStatistics(
        rows={label: LayerRows(tuple(several), label in read_inputs) for label, several in chunks.items()},
        blocks={
            name: BlockCall(args=run.args, kwargs=run.kwargs, output_grad=g, pseudo_grad=v)
            for (name, run), g, v in of_blocks
        },
        loss=loss,
        score_limit=float(metric.score_limit(y, targets, weights)),
        output=y,
    )


def _finite_loss(metric: LossMetric, y: Tensor, targets: Tensor, weights: Tensor | None) -> float:
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
    """Pull two sets of output rows back to the maps' calls, then to the blocks' outputs.

    Returns:
        For each set one tensor per call, of the shape of what the map gave, followed by one per block.
    """
    edges = [call.edge for _, call in calls if call.edge is not None]
    if len(edges) < len(calls):
        raise UnsupportedError("the outputs do not depend on any trainable parameter")
    edges += [run.edge for run in runs.values()]
    true, signs = (values.to(output.dtype).reshape(output.shape) for values in rows)
    dz = torch.autograd.grad(output, edges, true, retain_graph=True, allow_unused=True)
    loose = [name for (name, _), gradient in zip(calls, dz, strict=False) if gradient is None]
    if loose:
        raise UnsupportedError(f"the model's outputs do not depend on {loose[0]}")
    return dz, torch.autograd.grad(output, edges, signs)


def _chunks(
    calls: Sequence[tuple[str, LinearCall]],
    output_grad: Sequence[Tensor],
    pseudo_grad: Sequence[Tensor],
    layouts: Mapping[str, BatchLayout] | None,
    samples: int,
) -> dict[str, list[RowChunk]]:
    """Rows of each call, by the map's label: a grouped convolution is one map for each group."""
    chunks: dict[str, list[RowChunk]] = {}
    number: Counter[str] = Counter()
    for (name, call), gradient, sign in zip(
        calls, output_grad, pseudo_grad, strict=False
    ):  # those of blocks come after
        layout = layout_of(layouts, name, number[name])
        number[name] += 1
        reads = layer_inputs(name, call, layout, samples)
        by_group = [per_layer_grads(call, layout, values, samples).chunk(len(reads), 2) for values in (gradient, sign)]
        for label, read, own, own_sign in zip(labels(name, len(reads)), reads, *by_group, strict=True):
            chunks.setdefault(label, []).append(RowChunk(layer_input=read, output_grad=own, pseudo_grad=own_sign))
    return chunks


@dataclass(frozen=True, eq=False, kw_only=True)
class _Run:
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    edge: GradientEdge


@contextmanager
def _running(model: nn.Module, names: Sequence[str]) -> Iterator[dict[str, _Run]]:
    """Collect the runs of modules that take a tensor first and give one back (or first of several)."""
    runs: dict[str, _Run] = {}

    def keep(name: str) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            given = pytree.tensor_leaves(output)[0]
            if args:
                runs[name] = _Run(args=(given.detach(), *args[1:]), kwargs=kwargs, edge=get_gradient_edge(given))
            else:
                first = next(iter(kwargs))
                runs[name] = _Run(args=(), kwargs={**kwargs, first: given.detach()}, edge=get_gradient_edge(given))

        return hook

    handles = [model.get_submodule(name).register_forward_hook(keep(name), with_kwargs=True) for name in names]
    try:
        yield runs
    finally:
        for handle in handles:
            handle.remove()


def layout_of(layouts: Mapping[str, BatchLayout] | None, name: str, number: int) -> RowLayout:
    """How a map's application is laid out."""
    if layouts is None:
        return RowLayout()
    if number >= len(layouts[name].layouts):
        raise UnsupportedError(f"{name} is applied more often than on the first samples: the forward depends on data")
    return layouts[name].layouts[number]


def labels(name: str, groups: int) -> list[str]:
    """What a map's groups are called: each is a map of its own."""
    return [name] if groups == 1 else [f"{name}[{group}]" for group in range(groups)]


def layer_inputs(name: str, one: LinearCall, layout: RowLayout, samples: int) -> list[LayerInput]:
    """What an application reads, by sample and location: one for each group."""
    x, biased, kernel = upcast(one.x.detach()), one.bias is not None, one.kernel
    if not layout.fits(x.shape[layout.axis], samples) or (kernel is not None and len(x) != samples):
        raise UnsupportedError(
            f"{name} reads a tensor whose first dimension doesn't count samples: leave it out by ignore"
        )
    if kernel is None:
        return [DenseInput(layout.by_sample(x, samples), biased)]
    if kernel.transposed:
        return [DenseInput(x.flatten(2).mT, biased)]
    alone = replace(kernel, groups=1)
    return [ConvInput.of(own, biased, alone) for own in torch.chunk(x, kernel.groups, 1)]


def per_layer_grads(one: LinearCall, layout: RowLayout, gradient: Tensor, samples: int) -> Tensor:
    """(samples, locations, m) of what came back to an application."""
    gradient = upcast(gradient)
    if one.kernel is None:
        return layout.by_sample(gradient, samples)
    if one.kernel.transposed:
        patches = ConvInput.of(gradient, False, one.kernel)
        return patches.rows().view(samples, patches.locations, -1)
    return gradient.flatten(2).mT
