"""What passes through each linear map of a model on one batch; nothing is left behind.

One forward pass in eval mode and two backward passes to the maps' outputs: the true gradient, and random signs through
the square root of the output metric (curvature propagation). No parameter gradient is formed, so no `.grad` is touched;
modes and the global random state come back as they were.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from senn import batch
from senn.batch import Inputs, Output
from senn.curvature.output import Among, OutputMetric
from senn.curvature.patches import Dense, Patches, Read, full
from senn.curvature.reading import Application, Layout, Reading, forward, reading
from senn.errors import DivergenceError, UnsupportedError
from senn.preserve import preserve_model_state


@dataclass(frozen=True, eq=False)
class Part:
    """One application of a linear map to all samples.

    Attributes:
        read: what it reads.
        dz: gradient of each sample's loss with respect to the map's output, true targets, (samples, locations, m).
        s: curvature-propagated random signs there, E[s s^T] = S, of the same shape.
    """

    read: Read
    dz: Tensor
    s: Tensor

    def some(self, samples: slice) -> Part:
        """Some of the samples."""
        return Part(self.read.some(samples), self.dz[samples], self.s[samples])


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows of one linear map, sample-major: (samples * locations, ...).

    Attributes:
        parts: one for each application; a further one is like further locations.
        data: whether the map reads the model's inputs themselves, so that the moment of a is a statistic of the data.
    """

    parts: tuple[Part, ...]
    data: bool

    @property
    def locations(self) -> int:
        """Rows per sample."""
        return sum(part.read.locations for part in self.parts)

    @property
    def a(self) -> Tensor:
        """Inputs with a trailing 1 where the map has a bias, (rows, c)."""
        return self._rows([part.read.rows().view(*part.dz.shape[:2], -1) for part in self.parts])

    @property
    def dz(self) -> Tensor:
        """Output gradients, (rows, m)."""
        return self._rows([part.dz for part in self.parts])

    @property
    def s(self) -> Tensor:
        """Signs, (rows, m)."""
        return self._rows([part.s for part in self.parts])

    def _rows(self, values: list[Tensor]) -> Tensor:
        return torch.cat(values, 1).flatten(0, 1)


@dataclass(frozen=True, eq=False)
class BlockRun:
    """One run of a residual block.

    Attributes:
        args: what a copy after it would be called with: its output in the place of its first argument.
        kwargs: the same.
        dz: gradient of each sample's loss with respect to its output, of the output's shape.
        s: curvature-propagated random signs there.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    dz: Tensor
    s: Tensor

    def some(self, samples: slice) -> BlockRun:
        """Some of the samples."""
        args, kwargs = batch.take((self.args, self.kwargs), samples, len(self.dz))
        return BlockRun(args, kwargs, self.dz[samples], self.s[samples])


@dataclass(frozen=True, eq=False)
class Capture:
    """One batch, seen at every linear map.

    Attributes:
        rows: by the linear map's name; of a grouped convolution by `labels`.
        blocks: runs of the blocks that were asked for, by name.
        loss: mean loss of the batch, in the loss's own unit (nats for cross-entropy).
        bound: lambda, the most that eta can be on this batch.
        output: the model's outputs, detached.
    """

    rows: dict[str, Rows]
    blocks: dict[str, BlockRun]
    loss: float
    bound: float
    output: Tensor


def capture(
    model: nn.Module,
    names: Sequence[str],
    inputs: Inputs,
    targets: Tensor,
    metric: OutputMetric,
    *,
    generator: torch.Generator,
    weights: Tensor | None = None,
    find: Output | None = None,
    layouts: Mapping[str, Reading] | None = None,
    blocks: Sequence[str] = (),
    among: Among | None = None,
) -> Capture:
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
        layouts: how maps are to be read (`legible`); without, first dimensions count samples.
        blocks: modules whose runs are wanted too.
        among: of which samples these are some, see `OutputMetric.probe`.

    Raises:
        DivergenceError: the outputs or the loss are NaN or infinite.
        UnsupportedError: a map is not reached or makes no difference, or the outputs are not a tensor.
    """
    if not names:
        raise UnsupportedError("the model has no linear map whose inputs could be read")
    with torch.enable_grad(), preserve_model_state(model):
        with reading(model, names) as seen, _running(model, blocks) as runs:
            output = forward(model, inputs, find)
        missing = [name for name in names if name not in seen]
        if missing:
            raise UnsupportedError(f"{missing[0]} was not reached by the forward pass")
        y = output.detach()
        loss = float(metric.loss(y, targets, weights))
        if not torch.isfinite(y).all() or loss != loss or abs(loss) == float("inf"):
            reason = "the network has diverged or the batch holds bad values"
            raise DivergenceError(f"the loss on this batch is {loss}: {reason}")
        applied = [(name, one) for name in names for one in seen[name]]
        edges = [one.edge for _, one in applied if one.edge is not None]
        ends = [run.edge for run in runs.values()]
        if len(edges) < len(applied):
            raise UnsupportedError("the outputs do not depend on any trainable parameter")
        true = metric.gradient(y, targets, weights).to(output.dtype).reshape(output.shape)
        sign = metric.probe(y, targets, generator, weights, among).to(output.dtype).reshape(output.shape)
        dz = torch.autograd.grad(output, edges + ends, true, retain_graph=True, allow_unused=True)
        loose = [name for (name, _), gradient in zip(applied, dz, strict=False) if gradient is None]
        if loose:
            raise UnsupportedError(f"the model's outputs do not depend on {loose[0]}")
        s = torch.autograd.grad(output, edges + ends, sign)
    given = {x.untyped_storage().data_ptr() for x in batch.tensors(inputs)}
    parts: dict[str, list[Part]] = {}
    number: Counter[str] = Counter()
    for (name, one), *back in zip(applied, dz, s, strict=False):  # blocks follow
        layout = layout_of(layouts, name, number[name])
        number[name] += 1
        reads = reads_of(name, one, layout, len(y))
        gradients, signs = (back_of(one, layout, values, len(y)).chunk(len(reads), 2) for values in back)
        for label, read, slope, sign in zip(labels(name, len(reads)), reads, gradients, signs, strict=True):
            parts.setdefault(label, []).append(Part(read, slope, sign))
    read_inputs = {name for name in names if seen[name][0].x.untyped_storage().data_ptr() in given}
    rows = {label: Rows(tuple(several), label in read_inputs) for label, several in parts.items()}
    found: dict[str, BlockRun] = {
        name: BlockRun(run.args, run.kwargs, gradient, signs)
        for (name, run), gradient, signs in zip(runs.items(), dz[len(edges) :], s[len(edges) :], strict=True)
    }
    return Capture(rows, found, loss, float(metric.bound(y, targets, weights)), y)


