"""Recording of a forward pass's linear calls, and where the rows of each sample are in their tensors.

Hooks would see layers of known classes only. Here a function mode watches the calls of `linear`, convolutions, `addmm`
and matrix products themselves, and a map is recognized by its weight. So it doesn't matter who holds the weight: a
layer, a module of another library, or a forward pass's own code; and a weight that is used several times, as in
attention or a recurrence, is seen each time. Nothing is left behind in the model.
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
"""Samples from which layouts are inferred: more than one, as any layout fits a single one; each costs a backward pass."""


@dataclass(frozen=True, eq=False, kw_only=True)
class LinearCall:
    """One call of a linear map.

    Attributes:
        x: input, (..., in), or (samples, in, *spatial) for a convolution.
        shape: of the output.
        kernel: geometry of a convolution; None for a matrix product.
        bias: bias that the call adds, if any.
        edge: place of the output in the autograd graph; None without gradients. Not the tensor itself: an activation
            in place (`ReLU(inplace=True)`) overwrites it, and the tensor then stands for the activation's output.
        z: copy of the output, if the recorder was asked to keep outputs.
    """

    x: Tensor
    shape: torch.Size
    kernel: Kernel | None
    bias: Tensor | None
    edge: GradientEdge | None
    z: Tensor | None


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
        parts = (size, samples) if self.inner else (samples, size)
        tensor = torch.unflatten(tensor, self.axis, parts).movedim(self.axis + self.inner, 0)
        return tensor.reshape(samples, -1, tensor.shape[-1])


def tensor_name(map_name: str, model: nn.Module) -> str:
    """Find the full name of a map's weight.

    Args:
        map_name: name of a module whose `weight` it is, or the weight's own full name.
        model: that holds it.
    """
    path, _, key = map_name.rpartition(".")
    try:
        held = getattr(model.get_submodule(path), key)
    except AttributeError:
        held = None
    return map_name if isinstance(held, Tensor) else f"{map_name}.weight"


class CallRecorder(TorchFunctionMode):
    """Function mode that collects the calls of named maps, in order."""

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
            # It would be handled as one call, and the projections inside it remain unseen.
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
        """Name the map whose weight a tensor is, as it is stored or (`square`: matrices only) transposed."""
        if not isinstance(weight, Tensor):
            return None
        # Looked up at the first call, not before: `functional_call` puts other tensors in place for one forward pass.
        if self._known is None:
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
        # An operation in place on a view replaces its node in the graph, which would lose the edge: hand on a copy.
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

# The code of torch.nn.functional.multi_head_attention_forward, run again with a `has_torch_function` that says no. Else
# it hands itself over to the mode as a whole, and the projections inside aren't seen. It is torch's own code object, so
# it changes with torch; tests/kfac/test_recorder.py compares what it records with the layers of attention.
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
    """Record the calls of linear maps during the forward passes inside.

    Args:
        model: any module.
        names: linear maps: the module's name where the weight is its `weight`, else the parameter's full name.
        outputs: True to keep copies of the outputs as well.

    Yields:
        The calls of each map, in order; filled while passes run.
    """
    with CallRecorder(model, names, outputs) as reader:
        yield reader.seen


def forward(model: nn.Module, inputs: Inputs, output: Output | None = None) -> Tensor:
    """Run the model and find its outputs.

    Args:
        model: any module.
        inputs: (samples, ...), or any nesting of such tensors.
        output: finds the outputs in the return value; None where this is a tensor.

    Returns:
        The tensor that the loss takes.

    Raises:
        SennError: the forward pass fails on them.
    """
    with explained("the model's forward pass fails on this batch"):
        returned = pytree.call(model, inputs)
    return pytree.prediction(returned, output)


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
    model: nn.Module, uses: Mapping[str, int], inputs: Inputs, output: Output | None = None
) -> dict[str, BatchLayout | str]:
    """Find out where each sample's rows are in every map's tensors.

    A few samples go through the model, and the output of each is backpropagated on its own: the gradient must reach
    rows of that sample only. The layout under which it does is the map's.

    Args:
        model: any module.
        uses: by map, how often a forward pass uses its weight.
        inputs: a batch, of which the first samples are taken.
        output: finds the outputs in the model's return value; None where this is a tensor.

    Returns:
        For each map its layout, or one sentence that says why it has none.
    """
    number = min(SAMPLES, pytree.count(inputs))
    inputs = pytree.clone(pytree.head(inputs, number))
    with torch.enable_grad(), preserve_model_state(model), record_linear_calls(model, [*uses]) as seen:
        y = forward(model, inputs, output)
        calls = [(name, call) for name, several in seen.items() for call in several]
        reached = _reached(y, [call for _, call in calls], number)
    result: dict[str, BatchLayout | str] = {}
    for name, n_uses in uses.items():
        several = [(call, gradients) for (owner, call), gradients in zip(calls, reached, strict=True) if owner == name]
        if several and len(several) != n_uses:
            result[name] = f"{name} is also applied in a way that isn't read"
        else:
            result[name] = _batch_layout(name, several)
    return result


def _reached(y: Tensor, calls: Sequence[LinearCall], samples: int) -> list[list[Tensor | None]]:
    """Backpropagate each sample's output on its own.

    Returns:
        For each call one gradient per sample, None where the sample's output doesn't depend on the call. No gradients
        at all where the outputs aren't one row per sample.
    """
    reached: list[list[Tensor | None]] = [[] for _ in calls]
    edges = [call.edge for call in calls if call.edge is not None]
    if len(y) != samples or not y.requires_grad or not edges:
        return reached
    # random rather than ones: a softmax, for one, has no gradient along ones
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(y.shape, generator=generator, dtype=torch.float32).to(y)
    for sample in range(samples):
        only = torch.zeros_like(rows)
        only[sample] = rows[sample]
        found = iter(torch.autograd.grad(y, edges, only, retain_graph=True, allow_unused=True))
        for gradients, call in zip(reached, calls, strict=True):
            gradients.append(next(found) if call.edge is not None else None)
    return reached


def _batch_layout(name: str, several: list[tuple[LinearCall, list[Tensor | None]]]) -> BatchLayout | str:
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
        locations += _locations(one) // len(found)
    if len({one.kernel is None for one, _ in several}) > 1 or len({id(one.bias) for one, _ in several}) > 1:
        return f"{name} is applied in ways that differ"
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


def _layout(gradients: Sequence[Tensor], convolution: bool) -> RowLayout | None:
    """Find the layout under which each sample's gradient stays within that sample's rows; None if there is none."""
    samples, first = len(gradients), gradients[0]
    axes = [0] if convolution else list(range(first.dim() - 1))
    if convolution and len(first) != samples:
        return None
    for axis in axes:
        for inner in (False, True):
            layout = RowLayout(axis, inner)
            if not layout.fits(first.shape[axis], samples):
                continue
            if all(
                _is_alone(g.flatten(1)[:, None] if convolution else layout.by_sample(g, samples), number)
                for number, g in enumerate(gradients)
            ):
                return layout
    return None


def _is_alone(rows: Tensor, sample: int) -> bool:
    """True if rows (samples, locations, features) are zero for all samples but one."""
    others = torch.arange(len(rows)) != sample
    return not bool(rows[others].any())
