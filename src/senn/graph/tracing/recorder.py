"""One run of a model's own forward pass, with labels on every tensor."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from senn.graph.tracing.labels import Labels, is_uniform
from senn.graph.tracing.recorded import (
    KEEPING_ZERO,
    REARRANGING,
    Call,
    NormUse,
    Step,
    WeightUse,
    WeightView,
    weight_views,
)

# Functions of the forward's own code whose inputs and outputs can be read when they apply a weight.
_READABLE = frozenset(
    [
        *("linear", "addmm", "mm", "matmul", "__matmul__", "conv1d", "conv2d", "conv3d"),
        *("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"),
        "multi_head_attention_forward",  # its own Python code is looked into
    ]
)


class TraceRecorder:
    """What one forward pass showed. Rules read and write it; `analysis` reads it afterwards.

    Attributes:
        model: the model that ran.
        record: labels, and what was learnt about them.
        uses: the uses of weights by linear maps in order.
        rows: labels of the positions along one dimension of a weight, by full name and dimension.
        labelled_in: where a parameter's entries got labels, by full name.
        not_understood: modules, or parameters of the model itself, that an operation without a rule reads, and why.
        activations: class names of the activations in order of use, by module or, for functions, by number.
        norms: normalisations over whole units.
        groups: modules that normalise groups of channels, with the channels' labels.
        reached: identities of the tensors that operations read.
        tensors: all parameters and buffers by full name.
        history: one step for each operation.
        path: names of the modules that run now, innermost last.
        function: name of the function that the forward's own Python code has called now; None outside of any.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.record = Labels()
        self.uses: list[WeightUse] = []
        self.rows: dict[tuple[str, int], Tensor] = {}
        self.labeled_in: dict[str, str] = {}
        self.not_understood: dict[str, str] = {}
        self.activations: dict[str | int, str] = {}
        self.norms: list[NormUse] = []
        self.groups: list[tuple[str, Tensor]] = []
        self.reached: set[int] = set()
        self.tensors: dict[str, Tensor] = {}
        self.history: list[Step] = []
        self.path = [""]
        self.function: str | None = None
        self.silenced = 0  # depth inside leaf modules, whose operations are not followed
        self._operation = ""
        self._held: list[Tensor] = []  # tensors are known by identity: holding them keeps it from being used again
        self._label_maps: dict[int, list[Tensor]] = {}
        self._opaque: dict[int, str] = {}
        self._activation: dict[int, str] = {}
        self._parameters: dict[int, tuple[str, str, bool]] = {}
        self._copies: dict[int, tuple[WeightView, Call]] = {}
        self._normed: set[int] = set()
        for name, module in model.named_modules():
            for key, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
                self._parameters.setdefault(id(tensor), (name, key, _serves_all(module)))
                self.tensors[f"{name}.{key}" if name else key] = tensor

    @property
    def kind(self) -> str:
        """Class name of the module that runs now."""
        return type(self.model.get_submodule(self.path[-1])).__name__

    @property
    def place(self) -> str:
        """The module that runs now, for sentences."""
        name, kind = self.path[-1], self.kind
        return f"{name} ({kind})" if name else f"the model's own forward ({kind})"

    # -- coats

    def is_labeled(self, tensor: Tensor) -> bool:
        """Whether entries of a tensor belong to units, or may: parameters and buffers have labels too."""
        if id(tensor) in self._label_maps:
            return any(bool(label_map.any()) for label_map in self._label_maps[id(tensor)])
        return id(tensor) in self._parameters or id(tensor) in self._copies

    def labels_of(self, tensor: Tensor) -> list[Tensor]:
        """All coats of a tensor, at least one (of zeros if it has no units)."""
        key = id(tensor)
        if key not in self._label_maps:
            if key in self._parameters:
                labels = self._entries(tensor).to(tensor.device)
            elif key in self._copies:
                labels = self._copied(tensor, self._copies[key][1])
            else:
                labels = torch.zeros(tensor.shape, dtype=torch.long, device=tensor.device)
            self._label_maps[key] = [labels]
            self._held.append(tensor)
        return self._label_maps[key]

    def _copied(self, tensor: Tensor, call: Call) -> Tensor:
        """Labels of a part or copy of a parameter."""
        source = self.labels(call.args[0])
        if call.operation not in REARRANGING:
            return source
        parts = pytree.tree_leaves(call.func(source, *call.args[1:], **call.kwargs))
        labels: Tensor = next(part for part, output in zip(parts, call.outputs, strict=True) if output is tensor)
        return labels

    def labels(self, tensor: Tensor) -> Tensor:
        """The first coat of a tensor."""
        return self.labels_of(tensor)[0]

    def _entries(self, tensor: Tensor) -> Tensor:
        """New labels for every entry of a parameter or buffer."""
        module, name, shared = self._parameters[id(tensor)]
        labels = self.record.new_labels(module, name, tuple(tensor.shape), shared=shared)
        self.labeled_in[f"{module}.{name}" if module else name] = f"{self._operation} in {self.place}"
        if id(tensor) in self._opaque:
            self.record.refuse(labels, self._opaque[id(tensor)])
        return labels

    def set_labels(self, tensor: Tensor, label_maps: list[Tensor]) -> None:
        """Give a tensor its coats; one that has some keeps their memory, which its views share."""
        known = self._label_maps.get(id(tensor))
        if known is None:
            self._label_maps[id(tensor)] = list(label_maps) or [torch.zeros_like(tensor, dtype=torch.long)]
            return
        for number, label_map in enumerate(label_maps):
            if number >= len(known):
                known.append(label_map.clone())
            elif known[number] is not label_map:
                known[number].copy_(label_map)
        for label_map in known[len(label_maps) :]:
            label_map.zero_()

    def backfill_labels(self, tensor: Tensor, label_map: Tensor) -> None:
        """A tensor that is the same for all units of a coat turns out to stand for them: its size follows theirs."""
        own = self.labels(tensor)
        offset = label_map.dim() - own.dim()
        if offset:
            label_map = label_map.amax(tuple(range(offset)))
        single = [dim for dim in range(own.dim()) if own.shape[dim] == 1 and label_map.shape[dim] > 1]
        own.copy_(label_map.amax(single, keepdim=True) if single else label_map)

    def refuse(self, tensor: Tensor, reason: str) -> None:
        """Refuse the units of a tensor; a parameter without labels yet is remembered without labelling it."""
        if id(tensor) in self._label_maps:
            for label_map in self._label_maps[id(tensor)]:
                self.record.refuse(label_map, reason)
        elif id(tensor) in self._parameters:
            self._opaque.setdefault(id(tensor), reason)

    def refuse_call(self, call: Call) -> None:
        """Refuse every unit that meets an operation without a rule."""
        for tensor in call.tensors:
            self.unreadable(tensor, call.operation)

    def unreadable(self, tensor: Tensor, operation: str) -> None:
        """Note that an operation without a rule reads a tensor: refuse its units; a parameter's module is named."""
        self.refuse(tensor, f"its units meet {operation} in {self.place}, which isn't understood yet")
        key = id(tensor)
        if key in self._copies:
            name = self._copies[key][0].name
            self.labeled_in.setdefault(name, f"{operation} in {self.place}")
            module = name.rpartition(".")[0]
            self.not_understood.setdefault(module or name, f"{operation} in {self.place} isn't understood yet")
        if key in self._parameters:
            module, name, _ = self._parameters[key]
            self.labeled_in.setdefault(f"{module}.{name}" if module else name, f"{operation} in {self.place}")
            self.not_understood.setdefault(module or name, f"{operation} in {self.place} isn't understood yet")

    # -- maps

    def weight_of(self, tensor: Tensor) -> WeightView | None:
        """The parameter of two or more dimensions that a tensor is: as it is, cast, transposed or a part of it."""
        if id(tensor) in self._copies:
            return self._copies[id(tensor)][0]
        if id(tensor) in self._parameters and tensor.dim() > 1 and isinstance(tensor, nn.Parameter):
            module, key, _ = self._parameters[id(tensor)]
            return WeightView(name=f"{module}.{key}" if module else key)
        return None

    def weight_use(
        self,
        held: WeightView,
        columns: Tensor,
        source: Tensor,
        *,
        in_dim: int,
        out_dim: int,
        axis: int,
        taps: int = 1,
        plain: bool = True,
        groups: int = 1,
        transposed: bool = False,
    ) -> None:
        """Note that a map read `source`, whose features (along `axis`) have the labels `columns`."""
        scored = plain and (self.function is None or self.function in _READABLE)
        uniform = not bool(columns.any()) and is_uniform(source, {axis})
        everything = columns.new_zeros(self.tensors[held.name].shape[in_dim])
        everything[held.part(in_dim)] = columns
        spatial = source.dim() - 2 if taps > 1 or axis == 1 < source.dim() - 1 else 0
        self.uses.append(
            WeightUse(
                weight=held.name,
                columns=everything.cpu(),
                in_dim=in_dim,
                out_dim=out_dim,
                kernel_numel=taps,
                scored=scored and held.stop is None,
                activation=self._activation.get(id(source)),
                inside=self.path[-1],
                spatial=spatial,
                source=self.labels_of(source),
                uniform=uniform,
                normed=id(source) in self._normed,
                groups=groups,
                transposed=transposed,
            )
        )

    def produces(self, held: WeightView, dim: int) -> Tensor:
        """Labels of what a weight makes, one for each position along `dim`."""
        return self._along(held.name, dim, produces=True)[held.part(dim)]

    def passes_elementwise(self, name: str, dim: int) -> Tensor:
        """Labels of what goes along with units, one for each position along `dim` of a parameter."""
        return self._along(name, dim, produces=False)

    def _along(self, name: str, dim: int, *, produces: bool) -> Tensor:
        if (name, dim) not in self.rows:
            module, _, key = name.rpartition(".")
            size = self.tensors[name].shape[dim]
            self.rows[name, dim] = self.record.new_labels(
                module, key, (size,), produces=produces, shared=False, dim=dim
            )
        return self.rows[name, dim].to(self.tensors[name].device)

    def note_norm(self, weight: Tensor | None, kind: str, label_map: Tensor) -> None:
        """Note a normalisation over whole units."""
        held = None if weight is None else self._parameters.get(id(weight))
        module = self.path[-1] if held is None else held[0]
        self.norms.append(NormUse(module=module, kind=kind, weighted=held is not None, label_map=label_map))

    def note_normed(self, tensor: Tensor) -> None:
        """Note that a tensor comes straight from a normalisation of whole units."""
        self._normed.add(id(tensor))

    def note_groups(self, channels: Tensor) -> None:
        """Note a normalisation of groups of channels by the module that runs now."""
        self.groups.append((self.path[-1], channels.clone()))

    def note_activation(self, call: Call, name: str) -> None:
        """Remember the activation that an operation is or belongs to, by its class name."""
        self.activations[self.path[-1] if name == self.kind else len(self.activations)] = name
        self._activation |= {id(tensor): name for tensor in call.outputs}

    # -- following

    def see(self, call: Call, rule: Callable[[TraceRecorder, Call], None]) -> None:
        """Follow one operation, whose rule is given."""
        self.reached.update(id(tensor) for tensor in call.tensors)
        self._held += call.outputs
        refusals = len(self.record.refusals)
        if not self.silenced:
            self._operation = call.operation
            self._follow(call, rule)
        self.history.append(
            Step(
                inputs=frozenset(map(id, call.tensors)),
                outputs=frozenset(map(id, call.outputs)),
                mutates=call.func._schema.is_mutable,
                refusals=range(refusals, len(self.record.refusals)),
            )
        )

    def _follow(self, call: Call, rule: Callable[[TraceRecorder, Call], None]) -> None:
        first = call.args[0] if call.args else None
        held = self.weight_of(first) if isinstance(first, Tensor) else None
        views = None if held is None else weight_views(call, held)
        if views is not None:  # a transposed, cast, copied weight or a part of one is still the weight
            self._copies |= {id(output): (view, call) for output, view in zip(call.outputs, views, strict=True)}
            return
        uses = len(self.uses)
        rule(self, call)
        if len(self.uses) > uses:
            return
        dressed = [tensor for tensor in call.tensors if id(tensor) in self._label_maps]
        if call.operation in KEEPING_ZERO and dressed and all(id(t) in self._normed for t in dressed):
            self._normed.update(id(output) for output in call.outputs)
        for tensor in call.tensors:
            if id(tensor) in self._activation:
                for output in call.outputs:
                    self._activation.setdefault(id(output), self._activation[id(tensor)])


def _serves_all(module: nn.Module) -> bool:
    """Whether a parameter with one entry, met in this module by a space of one unit, would serve more units as well.

    A module that counts its parameters has one per unit, except PReLU, whose single slope serves all.
    """
    per_unit = isinstance(module, nn.Linear) or isinstance(getattr(module, "num_parameters", None), int)
    return not per_unit or isinstance(module, nn.PReLU)
