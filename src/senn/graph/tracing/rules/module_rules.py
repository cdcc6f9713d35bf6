"""Rules for whole layers whose single operations don't say what the layer does.

A rule is a function of one `Visit` of the layer. This one is for a linear layer that keeps its weight as (in, out) and
applies it by an operation that isn't understood:

    @senn.graph.layer_rule(MyLinear)
    def my_linear(visit):
        visit.reads("weight", dim=0)
        visit.makes("weight", dim=1)
        visit.makes("bias", dim=0)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor, nn

from senn import _deprecated, pytree
from senn.errors import UnsupportedError
from senn.graph.model_copy import OpaquePart
from senn.graph.tracing.rules.weights import columns_of, spread
from senn.graph.tracing.trace_recorder import TraceRecorder
from senn.graph.tracing.weight_view import WeightView

LayerRule = Callable[["Visit"], None]
# By exact type: a subclass may compute something else.
_RULES: dict[type[nn.Module], LayerRule] = {}


def layer_rule(*types: type[nn.Module]) -> Callable[[LayerRule], LayerRule]:
    """Register what a layer does to units; operations inside it are no longer followed.

    Args:
        types: the layer types, exactly; subclasses need a rule of their own.

    Returns:
        A decorator for the rule, a function of one `Visit`.

    >>> import torch, senn
    >>> class Transposed(torch.nn.Module):  # keeps its weight as (in, out)
    ...     def __init__(self, n_in, n_out):
    ...         super().__init__()
    ...         self.weight = torch.nn.Parameter(torch.randn(n_in, n_out))
    ...     def forward(self, x):
    ...         return torch.einsum("bi,ij->bj", x, self.weight)
    >>> @senn.graph.layer_rule(Transposed)
    ... def transposed(visit):
    ...     visit.reads("weight", dim=0)
    ...     visit.makes("weight", dim=1)
    >>> model = torch.nn.Sequential(Transposed(3, 5), torch.nn.ReLU(), torch.nn.Linear(5, 2))
    >>> [(group.name, group.width) for group in senn.analyze(model, torch.randn(4, 3)).groups]
    [('0', 5)]
    """

    def register(rule: LayerRule) -> LayerRule:
        _RULES.update(dict.fromkeys(types, rule))
        return rule

    return register


def rule_of(module: nn.Module) -> LayerRule | None:
    """Return the rule of a layer; None if its operations are to be followed one by one."""
    return _RULES.get(type(module))


@_deprecated.aliased
@dataclass(kw_only=True, eq=False)
class Visit:
    """One run of a layer, from its first input tensor to its first output tensor.

    Attributes:
        trace: the recorder of the forward pass.
        name: name of the layer.
        module: the layer.
        args: its positional arguments.
        kwargs: its keyword arguments.
        output: its return value.
    """

    trace: TraceRecorder
    name: str
    module: nn.Module
    args: Any
    kwargs: Any
    output: Any
    _is_set: bool = field(default=False)

    @property
    def source(self) -> Tensor:
        """First input tensor."""
        return pytree.tensor_leaves([self.args, self.kwargs])[0]

    @property
    def result(self) -> Tensor:
        """First output tensor."""
        return pytree.tensor_leaves(self.output)[0]

    def reads(self, tensor: str, dim: int, axis: int = -1) -> None:
        """Declare that the layer reads units with a parameter.

        Args:
            tensor: name of the parameter in the layer.
            dim: its dimension that counts inputs.
            axis: dimension of the input along which the units lie.

        Raises:
            UnsupportedError: the sizes differ.
        """
        axis %= self.source.dim()
        columns, _ = columns_of(self.trace, self.source, axis)
        self._check(tensor, dim, len(columns))
        parameter = self.module.get_parameter(tensor)
        # A vector reads and makes along its only dimension.
        out_dim = next((other for other in range(parameter.dim()) if other != dim), dim)
        view = WeightView.of(self._full_name(tensor), parameter)
        # Not `plain`: what happens inside the layer can't be recorded for scoring.
        self.trace.weight_use(
            view, columns, self.source, in_dim=dim, out_dim=out_dim, axis=axis, plain=False
        )

    def makes(self, tensor: str, dim: int, axis: int = -1) -> None:
        """Declare that the layer makes units with a parameter.

        Args:
            tensor: name of the parameter in the layer.
            dim: its dimension that counts outputs.
            axis: dimension of the output along which the units lie.

        Raises:
            UnsupportedError: the sizes differ.
        """
        labels = self.trace.produces(self._full_name(tensor), [dim]).flatten()
        self._set_along(labels, tensor, dim, axis)

    def carries(self, tensor: str, dim: int, axis: int = -1) -> None:
        """Declare that units pass the layer one by one, each with its own entries of a parameter.

        Args:
            tensor: name of the parameter in the layer.
            dim: its dimension that counts units.
            axis: dimension of input and output along which the units lie.

        Raises:
            UnsupportedError: the sizes differ.
        """
        if not self._is_set:
            self.passes()
        labels = self.trace.passes_elementwise(self._full_name(tensor), dim)
        self._set_along(labels, tensor, dim, axis)

    def passes(self) -> None:
        """Declare that the output has the units of the input, entry by entry.

        Raises:
            UnsupportedError: the output has another shape.
        """
        if self.result.shape != self.source.shape:
            raise UnsupportedError(
                f"the rule of {self.name} says that units pass, but the output has another shape"
            )
        label_maps = self.trace.labels_of(self.source)
        self.trace.set_labels(self.result, [label_map.clone() for label_map in label_maps])
        self._is_set = True

    def normalizes(self, kind: Literal["layer", "rms"], weight: str | None = "weight") -> None:
        """Declare that the layer divides all units of the last axis by their common spread.

        Args:
            kind: `layer` subtracts their mean first, `rms` doesn't.
            weight: name of the parameter with one factor for each unit; None if there is none.
        """
        parameter = None if weight is None else self.module.get_parameter(weight)
        for label_map in self.trace.labels_of(self.source):
            if bool(label_map.any()):
                use = self.trace.flow.note(
                    kind=kind,
                    label_map=label_map,
                    inputs=self.trace.sources.of(self.source),
                    weight=parameter,
                )
                self.trace.flow.begin(use, self.result)

    def _set_along(self, labels: Tensor, tensor: str, dim: int, axis: int) -> None:
        axis %= self.result.dim()
        self._check(tensor, dim, self.result.shape[axis])
        label_map = spread(labels, axis, self.result)
        if self._is_set:  # several parameters make, or go along with, the same units
            for known in self.trace.labels_of(self.result):
                self.trace.record.merge(known, label_map)
        else:
            self.trace.set_labels(self.result, [label_map])
        self._is_set = True

    def _full_name(self, tensor: str) -> str:
        return f"{self.name}.{tensor}" if self.name else tensor

    def _check(self, tensor: str, dim: int, size: int) -> None:
        shape = tuple(self.module.get_parameter(tensor).shape)
        if dim >= len(shape) or shape[dim] != size:
            name = self._full_name(tensor)
            raise UnsupportedError(
                f"the rule of {self.name} gives {name} {size} units along dimension {dim} of {shape}"
            )


@layer_rule(OpaquePart)
def _opaque_part(visit: Visit) -> None:
    """A part that can't be looked into: what comes in keeps its size, and what comes out has no units."""
    trace, reason = visit.trace, visit.module.reason
    trace.not_understood.setdefault(visit.name, f"it {reason}")
    for tensor in pytree.tensor_leaves([visit.args, visit.kwargs]):
        trace.refuse(tensor, f"its units meet {visit.name}, which {reason}")
