"""Rules for whole layers, where single operations don't say what the layer does; also for a user's own layer type.

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
from senn.graph.tracing.recorded import WeightView
from senn.graph.tracing.recorder import TraceRecorder
from senn.graph.tracing.rules.linear import columns_of, spread
from senn.graph.tracing.rules.norms import over_units

LayerRule = Callable[["Visit"], None]
_RULES: dict[type[nn.Module], LayerRule] = {}


def layer_rule(*types: type[nn.Module]) -> Callable[[LayerRule], LayerRule]:
    """Register what a layer does to units, for layers of exactly these types; nothing inside is looked at."""

    def register(rule: LayerRule) -> LayerRule:
        _RULES.update(dict.fromkeys(types, rule))
        return rule

    return register


def leaf_rule(module: nn.Module) -> LayerRule | None:
    """The rule of a layer, if it has one."""
    if (rule := _RULES.get(type(module))) is not None:
        return rule
    own = [name for name, _ in module.named_parameters()]
    if "RMSNorm" in type(module).__name__ and own in (["weight"], []):
        return rms_norm  # every library has one of its own, made of single operations
    return None


@_deprecated.aliased
@dataclass(kw_only=True, eq=False)
class Visit:
    """One run of a layer, from its first tensor argument to its first output tensor.

    Attributes:
        trace: what has been seen so far.
        name: of the layer.
        module: the layer.
        args: positional arguments.
        kwargs: keyword arguments.
        output: what it returned.
    """

    trace: TraceRecorder
    name: str
    module: nn.Module
    args: Any
    kwargs: Any
    output: Any
    _dressed: bool = field(default=False)

    @property
    def source(self) -> Tensor:
        """The first tensor that went in."""
        return pytree.tensor_leaves([self.args, self.kwargs])[0]

    @property
    def result(self) -> Tensor:
        """The first tensor that came out."""
        return pytree.tensor_leaves(self.output)[0]

    def reads(self, tensor: str, dim: int, axis: int = -1) -> None:
        """The layer's tensor reads the units along one axis of the input with its positions along `dim`."""
        axis %= self.source.dim()
        columns, _ = columns_of(self.trace, self.source, axis)
        name = self._full(tensor)
        self._check(name, tensor, dim, len(columns))
        rank = self.module.get_parameter(tensor).dim()
        other = next((d for d in range(rank) if d != dim), dim)
        self.trace.weight_use(
            WeightView(name=name), columns, self.source, in_dim=dim, out_dim=other, axis=axis, plain=False
        )

    def makes(self, tensor: str, dim: int, axis: int = -1) -> None:
        """Positions along `dim` of the layer's tensor make the units along one axis of the output."""
        self._mark(self.trace.produces(WeightView(name=self._full(tensor)), dim), tensor, dim, axis)

    def carries(self, tensor: str, dim: int, axis: int = -1) -> None:
        """Positions along `dim` of the layer's tensor go along with the units along one axis, one by one."""
        if not self._dressed:
            self.passes()
        self._mark(self.trace.passes_elementwise(self._full(tensor), dim), tensor, dim, axis)

    def passes(self) -> None:
        """The output has the units of the input, entry by entry."""
        if self.result.shape != self.source.shape:
            raise UnsupportedError(f"the rule of {self.name} says that units pass, but the output has another shape")
        self.trace.set_labels(self.result, [label_map.clone() for label_map in self.trace.labels_of(self.source)])
        self._dressed = True

    def normalizes(self, kind: Literal["layer", "rms"], weight: str | None = "weight") -> None:
        """The layer divides all units of the last axis by their common spread (`layer`: less their mean)."""
        held = None if weight is None else self.module.get_parameter(weight)
        for label_map in self.trace.labels_of(self.source):
            if bool(label_map.any()):
                self.trace.note_norm(held, kind, label_map)
                self.trace.note_normed(self.result)

    def _mark(self, labels: Tensor, tensor: str, dim: int, axis: int) -> None:
        axis %= self.result.dim()
        self._check(self._full(tensor), tensor, dim, self.result.shape[axis])
        marked = spread(labels, axis, self.result)
        if self._dressed:
            for label_map in self.trace.labels_of(self.result):
                self.trace.record.merge(label_map, marked)
        else:
            self.trace.set_labels(self.result, [marked])
        self._dressed = True

    def _full(self, tensor: str) -> str:
        return f"{self.name}.{tensor}" if self.name else tensor

    def _check(self, name: str, tensor: str, dim: int, size: int) -> None:
        shape = self.module.get_parameter(tensor).shape
        if dim >= len(shape) or shape[dim] != size:
            raise UnsupportedError(
                f"the rule of {self.name} gives {name} {size} units along dimension {dim} of {tuple(shape)}"
            )


def rms_norm(visit: Visit) -> None:
    """Root mean square normalisation over the last axis, with a weight or without."""
    visit.trace.reached.update(id(parameter) for parameter in visit.module.parameters())
    weight = visit.module._parameters.get("weight")
    last = {visit.source.dim() - 1}
    over_units(visit.trace, visit.source, visit.result, last, kind="rms", weight=weight)
