"""What passes through each linear map of a model on one batch, read with hooks that leave nothing behind.

One forward pass in eval mode and two backward passes to the maps' outputs: the true gradient, and random signs through
the square root of the output metric (curvature propagation). No parameter gradient is formed, so no `.grad` is touched;
modes, hooks and the global random state come back as they were.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from senn import batch
from senn.batch import Inputs, Output
from senn.curvature.output import OutputMetric
from senn.curvature.patches import rows_in, rows_out, rows_width
from senn.errors import SennError, UnsupportedError

MOST_ROWS = 1 << 16
"""Rows of one map that are read of one batch: a sample with many locations says more, so fewer are needed."""


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows of one linear map, sample-major: (samples * locations, ...).

    Attributes:
        x: inputs, (rows, in).
        bias: whether the map has a bias.
        dz: gradient of each sample's loss with respect to the map's output, true targets, (rows, m).
        s: curvature-propagated random signs at the map's output, E[s s^T] = S, (rows, m).
        locations: rows per sample.
        data: whether the map reads the model's inputs themselves, so that the moment of a is a statistic of the data.
        chosen: (samples,) long, of which samples of the batch these rows are; None for all.
    """

    x: Tensor
    bias: bool
    dz: Tensor
    s: Tensor
    locations: int
    data: bool
    chosen: Tensor | None = None

    @property
    def a(self) -> Tensor:
        """Inputs with a trailing 1 where the map has a bias, (rows, c)."""
        return torch.cat([self.x, self.x.new_ones(len(self.x), 1)], 1) if self.bias else self.x


@dataclass(frozen=True, eq=False)
class Capture:
    """One batch, seen at every linear map.

    Attributes:
        rows: by the linear map's name.
        loss: mean loss of the batch, in the loss's own unit (nats for cross-entropy).
        bound: lambda, the most that eta can be on this batch.
        output: the model's outputs, detached.
    """

    rows: dict[str, Rows]
    loss: float
    bound: float
    output: Tensor


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode inside, every module's own mode given back after."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@dataclass(frozen=True, eq=False)
class Seen:
    """One module's pass.

    Attributes:
        x: its input.
        edge: the place of its output in the graph; None without gradients. The place, not the tensor: an activation may
            write over the output (`ReLU(inplace=True)`), and the tensor then stands for what came after.
        z: a copy of its output if that was asked for.
    """

    x: Tensor
    edge: GradientEdge | None
    z: Tensor | None


@contextmanager
def reading(model: nn.Module, names: Sequence[str], *, outputs: bool = False) -> Iterator[dict[str, Seen]]:
    """Collect what the named modules read (and give, if `outputs`) during the passes inside."""
    seen: dict[str, Seen] = {}

    def keep(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor | None]:
        def hook(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            if name in seen:
                raise UnsupportedError(
                    f"{name} is used more than once in a forward pass, which its factors cannot describe"
                )
            edge = get_gradient_edge(output) if output.requires_grad else None
            seen[name] = Seen(args[0], edge, output.detach().clone() if outputs else None)
            # writing over a view would take its place out of the graph, so what comes after gets a copy
            return output.clone() if edge is not None and output._is_view() else None

        return hook

    handles = [model.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def forward(model: nn.Module, inputs: Inputs, output: Output | None = None) -> Tensor:
    """The tensor that the loss takes, in what the model returns for the inputs."""
    return batch.prediction(batch.call(model, inputs), output)


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
) -> Capture:
    """Read the rows of the named linear maps on one batch.

    Args:
        model: any module; run once, in eval mode.
        names: linear maps, each used once in the forward pass and none twice.
        inputs: (samples, ...) or a tuple of such tensors.
        targets: (samples, ...).
        metric: the loss and its output metric.
        generator: source of the random signs.
        weights: (samples,) with mean 1, or None.
        find: finds the outputs in what the model returns.

    Raises:
        SennError: the outputs or the loss are NaN or infinite.
        UnsupportedError: a map is used twice or makes no difference, or the outputs are not a tensor.
    """
    if not names:
        raise UnsupportedError("the model has no linear layer or convolution of its own whose inputs could be read")
    with torch.enable_grad(), evaluating(model), reading(model, names) as seen:
        output = forward(model, inputs, find)
    missing = [name for name in names if name not in seen]
    if missing:
        raise UnsupportedError(f"{missing[0]} was not reached by the forward pass")
    y = output.detach()
    loss = float(metric.loss(y, targets, weights))
    if not torch.isfinite(y).all() or loss != loss or abs(loss) == float("inf"):
        raise SennError(f"the loss on this batch is {loss}: the network has diverged or the batch holds bad values")
    edges = [edge for name in names if (edge := seen[name].edge) is not None]
    if len(edges) < len(names):
        raise UnsupportedError("the outputs do not depend on any trainable parameter")
    samples = len(y)
    with torch.enable_grad():
        true = metric.gradient(y, targets, weights).to(output.dtype).reshape(output.shape)
        sign = metric.probe(y, targets, generator, weights).to(output.dtype).reshape(output.shape)
        dz = torch.autograd.grad(output, edges, true, retain_graph=True, allow_unused=True)
        loose = [name for name, gradient in zip(names, dz, strict=True) if gradient is None]
        if loose:
            raise UnsupportedError(f"the model's outputs do not depend on {loose[0]}")
        s = torch.autograd.grad(output, edges, sign)
    layers = [model.get_submodule(name) for name in names]
    locations = [g.numel() // rows_width(layer, g) // samples for layer, g in zip(layers, dz, strict=True)]
    chosen = _chosen(samples, max(locations, default=1))
    given = {x.untyped_storage().data_ptr() for x in batch.tensors(inputs)}
    rows = {}
    for name, layer, gradient, probe, places in zip(names, layers, dz, s, locations, strict=True):
        bias = layer.bias is not None
        x = seen[name].x.detach()
        if len(x) != samples:
            raise UnsupportedError(
                f"{name} reads a tensor whose first dimension doesn't count samples: leave it out by ignore"
            )
        data = x.untyped_storage().data_ptr() in given
        if chosen is not None:
            x, gradient, probe = (values.index_select(0, chosen.to(values.device)) for values in (x, gradient, probe))
        rows[name] = Rows(
            rows_in(layer, x), bias, rows_out(layer, gradient), rows_out(layer, probe), places, data, chosen
        )
    return Capture(rows, loss, float(metric.bound(y, targets, weights)), y)


def _chosen(samples: int, locations: int) -> Tensor | None:
    """Samples that are kept where a batch has many locations: the first ones of both its halves; None for all."""
    half = samples // 2
    kept = max(MOST_ROWS // (2 * locations), 16)
    if kept >= half:
        return None
    return torch.cat([torch.arange(kept), half + torch.arange(kept)])
