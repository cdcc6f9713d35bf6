"""Record of one forward pass: label maps, uses of weights, norms and activations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch import Tensor, nn

from senn.graph.tracing.label_maps import LabelMaps
from senn.graph.tracing.labels import is_uniform
from senn.graph.tracing.recorded import (
    PRESERVING_ZERO,
    Call,
    NormUse,
    Step,
    WeightUse,
    WeightView,
    weight_views,
)

# Functions of the forward's own code whose inputs and output gradients can be recorded when they apply a weight.
# The last one is Python code that applies its weights by others of these functions.
_RECORDABLE = frozenset(
    (
        *("linear", "addmm", "mm", "matmul", "__matmul__", "conv1d", "conv2d", "conv3d"),
        *(
            "conv_transpose1d",
            "conv_transpose2d",
            "conv_transpose3d",
            "multi_head_attention_forward",
        ),
    )
)


class TraceRecorder(LabelMaps):
    """Record of one forward pass, written by the rules and read by `build_groups`.

    Attributes:
        uses: uses of weights by linear maps, in order.
        rows: labels of the positions along one dimension of a weight, by full name and dimension.
        activations: class names of the activations in order of use, by module or, for functions, by number.
        norms: normalizations over whole units.
        groups: (module, labels of its channels) of the normalizations of groups of channels.
        reached: identities of all tensors that operations read.
        history: one step for each operation.
        function: name of the torch function that the forward's own code has called now; None outside of any.
        silenced: how many modules with a rule of their own run now; operations inside them aren't followed.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.uses: list[WeightUse] = []
        self.rows: dict[tuple[str, int], Tensor] = {}
        self.activations: dict[str | int, str] = {}
        self.norms: list[NormUse] = []
        self.groups: list[tuple[str, Tensor]] = []
        self.reached: set[int] = set()
        self.history: list[Step] = []
        self.function: str | None = None
        self.silenced = 0
        self._activation: dict[
            int, str
        ] = {}  # class name of the last activation that a tensor went through
        self._normed: set[int] = (
            set()
        )  # tensors that come straight from a normalization over whole units

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
        # A slice of a weight reads nothing with the other columns.
        all_columns = columns.new_zeros(self.tensors[view.name].shape[in_dim])
        all_columns[view.part(in_dim)] = columns
        # Features of a linear layer come last; those of a 1 x 1 convolution don't.
        is_convolution = kernel_numel > 1 or axis == 1 < source.dim() - 1
        # The scoring pass records inputs and output gradients at the calls of these functions only.
        recordable = self.function is None or self.function in _RECORDABLE
        scored = plain and recordable and view.stop is None
        uniform = not bool(columns.any()) and is_uniform(source, {axis})
        self.uses.append(
            WeightUse(
                weight=view.name,
                columns=all_columns.cpu(),
                in_dim=in_dim,
                out_dim=out_dim,
                kernel_numel=kernel_numel,
                scored=scored,
                activation=self._activation.get(id(source)),
                inside=self.path[-1],
                spatial=source.dim() - 2 if is_convolution else 0,
                source=self.labels_of(source),
                uniform=uniform,
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
            labels = self.record.new_labels(
                module, key, shape, produces=produces, shared=False, dim=dim
            )
            self.rows[name, dim] = labels
        return self.rows[name, dim].to(tensor.device)

    def note_norm(
        self,
        weight: Tensor | None,
        kind: Literal["layer", "rms"],
        label_map: Tensor,
        output: Tensor,
    ) -> None:
        """Record a normalization over whole units.

        Args:
            weight: its factors, one for each unit; None if it has none.
            kind: `layer` or `rms`.
            label_map: label map of its input.
            output: its output, which from now on counts as normalized.
        """
        # By parameter: `F.layer_norm` in a forward's own code normalizes with a weight held elsewhere.
        parameter = None if weight is None else self._parameters.get(id(weight))
        module = self.path[-1] if parameter is None else parameter[0]
        self.norms.append(
            NormUse(module=module, kind=kind, weighted=parameter is not None, label_map=label_map)
        )
        self._normed.add(id(output))

    def note_groups(self, channels: Tensor) -> None:
        """Record that the running module normalizes groups of channels with these labels."""
        self.groups.append((self.path[-1], channels.clone()))

    def note_activation(self, call: Call, name: str) -> None:
        """Remember the activation that an operation is, or belongs to.

        Args:
            call: the operation.
            name: class name of the activation.
        """
        key = self.path[-1] if name == self.kind else len(self.activations)
        self.activations[key] = name
        for tensor in call.outputs:
            self._activation[id(tensor)] = name

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
        caused = range(before, len(self.record.refusals))
        self.history.append(Step(call=call, refusals=caused))

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
        if all_normed and call.operation in PRESERVING_ZERO:
            self._normed.update(map(id, call.outputs))
        for tensor in call.tensors:
            if id(tensor) in self._activation:
                for output in call.outputs:
                    self._activation.setdefault(id(output), self._activation[id(tensor)])
