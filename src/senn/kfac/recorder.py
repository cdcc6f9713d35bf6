"""How a forward pass applies its linear maps, seen at the calls themselves, and which rows belong to which sample.

A function mode watches the calls of `linear`, convolutions, `addmm` and matrix products. A map is known by its weight,
so it doesn't matter who holds it: a layer, a module of another library, a forward's own code. Nothing stays behind.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from senn import pytree
from senn.errors import explained
from senn.kfac.layer_inputs import Kernel
from senn.preserve import preserve_model_state
from senn.pytree import Inputs, Output

SAMPLES = 3
"""Samples with which a map's layout is found out."""


@dataclass(frozen=True, eq=False, kw_only=True)
class LinearCall:
    """One application of a linear map.

    Attributes:
        x: what it reads, (..., in), or (samples, in, *spatial) of a convolution.
        shape: of what it gives.
        kernel: of a convolution; None for a matrix product.
        bias: the bias that was given along, if any.
        edge: the place of its output in the graph; None without gradients. The place, not the tensor: an activation may
            write over the output (`ReLU(inplace=True)`), and the tensor then stands for what came after.
        z: a copy of its output if that was asked for.
    """

    x: Tensor
    shape: torch.Size
    kernel: Kernel | None
    bias: Tensor | None
    edge: GradientEdge | None
    z: Tensor | None


@dataclass(frozen=True)
class RowLayout:
    """Where samples are in what a map gives.

    Attributes:
        axis: the dimension that counts samples, alone or together with locations.
        inner: whether samples alternate along it (times first), rather than each having its locations side by side.
    """

    axis: int = 0
    inner: bool = False

    def fits(self, size: int, samples: int) -> bool:
        """Whether a dimension of that size can be cut into that many samples."""
        return size > 0 and size % samples == 0

    def by_sample(self, tensor: Tensor, samples: int) -> Tensor:
        """(samples, locations, features) of a tensor whose features come last."""
        size = tensor.shape[self.axis] // samples
        parts = (size, samples) if self.inner else (samples, size)
        tensor = torch.unflatten(tensor, self.axis, parts).movedim(self.axis + self.inner, 0)
        return tensor.reshape(samples, -1, tensor.shape[-1])


def tensor_name(map_name: str, model: nn.Module) -> str:
    """Full name of a map's weight: maps are called by their module where the tensor is its `weight`."""
    path, _, key = map_name.rpartition(".")
    try:
        held = getattr(model.get_submodule(path), key)
    except AttributeError:
        held = None
    return map_name if isinstance(held, Tensor) else f"{map_name}.weight"


class CallRecorder(TorchFunctionMode):
    """Collects the applications of the named maps."""

    def __init__(self, model: nn.Module, names: Sequence[str], outputs: bool) -> None:
        super().__init__()
        self.model, self.outputs = model, outputs
        self.full = {name: tensor_name(name, model) for name in names}
        self.seen: dict[str, list[LinearCall]] = {}
        self._known: dict[int, tuple[str, Tensor]] | None = None

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.multi_head_attention_forward:
            with self:
                return _ATTENTION(*args, **kwargs)
        result = func(*args, **kwargs)
        read = _CALLS.get(func)
        if read is not None and isinstance(result, Tensor):
            found = read(*args, **kwargs)
            name = None if found is None else self._match(found[1], square=found[2] is None)
            if found is not None and name is not None:
                return self._keep(name, result, *found)
        return result

    def _match(self, weight: Any, *, square: bool) -> str | None:
        """The map whose weight a tensor is, as it is stored or (`square`: matrices only) transposed."""
        if not isinstance(weight, Tensor):
            return None
        if self._known is None:  # only now: tensors may have been put in place for this call (functional_call)
            tensors = {name: _find(self.model, full) for name, full in self.full.items()}
            self._known = {tensor.data_ptr(): (name, tensor) for name, tensor in tensors.items()}
        name, known = self._known.get(weight.data_ptr(), (None, None))
        if known is None:
            return None
        same = weight.shape == known.shape and weight.stride() == known.stride()
        flipped = square and weight.shape == known.shape[::-1] and weight.stride() == known.stride()[::-1]
        return name if same or flipped else None

    def _keep(
        self, name: str, z: Tensor, x: Tensor, weight: Tensor, kernel: Kernel | None, bias: Tensor | None
    ) -> Tensor:
        edge = get_gradient_edge(z) if z.requires_grad else None
        copy = z.detach().clone() if self.outputs else None
        self.seen.setdefault(name, []).append(
            LinearCall(x=x, shape=z.shape, kernel=kernel, bias=bias, edge=edge, z=copy)
        )
        # writing over a view would take its place out of the graph, so what comes after gets a copy
        return z.clone() if edge is not None and z._is_view() else z


