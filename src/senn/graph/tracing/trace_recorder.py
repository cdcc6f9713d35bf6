"""What one forward pass shows: the label maps of its tensors, and the uses of its weights."""

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

# Functions of the forward's own code whose inputs and output gradients can be recorded when they apply a weight.
# The last one is a Python function, whose body is traced like the forward itself.
_RECORDABLE = frozenset(
    (
        *("linear", "addmm", "mm", "matmul", "__matmul__", "conv1d", "conv2d", "conv3d"),
        *("conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "multi_head_attention_forward"),
    )
)


class TraceRecorder:
    """The record of one forward pass, written by the rules and read by `trace_graph` and `build_groups`.

    Tensors are known by identity. The recorder keeps each one alive, so that no identity is used twice.

    Attributes:
        model: the model that runs.
        record: all labels: their origins, merges and refusals.
        uses: uses of weights by linear maps, in order.
        rows: labels of the positions along one dimension of a weight, by full name and dimension.
        labeled_in: where a parameter's entries got labels of their own, by full name.
        not_understood: reasons, by module or by parameter of the model itself, that an operation without a rule read.
        activations: class names of the activations in order of use, by module or, for functions, by number.
        norms: normalizations over whole units.
        groups: (module, labels of its channels) of the normalizations of groups of channels.
        reached: identities of all tensors that operations read.
        tensors: all parameters and buffers by full name.
        history: one step for each operation.
        path: names of the modules that run now, innermost last.
        function: name of the torch function that the forward's own code has called now; None outside of any.
        silenced: how many modules with a rule of their own run now; operations inside them aren't followed.
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
        self.silenced = 0
        self._operation = ""
        self._alive: list[Tensor] = []
        self._label_maps: dict[int, list[Tensor]] = {}
        self._opaque: dict[int, str] = {}  # why parameters that have no labels yet will be refused
        self._activation: dict[int, str] = {}
        self._parameters: dict[int, tuple[str, str, bool]] = {}  # module, name, whether one entry serves all units
        self._views: dict[int, tuple[WeightView, Call]] = {}
        self._normed: set[int] = set()
        for name, module in model.named_modules():
            # A module that counts its parameters has one for each unit, except PReLU, whose single slope serves all.
            per_unit = isinstance(module, nn.Linear) or isinstance(getattr(module, "num_parameters", None), int)
            shared = not per_unit or isinstance(module, nn.PReLU)
            for key, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
                self._parameters.setdefault(id(tensor), (name, key, shared))
                self.tensors[_full_name(name, key)] = tensor

    @property
    def kind(self) -> str:
        """Class name of the module that runs now."""
        return type(self.model.get_submodule(self.path[-1])).__name__

    @property
    def place(self) -> str:
        """Name and class of the module that runs now, for messages."""
        name, kind = self.path[-1], self.kind
        return f"{name} ({kind})" if name else f"the model's own forward ({kind})"

    # -- label maps of tensors

    def is_labeled(self, tensor: Tensor) -> bool:
        """Return True if entries of a tensor belong to units; True for parameters and buffers, which may get labels."""
        if id(tensor) in self._label_maps:
            return any(bool(label_map.any()) for label_map in self._label_maps[id(tensor)])
        return id(tensor) in self._parameters or id(tensor) in self._views

    def labels_of(self, tensor: Tensor) -> list[Tensor]:
        """Return all label maps of a tensor, at least one (zeros if it has no units).

        A tensor has several where units of two groups lie along two of its dimensions, as in attention scores.
        """
        key = id(tensor)
        if key not in self._label_maps:
            if key in self._parameters:
                labels = self._label_entries(tensor).to(tensor.device)
            elif key in self._views:
                labels = self._labels_of_view(tensor, self._views[key][1])
            else:
                labels = torch.zeros(tensor.shape, dtype=torch.long, device=tensor.device)
            self._label_maps[key] = [labels]
            self._alive.append(tensor)
        return self._label_maps[key]

    def first_labels_of(self, tensor: Tensor) -> Tensor:
        """Return the first label map of a tensor; a parameter has no other."""
        return self.labels_of(tensor)[0]

    def _label_entries(self, tensor: Tensor) -> Tensor:
        """Issue a label for every entry of a parameter or buffer."""
        module, key, shared = self._parameters[id(tensor)]
        labels = self.record.new_labels(module, key, tuple(tensor.shape), shared=shared)
        self.labeled_in[_full_name(module, key)] = f"{self._operation} in {self.place}"
        if id(tensor) in self._opaque:
            self.record.refuse(labels, self._opaque[id(tensor)])
        return labels

    def _labels_of_view(self, tensor: Tensor, call: Call) -> Tensor:
        """Derive the labels of a view of a parameter by carrying out the same operation on the parameter's labels."""
        source = self.first_labels_of(call.args[0])
        if call.operation not in REARRANGING:
            return source
        parts: list[Tensor] = pytree.tree_leaves(call.func(source, *call.args[1:], **call.kwargs))
        number = next(number for number, output in enumerate(call.outputs) if output is tensor)
        return parts[number]

    def set_labels(self, tensor: Tensor, label_maps: list[Tensor]) -> None:
        """Set the label maps of a tensor.

        Args:
            tensor: an output of the current operation, or a tensor that it writes into.
            label_maps: label maps of the tensor's shape. If it has some already, they are copied into the old memory,
                which views of the tensor share: so units written into a view arrive in its base.
        """
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
        """Label a tensor that is equal for all units it meets, such as a mask: its size follows theirs.

        Args:
            tensor: a tensor without units.
            label_map: of the tensor that it met, to whose shape it broadcasts.
        """
        own = self.first_labels_of(tensor)
        offset = label_map.dim() - own.dim()
        if offset:
            label_map = label_map.amax(tuple(range(offset)))
        single = [dim for dim in range(own.dim()) if own.shape[dim] == 1 and label_map.shape[dim] > 1]
        if single:
            label_map = label_map.amax(single, keepdim=True)
        own.copy_(label_map)

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

    def refuse_call(self, call: Call) -> None:
        """Refuse every unit that meets an operation without a rule."""
        for tensor in call.tensors:
            self.unreadable(tensor, call.operation)

    def unreadable(self, tensor: Tensor, operation: str) -> None:
        """Refuse the units of a tensor that an operation without a rule reads, and name a parameter's module.

        Args:
            tensor: the input.
            operation: the operation's name, for the message.
        """
        self.refuse(tensor, f"its units meet {operation} in {self.place}, which isn't understood yet")
        if id(tensor) in self._views:
            name = self._views[id(tensor)][0].name
        elif id(tensor) in self._parameters:
            name = _full_name(*self._parameters[id(tensor)][:2])
        else:
            return
        self.labeled_in.setdefault(name, f"{operation} in {self.place}")
        module = name.rpartition(".")[0]
        self.not_understood.setdefault(module or name, f"{operation} in {self.place} isn't understood yet")

    # -- uses of weights

    def weight_of(self, tensor: Tensor) -> WeightView | None:
        """Return the parameter of two or more dimensions that a tensor is a view of; None if there is none."""
        if id(tensor) in self._views:
            return self._views[id(tensor)][0]
        if id(tensor) in self._parameters and tensor.dim() > 1 and isinstance(tensor, nn.Parameter):
            return WeightView(name=_full_name(*self._parameters[id(tensor)][:2]))
        return None

    def weight_use(
        self,
        view: WeightView,
        columns: Tensor,
        source: Tensor,
        *,
        in_dim: int,
        out_dim: int,
        axis: int,
        kernel_numel: int = 1,
        plain: bool = True,
        groups: int = 1,
        transposed: bool = False,
    ) -> None:
        """Record that a linear map reads a tensor.

        Args:
            view: the weight, or the part of it that is applied.
            columns: (in,) label of each input column.
            source: the input.
            in_dim: dimension of the weight that counts inputs.
            out_dim: dimension of the weight that counts outputs.
            axis: dimension of the input that counts features.
            kernel_numel: number of kernel positions.
            plain: False if the map computes more than a linear layer or convolution does.
            groups: number of groups of a convolution.
            transposed: True for a transposed convolution.
        """
        all_columns = columns.new_zeros(self.tensors[view.name].shape[in_dim])
        all_columns[view.part(in_dim)] = columns
        is_convolution = kernel_numel > 1 or axis == 1 < source.dim() - 1
        recordable = self.function is None or self.function in _RECORDABLE
        self.uses.append(
            WeightUse(
                weight=view.name,
                columns=all_columns.cpu(),
                in_dim=in_dim,
                out_dim=out_dim,
                kernel_numel=kernel_numel,
                scored=plain and recordable and view.stop is None,
                activation=self._activation.get(id(source)),
                inside=self.path[-1],
                spatial=source.dim() - 2 if is_convolution else 0,
                source=self.labels_of(source),
                uniform=not bool(columns.any()) and is_uniform(source, {axis}),
                normed=id(source) in self._normed,
                groups=groups,
                transposed=transposed,
            )
        )

    def produces(self, view: WeightView, dim: int) -> Tensor:
        """Return labels of what a weight makes.

        Args:
            view: the weight, or a part of it.
            dim: dimension of the stored weight that counts outputs.

        Returns:
            (positions,) long, the same at each use of the weight.
        """
        return self._along(view.name, dim, produces=True)[view.part(dim)]

    def passes_elementwise(self, name: str, dim: int) -> Tensor:
        """Return labels of what goes along with units, one by one.

        Args:
            name: full name of a parameter.
            dim: its dimension that counts units.

        Returns:
            (positions,) long.
        """
        return self._along(name, dim, produces=False)

    def _along(self, name: str, dim: int, *, produces: bool) -> Tensor:
        tensor = self.tensors[name]
        if (name, dim) not in self.rows:
            module, _, key = name.rpartition(".")
            shape = (tensor.shape[dim],)
            self.rows[name, dim] = self.record.new_labels(module, key, shape, produces=produces, shared=False, dim=dim)
        return self.rows[name, dim].to(tensor.device)

    # -- norms and activations

    def note_norm(self, weight: Tensor | None, kind: str, label_map: Tensor, output: Tensor) -> None:
        """Record a normalization over whole units.

        Args:
            weight: its factors, one for each unit; None if it has none.
            kind: `layer` or `rms`.
            label_map: label map of its input.
            output: its output, which from now on counts as normalized.
        """
        parameter = None if weight is None else self._parameters.get(id(weight))
        module = self.path[-1] if parameter is None else parameter[0]
        self.norms.append(NormUse(module=module, kind=kind, weighted=parameter is not None, label_map=label_map))
        self._normed.add(id(output))

    def note_groups(self, channels: Tensor) -> None:
        """Record that the module that runs now normalizes groups of channels; `channels` are their labels."""
        self.groups.append((self.path[-1], channels.clone()))

    def note_activation(self, call: Call, name: str) -> None:
        """Remember the activation that an operation is, or belongs to.

        Args:
            call: the operation.
            name: class name of the activation.
        """
        self.activations[self.path[-1] if name == self.kind else len(self.activations)] = name
        for tensor in call.outputs:
            self._activation[id(tensor)] = name

    # -- following operations

    def follow(self, call: Call, rule: Callable[[TraceRecorder, Call], None]) -> None:
        """Record one operation.

        Args:
            call: the operation, already executed.
            rule: what it does to labels.
        """
        self.reached.update(map(id, call.tensors))
        self._alive += call.outputs
        before = len(self.record.refusals)
        if not self.silenced:
            self._operation = call.operation
            self._apply(call, rule)
        self.history.append(Step(call=call, refusals=range(before, len(self.record.refusals))))

    def _apply(self, call: Call, rule: Callable[[TraceRecorder, Call], None]) -> None:
        first = call.args[0] if call.args else None
        view = self.weight_of(first) if isinstance(first, Tensor) else None
        views = None if view is None else weight_views(call, view)
        if views is not None:
            # A transposed, cast, copied or sliced weight is still the weight: it needs no labels for its entries.
            for output, one in zip(call.outputs, views, strict=True):
                self._views[id(output)] = (one, call)
            return
        uses = len(self.uses)
        rule(self, call)
        if len(self.uses) > uses:
            return  # a linear map ends what is remembered about its input
        labeled = [tensor for tensor in call.tensors if id(tensor) in self._label_maps]
        all_normed = bool(labeled) and self._normed.issuperset(map(id, labeled))
        if all_normed and call.operation in KEEPING_ZERO:
            self._normed.update(map(id, call.outputs))
        for tensor in call.tensors:
            if id(tensor) in self._activation:
                for output in call.outputs:
                    self._activation.setdefault(id(output), self._activation[id(tensor)])


def _full_name(module: str, key: str) -> str:
    return f"{module}.{key}" if module else key
