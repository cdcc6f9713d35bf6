"""Label maps of the tensors of one forward pass."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from senn.graph.source_lines import running_line
from senn.graph.tracing.labels import Labels, varying
from senn.graph.tracing.recorded import Call
from senn.graph.tracing.weight_view import WeightView


class LabelMaps:
    """The label maps of a forward pass's tensors, and what may not be labeled.

    Tensors are known by identity. Each one is kept alive, so that no identity is used twice.

    Attributes:
        model: the model that runs.
        record: all labels: their origins, merges and refusals.
        tensors: all parameters and buffers by full name.
        labeled_in: where a parameter's entries got labels of their own, by full name.
        used_at: line of the forward's code that uses a parameter first, by full name.
        not_understood: reasons, by module or by parameter of the model itself, that an operation without a rule read.
        path: names of the modules that run now, innermost last.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.record = Labels()
        self.tensors: dict[str, Tensor] = {}
        self.labeled_in: dict[str, str] = {}
        self.used_at: dict[str, str] = {}
        self.not_understood: dict[str, str] = {}
        self.path = [""]
        self._operation = ""
        self._alive: list[Tensor] = []
        self._label_maps: dict[int, list[Tensor]] = {}
        self._opaque: dict[int, str] = {}  # why parameters that have no labels yet will be refused
        self._parameters: dict[
            int, tuple[str, str, bool]
        ] = {}  # module, name, whether one entry serves all units
        self._views: dict[int, WeightView] = {}
        self._copied_from: dict[int, Tensor] = {}
        self._computed: dict[int, str] = {}  # of which weight, and by which operation
        self._kinds_of_modules: dict[str, str] = {}
        for name, module in model.named_modules():
            self._kinds_of_modules[name] = type(module).__name__
            # A module that counts its parameters has one for each unit, except PReLU, whose single slope serves all.
            counts = isinstance(getattr(module, "num_parameters", None), int)
            shared = isinstance(module, nn.PReLU) or not (counts or isinstance(module, nn.Linear))
            own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
            for key, tensor in own:
                # The first name counts: a tied parameter is one tensor under several.
                self._parameters.setdefault(id(tensor), (name, key, shared))
                self.tensors[full_name(name, key)] = tensor

    @property
    def kind(self) -> str:
        """Class name of the module that runs now."""
        return self._kinds_of_modules[self.path[-1]]

    @property
    def place(self) -> str:
        """Name and class of the module that runs now, for messages."""
        name, kind = self.path[-1], self.kind
        return f"{name} ({kind})" if name else f"the model's own forward ({kind})"

    def is_labeled(self, tensor: Tensor) -> bool:
        """Return True if entries of a tensor belong to units; parameters and buffers may always."""
        if id(tensor) in self._label_maps:
            return any(bool(label_map.any()) for label_map in self._label_maps[id(tensor)])
        return id(tensor) in self._parameters or id(tensor) in self._views

    def has_units(self, tensor: Tensor) -> bool:
        """Return True if entries of a tensor belong to units that a linear map makes."""
        known = self._label_maps.get(id(tensor), ())
        return any(self.record.has_made(label_map) for label_map in known)

    def labels_of(self, tensor: Tensor) -> list[Tensor]:
        """Return all label maps of a tensor, at least one (zeros if it has no units).

        A tensor has several where units of two groups lie along two of its dimensions, as in attention scores.
        """
        key = id(tensor)
        if key not in self._label_maps:
            if key in self._parameters:
                labels = self._label_entries(tensor).to(tensor.device)
            elif key in self._views:
                view = self._views[key]
                labels = view.entries(self.first_labels_of(self.tensors[view.name]))
            else:
                labels = torch.zeros(tensor.shape, dtype=torch.long, device=tensor.device)
            self._label_maps[key] = [labels]
            self._alive.append(tensor)
        return self._label_maps[key]

    def weight_of(self, tensor: Tensor) -> WeightView | None:
        """Return the parameter of two or more dimensions that a tensor is a view of, or None."""
        key = id(tensor)
        is_weight = isinstance(tensor, nn.Parameter) and tensor.dim() > 1
        if is_weight and key in self._parameters and key not in self._views:
            name = full_name(*self._parameters[key][:2])
            self._views[key] = WeightView.of(name, tensor)
        return self._views.get(key)

    def computed_from(self, tensor: Tensor) -> str | None:
        """Return from which weight a tensor is computed, and by what, if it is one that the forward computes."""
        return self._computed.get(id(tensor))

    def note_computed(self, call: Call) -> None:
        """Remember the outputs of an operation that computes a weight from parameters alone.

        Args:
            call: an operation whose outputs are no views of a parameter.
        """
        origins = []
        for tensor in call.tensors:
            view, computed = self._views.get(id(tensor)), self.computed_from(tensor)
            if view is not None:
                computed = f"{view.name} by {call.operation} in {self.place}"
            origins += [] if computed is None else [computed]
        # With units among the inputs, the outputs are activations.
        if origins and not any(map(self.has_units, call.tensors)):
            self._computed.update(dict.fromkeys(map(id, call.outputs), origins[0]))

    def parameter_name(self, identity: int) -> str | None:
        """Return the full name of the parameter or buffer with an identity; None if it is another tensor."""
        held = self._parameters.get(identity)
        return None if held is None else full_name(*held[:2])

    def first_labels_of(self, tensor: Tensor) -> Tensor:
        """Return the first label map of a tensor; a parameter has no other."""
        return self.labels_of(tensor)[0]

    def _label_entries(self, tensor: Tensor) -> Tensor:
        """Issue a label for every entry of a parameter or buffer."""
        module, key, shared = self._parameters[id(tensor)]
        labels = self.record.new_labels(module, key, tuple(tensor.shape), shared=shared)
        self.labeled_in[full_name(module, key)] = f"{self._operation} in {self.place}"
        self.used_at.setdefault(full_name(module, key), running_line())
        if id(tensor) in self._opaque:  # refused before it had labels
            self.record.refuse(labels, self._opaque[id(tensor)])
        return labels

    def set_labels(self, tensor: Tensor, label_maps: list[Tensor]) -> None:
        """Set the label maps of a tensor.

        Args:
            tensor: an output of the current operation, or a tensor that it writes into.
            label_maps: label maps of the tensor's shape. If it has some already, they are copied into the old memory,
                which views of the tensor share: so units written into a view arrive in its base.
        """
        known = self._label_maps.get(id(tensor))
        if known is None:
            nothing = torch.zeros_like(tensor, dtype=torch.long)
            self._label_maps[id(tensor)] = list(label_maps) or [nothing]
            return
        for number, label_map in enumerate(label_maps):
            if number >= len(known):
                known.append(label_map.clone())
            elif known[number] is not label_map:
                write_labels(known, number, label_map)
        for label_map in known[
            len(label_maps) :
        ]:  # kept, as views may share its memory, but without units
            label_map.zero_()

    def backfill_labels(self, tensor: Tensor, label_map: Tensor) -> None:
        """Label a tensor that is equal for all units it meets: its size follows theirs.

        Args:
            tensor: a tensor without units along the same dimensions.
            label_map: of the tensor that it met, to whose shape it broadcasts.
        """
        known = self.labels_of(tensor)
        offset = label_map.dim() - tensor.dim()
        if offset:
            label_map = label_map.amax(tuple(range(offset)))
        for dim, size in enumerate(tensor.shape):  # dimensions along which it broadcasts
            if size == 1:
                label_map = label_map.amax(dim, keepdim=True)
        if bool(known[0].any()):  # units along other dimensions, which stay
            known.append(label_map.expand(tensor.shape).clone())
        else:
            write_labels(known, 0, label_map.expand(tensor.shape))
        origin = self._copied_from.get(id(tensor))
        if origin is not None and not self.is_labeled(origin):
            self.backfill_labels(origin, label_map)

    def note_copy(self, source: Tensor, copy: Tensor) -> None:
        """Remember that a tensor without units was copied: the size of both follows that of units met by the copy.

        Args:
            source: the tensor.
            copy: the copy, of the same shape.
        """
        self._copied_from[id(copy)] = source

    def refuse(self, tensor: Tensor, reason: str) -> None:
        """Refuse all units of a tensor.

        Args:
            tensor: any tensor. A parameter without labels isn't labeled for this: that would fix its size.
            reason: why, as the rest of a sentence about the group ("its units ...").
        """
        if id(tensor) in self._label_maps:
            for label_map in self._label_maps[id(tensor)]:
                self.record.refuse(label_map, reason)
        elif id(tensor) in self._parameters:
            self._opaque.setdefault(id(tensor), reason)
        elif id(tensor) in self._views:
            self.refuse(self.tensors[self._views[id(tensor)].name], reason)

    def refuse_call(self, call: Call) -> None:
        """Refuse every unit that meets an operation without a rule."""
        for tensor in call.tensors:
            self.unreadable(tensor, call.operation)

    def unreadable(self, tensor: Tensor, operation: str) -> None:
        """Refuse the units of a tensor that an operation without a rule reads.

        Args:
            tensor: the input.
            operation: the operation's name, for the message.
        """
        self.refuse(
            tensor, f"its units meet {operation} in {self.place}, which isn't understood yet"
        )
        if id(tensor) in self._views:
            name = self._views[id(tensor)].name
        elif id(tensor) in self._parameters:
            name = full_name(*self._parameters[id(tensor)][:2])
        else:
            return
        self.labeled_in.setdefault(name, f"{operation} in {self.place}")
        module = name.rpartition(".")[0]
        self.not_understood.setdefault(
            module or name, f"{operation} in {self.place} isn't understood yet"
        )


def full_name(module: str, key: str) -> str:
    """Return the full name of a parameter or buffer.

    Args:
        module: name of its module; "" for the model.
        key: its name in there.
    """
    return f"{module}.{key}" if module else key


def write_labels(label_maps: list[Tensor], number: int, label_map: Tensor) -> None:
    """Write a label map into the memory of a tensor's own, which views of the tensor share.

    Args:
        label_maps: label maps of the tensor, changed in place.
        number: which of them is overwritten.
        label_map: the new labels, of the same shape.
    """
    target = label_maps[number]
    # An expanded tensor has one place in memory for many entries: if these differ now, they need memory of their own.
    expanded = [
        dim for dim in range(target.dim()) if target.shape[dim] > 1 and not target.stride(dim)
    ]
    if varying(label_map) & set(expanded):
        label_maps[number] = label_map.clone()
        return
    for dim in expanded:
        target, label_map = target.narrow(dim, 0, 1), label_map.narrow(dim, 0, 1)
    target.copy_(label_map)