Found = tuple[Tensor, Tensor, Kernel | None, Tensor | None]
"""Input, weight, kernel, bias of a call."""


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Found:
    return input, weight, None, bias


def _product(input: Tensor, other: Any, **_: Any) -> Found | None:
    return (input, other, None, None) if isinstance(other, Tensor) and other.dim() == 2 else None


def _matrix_product(input: Tensor, mat2: Tensor, **_: Any) -> Found | None:
    return _product(input, mat2)


def _addmm(input: Tensor, mat1: Tensor, mat2: Tensor, *, beta: float = 1, alpha: float = 1, **_: Any) -> Found | None:
    bias = input if beta == 1 and input.dim() == 1 else None
    return (mat1, mat2, None, bias) if alpha == 1 and (beta == 0 or bias is not None) else None


def _convolution(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Found | None:
    spatial = weight.dim() - 2
    if input.dim() != weight.dim():
        return None

    def each(value: Any) -> tuple[int, ...]:
        return _each(value, spatial)

    size, gaps = tuple(weight.shape[2:]), each(dilation)
    if padding == "same":
        total = [gap * (width - 1) for gap, width in zip(gaps, size, strict=True)]
        sides = [(width // 2, width - width // 2) for width in total]
    else:
        sides = [(width, width) for width in (each(0) if padding == "valid" else each(padding))]
    return input, weight, Kernel(size, each(stride), gaps, tuple(sides), groups), bias


def _transposed(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Found | None:
    spatial = weight.dim() - 2
    if input.dim() != weight.dim() or groups != 1:
        return None
    sides = tuple((width, width) for width in _each(padding, spatial))
    kernel = Kernel(tuple(weight.shape[2:]), _each(stride, spatial), _each(dilation, spatial), sides, transposed=True)
    return input, weight, kernel, None  # its bias isn't one of the map of pixels


def _each(value: Any, spatial: int) -> tuple[int, ...]:
    """A setting by dimension."""
    return (value,) * spatial if isinstance(value, int) else tuple(value) * (spatial // len(value))


_CALLS: dict[Any, Callable[..., Found | None]] = {
    F.linear: _linear,
    **dict.fromkeys((torch.conv1d, torch.conv2d, torch.conv3d), _convolution),
    **dict.fromkeys((torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d), _transposed),
    **dict.fromkeys((torch.addmm, Tensor.addmm), _addmm),
    **dict.fromkeys((torch.mm, Tensor.mm), _matrix_product),
    **dict.fromkeys((torch.matmul, Tensor.matmul, Tensor.__matmul__), _product),
}

# The same code, but it doesn't hand itself over to the mode as a whole, so that the calls inside are seen.
_ATTENTION = types.FunctionType(
    F.multi_head_attention_forward.__code__,
    {**F.multi_head_attention_forward.__globals__, "has_torch_function": lambda _: False},
    argdefs=F.multi_head_attention_forward.__defaults__,
)


def _find(model: nn.Module, full: str) -> Tensor:
    path, _, key = full.rpartition(".")
    return cast(Tensor, getattr(model.get_submodule(path), key))


@contextmanager
def record_linear_calls(
    model: nn.Module, names: Sequence[str], *, outputs: bool = False
) -> Iterator[dict[str, list[LinearCall]]]:
    """Collect, by map and in order, what is applied during the passes inside (with what comes out, if `outputs`).

    Args:
        model: any module.
        names: of its linear maps: the module's where the weight is its `weight`, else the parameter's full name.
        outputs: whether to copy what the maps give.
    """
    with CallRecorder(model, names, outputs) as reader:
        yield reader.seen


def forward(model: nn.Module, inputs: Inputs, output: Output | None = None) -> Tensor:
    """The tensor that the loss takes, in what the model returns for the inputs.

    Raises:
        SennError: the forward pass fails on them.
    """
    with explained("the model's forward pass fails on this batch"):
        returned = pytree.call(model, inputs)
    return pytree.prediction(returned, output)


@dataclass(frozen=True, kw_only=True)
class BatchLayout:
    """How a map's applications are to be read.

    Attributes:
        layouts: of each application.
        locations: rows per sample of all applications together.
        biased: whether a bias is added to what it gives.
        groups: of a convolution: so many maps side by side.
    """

    layouts: tuple[RowLayout, ...]
    locations: int
    biased: bool
    groups: int = 1


def infer_batch_layouts(
    model: nn.Module, uses: Mapping[str, int], inputs: Inputs, output: Output | None = None
) -> dict[str, BatchLayout | str]:
    """How each map can be read; or in one sentence why it can't.

    A few samples go through the model, and each sample's output backwards on its own: its gradient must reach that
    sample's rows of a map and no others.

    Args:
        model: any module.
        uses: by map, how often a forward pass applies it.
        inputs: of which the first samples are taken.
        output: finds the outputs in what the model returns.
    """
    number = min(SAMPLES, pytree.count(inputs))
    inputs = pytree.clone(pytree.head(inputs, number))
    with torch.enable_grad(), preserve_model_state(model), record_linear_calls(model, [*uses]) as seen:
        y = forward(model, inputs, output)
        signs = torch.Generator().manual_seed(0)
        slope = torch.randn(y.shape, generator=signs, dtype=torch.float32).to(y)
        applied = [(name, one) for name, several in seen.items() for one in several]
        edges = [one.edge for _, one in applied if one.edge is not None]
        reached: list[list[Tensor | None]] = [[] for _ in applied]
        for sample in range(number if len(y) == number and y.requires_grad and edges else 0):
            only = torch.zeros_like(slope)
            only[sample] = slope[sample]
            found = iter(torch.autograd.grad(y, edges, only, retain_graph=True, allow_unused=True))
            for gradients, (_, one) in zip(reached, applied, strict=True):
                gradients.append(next(found) if one.edge is not None else None)
    result: dict[str, BatchLayout | str] = {}
    for name, number in uses.items():
        several = [(one, gradients) for (owner, one), gradients in zip(applied, reached, strict=True) if owner == name]
        seldom = several and len(several) != number
        result[name] = f"{name} is also applied in a way that isn't read" if seldom else _reading(name, several)
    return result


def _reading(name: str, several: list[tuple[LinearCall, list[Tensor | None]]]) -> BatchLayout | str:
    if not several:
        return f"{name} is applied inside a fused operation, or not at all"
    if not any(gradients for _, gradients in several):
        return "the outputs do not depend on any trainable parameter, or their first dimension doesn't count samples"
    layouts, locations = [], 0
    for one, gradients in several:
        found = [gradient for gradient in gradients if gradient is not None]
        if len(found) < len(gradients):
            return f"the model's outputs do not depend on {name}"
        layout = _layout(found, one.kernel is not None)
        if layout is None:
            return f"{name} reads rows that can't be told apart by samples"
        layouts.append(layout)
        shape = one.x.shape if one.kernel is not None and one.kernel.transposed else one.shape
        features = shape[1] if one.kernel is not None else shape[-1]
        locations += shape.numel() // features // len(found)
    if len({one.kernel is None for one, _ in several}) > 1 or len({id(one.bias) for one, _ in several}) > 1:
        return f"{name} is applied in ways that differ"
    kernel = several[0][0].kernel
    return BatchLayout(
        layouts=tuple(layouts),
        locations=locations,
        biased=several[0][0].bias is not None,
        groups=1 if kernel is None else kernel.groups,
    )


def _layout(gradients: Sequence[Tensor], convolution: bool) -> RowLayout | None:
    """The one layout under which each sample's gradient stays within its rows."""
    samples, first = len(gradients), gradients[0]
    axes = [0] if convolution else list(range(first.dim() - 1))
    if convolution and len(first) != samples:
        return None
    for axis in axes:
        for inner in (False, True):
            layout = RowLayout(axis, inner)
            if not layout.fits(first.shape[axis], samples):
                continue
            rows = [g.flatten(1)[:, None] if convolution else layout.by_sample(g, samples) for g in gradients]
            alone = (not bool(g[torch.arange(samples) != number].any()) for number, g in enumerate(rows))
            if all(alone):
                return layout
    return None
