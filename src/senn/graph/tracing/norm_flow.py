"""Normalizations recognized by what they compute, whatever their class is called.

A statistic over whole units (a mean of squares, a variance, a length) is followed through roots, sums with a small
number and reciprocals to the tensor that it scales. Where it goes anywhere else, its units are refused as mixed. With C
units and k new ones that add nothing to it, a mean over units becomes C / (C + k) times what it was; its root, the root
of that. So each statistic carries an exponent, and so does the normalized tensor in the end (`NormUse.power`).

What follows must take the factor: the weight that multiplies the normalized tensor, or the columns that read it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from torch import Tensor

from senn.graph.source_lines import running_line
from senn.graph.tracing.label_maps import LabelMaps
from senn.graph.tracing.linear_sources import LinearSources
from senn.graph.tracing.recorded import Call, NormUse, Sources, WeightUse
from senn.graph.tracing.statistic import (
    SAME_ENTRIES,
    Statistic,
    as_number,
    changed,
    is_even,
    same_units,
    share_of_count,
)

# Operations that give c f(x) for c x with c > 0.
_HOMOGENEOUS_NAMES = (
    "mul div neg relu leaky_relu native_dropout mean sum slice select split split_with_sizes unbind index "
    "index_select roll flip constant_pad_nd avg_pool1d avg_pool2d max_pool2d_with_indices "
    "adaptive_avg_pool2d"
)
_HOMOGENEOUS = SAME_ENTRIES | frozenset(_HOMOGENEOUS_NAMES.split())

EPS_NAMES = ("eps", "variance_epsilon", "epsilon", "norm_eps")
"""Usual names of the small number in a norm's variance."""


