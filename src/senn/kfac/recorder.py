"""Recording of the linear calls of a forward pass.

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
from senn.errors import UnsupportedError, explained
from senn.kfac.layer_inputs import Kernel
from senn.pytree import Inputs, Output


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
        z: copy of the output, if `outputs` is set.
    """

    x: Tensor
    shape: torch.Size
    kernel: Kernel | None
    bias: Tensor | None
    edge: GradientEdge | None
    z: Tensor | None


@dataclass(frozen=True)
class Tables:
    """Tables whose rows are looked up, embeddings of tokens or positions, to be recorded beside linear maps.

    Attributes:
        shared: by the table's full name, True if all samples look up the same rows (positions). What comes out is then
            repeated for each sample, so that each has a gradient of its own there.
        samples: number of samples.
    """

    shared: Mapping[str, bool]
    samples: int


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

    def __init__(
        self, model: nn.Module, names: Sequence[str], outputs: bool, tables: Tables | None = None
    ) -> None:
        super().__init__()
        self.model, self.outputs, self.tables = model, outputs, tables
        self.full = {name: tensor_name(name, model) for name in names}
        self.seen: dict[str, list[LinearCall]] = {}
        self._known: dict[int, tuple[str, Tensor]] | None = None

    def __torch_function__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.multi_head_attention_forward:
            # It would be handled as one call, and the projections inside it remain unseen.
            with self:
                return _ATTENTION(*args, **kwargs)
        result = func(*args, **kwargs)
        look_up = None if self.tables is None else _LOOKUPS.get(func)
        if look_up is not None:
            return self._keep_rows(result, *look_up(*args, **kwargs))
        read = _CALLS.get(func)
        if read is not None and isinstance(result, Tensor):
            found = read(*args, **kwargs)
            name = None if found is None else self._match(found[1], square=found[2] is None)
            if found is not None and name is not None and not self._is_table(name):
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
        # the same memory isn't enough: a slice or a reshaped view begins at the same address
        same = weight.shape == known.shape and weight.stride() == known.stride()
        flipped = (
            square and weight.shape == known.shape[::-1] and weight.stride() == known.stride()[::-1]
        )
        return name if same or flipped else None

    def _is_table(self, name: str) -> bool:
        return self.tables is not None and name in self.tables.shared

    def _keep_rows(self, z: Any, weight: Any, index: Any) -> Any:
        """Keep what is looked up in a table, with the numbers of its rows as input, (..., 1)."""
        name = self._match(weight, square=False)
        if name is None or not self._is_table(name) or not isinstance(z, Tensor):
            return z
        assert self.tables is not None
        rows = torch.arange(len(weight), device=z.device)[index]
        if z.shape[:-1] != rows.shape:  # a part of each row
            return z
        if self.tables.shared[name]:
            z = z.expand(self.tables.samples, *z.shape[-2:])
            rows = rows.expand(self.tables.samples, rows.shape[-1])
        return self._keep(name, z, rows[..., None], weight, None, None)

    def _keep(
        self,
        name: str,
        z: Tensor,
        x: Tensor,
        weight: Tensor,
        kernel: Kernel | None,
        bias: Tensor | None,
    ) -> Tensor:
        # a view of a parameter requires gradients without a graph, too
        has_graph = z.requires_grad and z.grad_fn is not None
        edge = get_gradient_edge(z) if has_graph else None
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


def _addmm(
    input: Tensor, mat1: Tensor, mat2: Tensor, *, beta: float = 1, alpha: float = 1, **_: Any
) -> Found | None:
    bias = input if beta == 1 and input.dim() == 1 else None
    # scaled sums aren't a linear map of this weight and bias
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
    kernel = Kernel(
        tuple(weight.shape[2:]),
        _each(stride, spatial),
        _each(dilation, spatial),
        sides,
        transposed=True,
    )
    return input, weight, kernel, None  # its bias isn't one of the map of pixels


def _each(value: Any, spatial: int) -> tuple[int, ...]:
    """A setting by dimension."""
    return (value,) * spatial if isinstance(value, int) else tuple(value) * (spatial // len(value))


_CALLS: dict[Any, Callable[..., Found | None]] = {
    F.linear: _linear,
    **dict.fromkeys((torch.conv1d, torch.conv2d, torch.conv3d), _convolution),
    **dict.fromkeys(
        (torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d), _transposed
    ),
    **dict.fromkeys((torch.addmm, Tensor.addmm), _addmm),
    **dict.fromkeys((torch.mm, Tensor.mm), _matrix_product),
    **dict.fromkeys((torch.matmul, Tensor.matmul, Tensor.__matmul__), _product),
}


def _embedding(input: Tensor, weight: Tensor, *_: Any, **__: Any) -> tuple[Any, Any]:
    return weight, input


def _item(table: Any, index: Any) -> tuple[Any, Any]:
    return table, index


_LOOKUPS: dict[Any, Callable[..., tuple[Any, Any]]] = {
    F.embedding: _embedding,
    Tensor.__getitem__: _item,
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
    model: nn.Module,
    names: Sequence[str],
    *,
    outputs: bool = False,
    tables: Tables | None = None,
) -> Iterator[dict[str, list[LinearCall]]]:
    """Record the calls of linear maps during the forward passes inside.

    Args:
        model: any module.
        names: linear maps: the module's name where the weight is its `weight`, else the parameter's full name.
        outputs: True to keep copies of the outputs as well.
        tables: those of the names that are tables; their inputs are the numbers of the rows, (..., 1).

    Yields:
        The calls of each map, in order; filled while passes run.
    """
    with CallRecorder(model, names, outputs, tables) as reader:
        yield reader.seen


def grad_at(
    output: Tensor, edges: Sequence[GradientEdge], rows: Tensor, **options: bool
) -> tuple[Tensor, ...]:
    """Backpropagate rows to places in the graph of a forward pass, see `torch.autograd.grad`.

    Args:
        output: outputs of the model.
        edges: the places.
        rows: of the outputs' shape.
        **options: as of `torch.autograd.grad`.

    Returns:
        A gradient for each place.

    Raises:
        UnsupportedError: the model checkpoints its activations by reentrant backward passes.
    """
    try:
        return torch.autograd.grad(output, edges, rows, **options)
    except RuntimeError as error:
        # Such a checkpoint runs its own backward pass for parameters' gradients alone; torch's sentence is about that.
        if "use_reentrant" in str(error):
            raise UnsupportedError(
                "the model checkpoints activations with use_reentrant=True, under which no gradient of an activation "
                "can be taken: call torch.utils.checkpoint with use_reentrant=False"
            ) from error
        raise


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