@dataclass(frozen=True, eq=False)
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
            given = batch.tensors(output)[0]
            if args:
                runs[name] = _Run((given.detach(), *args[1:]), kwargs, get_gradient_edge(given))
            else:
                first = next(iter(kwargs))
                runs[name] = _Run((), {**kwargs, first: given.detach()}, get_gradient_edge(given))

        return hook

    handles = [model.get_submodule(name).register_forward_hook(keep(name), with_kwargs=True) for name in names]
    try:
        yield runs
    finally:
        for handle in handles:
            handle.remove()


def layout_of(layouts: Mapping[str, Reading] | None, name: str, number: int) -> Layout:
    """How a map's application is laid out."""
    if layouts is None:
        return Layout()
    if number >= len(layouts[name].layouts):
        raise UnsupportedError(f"{name} is applied more often than on the first samples: the forward depends on data")
    return layouts[name].layouts[number]


def labels(name: str, groups: int) -> list[str]:
    """What a map's groups are called: each is a map of its own."""
    return [name] if groups == 1 else [f"{name}[{group}]" for group in range(groups)]


def reads_of(name: str, one: Application, layout: Layout, samples: int) -> list[Read]:
    """What an application reads, by sample and location: one for each group."""
    x, biased, kernel = full(one.x.detach()), one.bias is not None, one.kernel
    if not layout.fits(x.shape[layout.axis], samples) or (kernel is not None and len(x) != samples):
        raise UnsupportedError(
            f"{name} reads a tensor whose first dimension doesn't count samples: leave it out by ignore"
        )
    if kernel is None:
        return [Dense(layout.by_sample(x, samples), biased)]
    if kernel.transposed:
        return [Dense(x.flatten(2).mT, biased)]
    alone = replace(kernel, groups=1)
    return [Patches.of(own, biased, alone) for own in torch.chunk(x, kernel.groups, 1)]


def back_of(one: Application, layout: Layout, gradient: Tensor, samples: int) -> Tensor:
    """(samples, locations, m) of what came back to an application."""
    gradient = full(gradient)
    if one.kernel is None:
        return layout.by_sample(gradient, samples)
    if one.kernel.transposed:
        patches = Patches.of(gradient, False, one.kernel)
        return patches.rows().view(samples, patches.locations, -1)
    return gradient.flatten(2).mT