class NormFlow:
    """Statistics, and factors that are still to be taken, in one forward pass.

    Args:
        trace: label maps of the pass.
        sources: what its activations are sums of.

    Attributes:
        norms: normalizations over whole units, in order.
    """

    def __init__(self, trace: LabelMaps, sources: LinearSources) -> None:
        self.trace, self.sources = trace, sources
        self.norms: list[NormUse] = []
        self._statistics: dict[int, Statistic] = {}
        self._centered: set[int] = set()
        self._even: dict[int, bool] = {}  # squares and the like, and whether of centered entries
        self._bases: dict[int, int] = {}  # the root of what a square is one of
        self._gains: dict[int, str] = {}  # parameter that a tensor was multiplied by last
        self._normed: dict[int, NormUse] = {}
        self._pending: dict[int, NormUse] = {}

    # -- statistics

    def reduces(self, call: Call, label_map: Tensor, dims: set[int], along: set[int]) -> bool:
        """Begin to follow a statistic over whole units.

        Args:
            call: a reduction, already executed.
            label_map: the only label map of its input.
            dims: dimensions that are reduced.
            along: those along which units lie, all of them reduced.

        Returns:
            False if it is none that a normalization could use.
        """
        source, operation = call.tensors[0], call.operation
        centered = self._even.get(id(source), id(source) in self._centered)
        kind: Literal["mean", "layer", "rms"] = "layer" if centered else "rms"
        power, spare = 0.0, 0
        if operation in ("var", "std", "var_mean", "std_mean"):
            kind, power = "layer", 0.5 if operation.startswith("std") else 1.0
            correction = call.arguments.get("correction", call.arguments.get("unbiased", True))
            spare = int(1 if correction is None else correction)
        elif operation in ("mean", "sum"):
            power = 1.0 if operation == "mean" else 0.0
            kind = kind if id(source) in self._even else "mean"
        # The mean over units is taken at each location on its own, or new units that enter as means would spread.
        alone = all(label_map.shape[dim] == 1 for dim in dims - along)
        if kind != "rms" and not alone:
            return False
        first = Statistic(
            label_map=label_map,
            kind=kind,
            power=power,
            spare=spare,
            root=self._bases.get(id(source), self.sources.root(source)),
            reason=f"{self.trace.place} mixes its units ({operation})",
            line=running_line(),
        )
        statistics = [first, replace(first, kind="mean", power=0.0)]
        for output, statistic in zip(call.outputs, statistics, strict=False):
            self._statistics[id(output)] = statistic
        return True

    def takes(self, call: Call) -> bool:
        """Follow an operation that reads a statistic.

        Args:
            call: any operation, already executed.

        Returns:
            True if it was followed; False if its own rule applies.
        """
        found = [tensor for tensor in call.tensors if id(tensor) in self._statistics]
        if not found:
            return False
        statistic = self._statistics[id(found[0])]
        others = [tensor for tensor in call.tensors if tensor is not found[0]]
        if len(found) == 1 and self._follow_statistic(call, statistic, others):
            return True
        for tensor in found:
            self.refuse(tensor)
        return False

    def refuse(self, tensor: Tensor) -> None:
        """Refuse the units of a statistic, if the tensor is one."""
        statistic = self._statistics.get(id(tensor))
        if statistic is not None:
            self.trace.record.refuse(statistic.label_map, statistic.reason, statistic.line)

    def _follow_statistic(self, call: Call, statistic: Statistic, others: list[Tensor]) -> bool:
        labeled = [tensor for tensor in others if self.trace.is_labeled(tensor)]
        if not labeled and all(tensor.numel() == 1 for tensor in others):
            new = changed(self.trace, call, statistic)
            if new is not None:
                self._statistics.update(dict.fromkeys(map(id, call.outputs), new))
            return new is not None
        if len(others) != 1 or self.sources.parameter(others[0]) is not None:
            return False
        scaled, output = others[0], call.outputs[0]
        label_maps = [one for one in self.trace.labels_of(scaled) if bool(one.any())]
        same = len(label_maps) == 1 and same_units(label_maps[0], statistic.label_map)
        first = call.args[0] is scaled
        if not same or output.shape != scaled.shape:
            return False
        if call.operation == "sub" and first and statistic.kind == "mean":
            self._note(statistic, scaled, output, power=0.0, kind="layer")
            self.sources.same(scaled, output)
            self.sources.join(output, scaled)
            self._centered.add(id(output))
        elif call.operation == "mul" or (call.operation == "div" and first):
            sign = -1 if call.operation == "mul" else 1
            kind: Literal["layer", "rms"] = "layer" if statistic.kind == "layer" else "rms"
            use = self._note(statistic, scaled, output, power=sign * statistic.power, kind=kind)
            if statistic.other_power is not None:
                use.other_power = sign * statistic.other_power
            self.sources.end(output, self.trace.place)
        else:
            return False
        self.trace.set_labels(output, [label_maps[0].clone()])
        return True

    # -- what the factor goes to

    def _note(
        self,
        statistic: Statistic,
        scaled: Tensor,
        output: Tensor,
        *,
        power: float,
        kind: Literal["layer", "rms"],
    ) -> NormUse:
        # The sum below a root or a division holds the number in units of that sum.
        use = self.note(
            kind=kind,
            label_map=statistic.label_map,
            inputs=self.sources.of_root(statistic.root),
            power=power,
            spare=statistic.spare,
            eps=statistic.eps if power else None,
            eps_power=statistic.eps_power,
        )
        gain = self._gains.get(id(scaled))
        if gain is not None and self.sources.root(scaled) == statistic.root:
            use.weights.append(gain)  # multiplied first, divided then
        silent = kind == "rms" or id(scaled) in self._centered
        if statistic.other_power and not use.power and not use.weights:
            self._pending[id(output)] = use
        self.begin(use, output, silent=silent)
        return use

    def note(
        self,
        *,
        kind: Literal["layer", "rms"],
        label_map: Tensor,
        inputs: Sources,
        weight: Tensor | None = None,
        power: float = 0.5,
        spare: int = 0,
        eps: float | None = None,
        eps_power: float = 1.0,
    ) -> NormUse:
        """Record a normalization over whole units; see `NormUse`.

        Args:
            kind: `layer` or `rms`.
            label_map: label map of its input.
            inputs: what enters.
            weight: its factors, one for each unit; None if it has none of its own.
            power: exponent of its output.
            spare: 1 for an unbiased variance.
            eps: the small number in its statistic, if it is known.
            eps_power: exponent with which that must change.

        Returns:
            The record, to which what reads the output is added.
        """
        # By parameter: `F.layer_norm` in a forward's own code normalizes with a weight held elsewhere.
        name = None if weight is None else self.trace.parameter_name(id(weight))
        module = self.trace.path[-1] if name is None else name.rpartition(".")[0]
        found = self._eps(eps, [module, *reversed(self.trace.path)]) if power else None
        use = NormUse(
            module=module,
            kind=kind,
            label_map=label_map,
            power=power,
            spare=spare,
            eps=found,
            eps_power=eps_power,
            fixed_eps=bool(power) and found is None and eps is not None and eps > 1e-15,
            inputs=inputs,
            weights=[] if name is None else [name],
        )
        self.norms.append(use)
        return use

    def _eps(self, eps: float | None, modules: list[str]) -> tuple[str, str] | None:
        """Find the attribute that holds the small number of a norm: by its value, or by its usual names."""
        for module in dict.fromkeys(modules):
            held = vars(self.trace.model.get_submodule(module))
            names = [name for name in EPS_NAMES if isinstance(held.get(name), float)]
            if eps is not None:
                names += [name for name, value in held.items() if type(value) is float]
                names = [name for name in names if held[name] == eps]
            if names:
                return module, names[0]
        return None

    def begin(self, use: NormUse, output: Tensor, *, silent: bool = True) -> None:
        """Begin to follow a normalized tensor.

        Args:
            use: the normalization.
            output: its output.
            silent: True if it gives zero for new units.
        """
        if silent:
            self._normed[id(output)] = use
        if use.power and not use.weights:
            self._pending[id(output)] = use

    def is_silent(self, tensor: Tensor) -> bool:
        """Return True if a tensor is zero for new units, as it comes from a normalization over whole units."""
        return id(tensor) in self._normed

    def after(self, call: Call, uses: list[WeightUse]) -> None:
        """Follow an operation that its rule has followed.

        Args:
            call: the operation.
            uses: uses of weights that it made.
        """
        operation, tensors = call.operation, call.tensors
        if operation in SAME_ENTRIES and tensors:
            self._follow_same(tensors[0], call.outputs)
        elif is_even(call):
            centered = id(tensors[0]) in self._centered
            for output in call.outputs:
                self._even[id(output)] = centered
                self._bases[id(output)] = self.sources.root(tensors[0])
        self._follow_gain(call)
        if not any(id(tensor) in self._normed or id(tensor) in self._pending for tensor in tensors):
            return
        self._follow_factor(call, uses)
        self._follow_zero(call, uses)

    def _follow_same(self, source: Tensor, outputs: list[Tensor]) -> None:
        for output in outputs:
            self.sources.join(output, source)
            if id(source) in self._centered:
                self._centered.add(id(output))
            if id(source) in self._even:
                self._even[id(output)] = self._even[id(source)]
                self._bases[id(output)] = self._bases[id(source)]

    def _follow_gain(self, call: Call) -> None:
        """Remember a parameter that multiplies a tensor of units."""
        if call.operation != "mul" or len(call.tensors) != 2:
            return
        for parameter, tensor in (call.tensors, call.tensors[::-1]):
            name = self.sources.parameter(parameter)
            if (
                name is not None
                and self.sources.parameter(tensor) is None
                and self.trace.is_labeled(tensor)
            ):
                self._gains[id(call.outputs[0])] = name
                self.sources.join(call.outputs[0], tensor)
                if id(tensor) in self._centered:
                    self._centered.add(id(call.outputs[0]))

    def _follow_factor(self, call: Call, uses: list[WeightUse]) -> None:
        """Find what takes the factor of a normalization without a weight of its own."""
        found = [
            self._pending[id(tensor)] for tensor in call.tensors if id(tensor) in self._pending
        ]
        for use in found:
            gains = [self.sources.parameter(tensor) for tensor in call.tensors]
            names = [name for name in gains if name is not None]
            if uses:
                use.reads += [(one.weight, one.in_dim) for one in uses]
            elif call.operation == "mul" and names:
                use.weights += names
            elif call.operation in _HOMOGENEOUS and len(set(map(id, found))) == 1:
                self._pending.update(dict.fromkeys(map(id, call.outputs), use))
            elif call.outputs:
                use.blocked = use.blocked or f"{call.operation} in {self.trace.place}"

    def _follow_zero(self, call: Call, uses: list[WeightUse]) -> None:
        """Follow products with, and sums of, tensors that are zero for new units."""
        found = [self._normed[id(tensor)] for tensor in call.tensors if id(tensor) in self._normed]
        if not found or uses:
            return
        use, operation, number = found[0], call.operation, as_number(call.arguments.get("other"))
        names = [self.sources.parameter(tensor) for tensor in call.tensors]
        parameters = [name for name in names if name is not None]
        if operation == "add" and len(parameters) == 1:
            use.shifts += parameters
        elif operation not in ("mul", "div", "neg"):
            return
        if number is not None and operation in ("mul", "div") and not use.power:
            shares = share_of_count(self.trace, number, use.label_map)
            if (0.5 if operation == "mul" else -0.5) in shares:  # x / |x| sqrt(C)
                use.power, use.other_power = (0.5, 0.0) if shares[0] else (0.0, 0.5)
                if not use.weights:
                    self._pending.update(dict.fromkeys(map(id, call.outputs), use))
        self._normed.update(dict.fromkeys(map(id, call.outputs), use))

    def passes_zero(self, tensors: list[Tensor], outputs: list[Tensor]) -> None:
        """Mark outputs of an operation that maps zero to zero.

        Args:
            tensors: its inputs with units.
            outputs: its outputs.
        """
        if tensors and all(id(tensor) in self._normed for tensor in tensors):
            use = self._normed[id(tensors[0])]
            self._normed.update(dict.fromkeys(map(id, outputs), use))
