"""Record of one or several forward passes: label maps, uses of weights, norms and activations."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn

from senn.graph.source_lines import running_line
from senn.graph.tracing.dot_products import DotProducts
from senn.graph.tracing.label_maps import LabelMaps
from senn.graph.tracing.labels import is_uniform
from senn.graph.tracing.linear_sources import LinearSources
from senn.graph.tracing.norm_flow import NormFlow
from senn.graph.tracing.operation_stream import OperationStream
from senn.graph.tracing.recorded import (
    PRESERVING_ZERO,
    Call,
    Step,
    WeightUse,
)
from senn.graph.tracing.weight_view import WeightView, views_of
from senn.pytree import Output

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

COMPUTED = "numbers that the forward computes"
INPUT = "the model's own input, whose size the data give,"


class TraceRecorder(LabelMaps):
    """Record of one or several forward passes, written by the rules and read by `build_groups`.

    Attributes:
        uses: uses of weights by linear maps, in order.
        rows: labels of the positions along one dimension of a weight, by full name and dimension.
        activations: class names of the activations in order of use, by module or, for functions, by number.
        groups: (module, labels of its channels) of the normalizations of groups of channels.
        flow: normalizations by what they compute.
        sources: what each activation is a sum of.
        dots: products of activations along all their units.
        reached: identities of all tensors that operations read.
        entered: names of all modules that ran.
        history: one step for each operation.
        pass_start: number of operations before the pass that runs now.
        function: name of the torch function that the forward's own code has called now; None outside of any.
        silenced: how many modules with a rule of their own run now; operations inside them aren't followed.
        stream: what the pass that runs now has done so far.
        streams_only: True if nothing but the stream is wanted.
        is_paused: True inside `paused`.
        finds_output: finds, in what a pass returns, outputs that may grow; None where all outputs keep their sizes.
        outputs: label maps of these, of each pass in evaluation mode.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.uses: list[WeightUse] = []
        self.rows: dict[tuple[str, int], Tensor] = {}
        self.activations: dict[str | int, str] = {}
        self.groups: list[tuple[str, Tensor]] = []
        self.reached: set[int] = set()
        self.entered: set[str] = set()
        self.history: list[Step] = []
        self.pass_start = 0
        self.function: str | None = None
        self.silenced = 0
        self.streams_only = self.is_paused = False
        self.finds_output: Output | None = None
        self.outputs: list[list[Tensor]] = []
        self._pass_number = 0
        self._names = {id(tensor): name for name, tensor in self.tensors.items()}
        self.stream = OperationStream(self._names)
        self._activation: dict[
            int, str
        ] = {}  # class name of the last activation that a tensor went through
        self.sources = LinearSources(self)
        self.flow = NormFlow(self, self.sources)
        self.dots = DotProducts()
        self._kinds: dict[int, str] = {}  # where tensors come from
        # Labels of what a weight makes along several of its dimensions.
        self._rows_of_several: dict[tuple[str, tuple[int, ...]], Tensor] = {}

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out what is computed inside the context: it is no part of the forward pass."""
        before, self.is_paused = self.is_paused, True
        try:
            yield
        finally:
            self.is_paused = before

    def begin_pass(self, number: int) -> None:
        """Get ready for the next pass; labels of weights stay those of the passes before.

        Args:
            number: number of the pass, from 0.
        """
        self._pass_number, self.pass_start = number, len(self.history)
        self.path, self.function, self.silenced = [""], None, 0
        self.stream = OperationStream(self._names)

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
            columns: labels of the columns of the stored weight; see `WeightUse`.
            source: the input.
            in_dim: dimension of the weight that counts inputs.
            out_dim: dimension of the weight that counts outputs.
            axis: dimension of the input that counts features.
            kernel_numel: number of kernel positions.
            plain: False if the map computes more than a linear layer or convolution does.
            groups: number of groups of a convolution.
            transposed: True for a transposed convolution.
        """
        # Features of a linear layer come last; those of a 1 x 1 convolution don't.
        is_convolution = kernel_numel > 1 or axis == 1 < source.dim() - 1
        # The scoring pass records inputs and output gradients at the calls of these functions only.
        recordable = self.function is None or self.function in _RECORDABLE
        scored = plain and recordable and view.whole
        uniform = not bool(columns.any()) and is_uniform(source, {axis})
        self.used_at.setdefault(view.name, running_line())
        self.uses.append(
            WeightUse(
                weight=view.name,
                columns=columns.cpu(),
                in_dim=in_dim,
                out_dim=out_dim,
                kernel_numel=kernel_numel,
                scored=scored,
                activation=self._activation.get(id(source)),
                inside=self.path[-1],
                pass_number=self._pass_number,
                spatial=source.dim() - 2 if is_convolution else 0,
                source=self.labels_of(source),
                uniform=uniform,
                normed=self.flow.is_silent(source),
                groups=groups,
                transposed=transposed,
            )
        )

    def produces(self, name: str, dims: Sequence[int]) -> Tensor:
        """Return labels of what a weight makes, the same at each use of the weight.

        Args:
            name: full name of the weight.
            dims: dimensions of it that count outputs; each combination of positions is one.

        Returns:
            Labels of the weight's rank, with size 1 along its other dimensions.
        """
        sizes = self.tensors[name].shape
        shape = [size if dim in dims else 1 for dim, size in enumerate(sizes)]
        if len(dims) == 1:
            return self._along(name, dims[0], produces=True).view(shape)
        if (name, tuple(dims)) not in self._rows_of_several:
            module, _, key = name.rpartition(".")
            labels = self.record.new_labels(module, key, tuple(shape), produces=True, shared=False)
            self._rows_of_several[name, tuple(dims)] = labels
        return self._rows_of_several[name, tuple(dims)].to(self.tensors[name].device)

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
        self.used_at.setdefault(name, running_line())
        if (name, dim) not in self.rows:
            module, _, key = name.rpartition(".")
            shape = (tensor.shape[dim],)
            labels = self.record.new_labels(
                module, key, shape, produces=produces, shared=False, dim=dim
            )
            self.rows[name, dim] = labels
        return self.rows[name, dim].to(tensor.device)

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
        if self._pass_number == 0:  # each counts once, in however many passes it runs
            self.activations[key] = name
        for tensor in call.outputs:
            self._activation[id(tensor)] = name

    def follow(self, call: Call, rule: Callable[[TraceRecorder, Call], None]) -> None:
        """Record one operation.

        Args:
            call: the operation, already executed.
            rule: what it does to labels.
        """
        self.stream.note_operation(call, self.function)
        if self.streams_only:
            return
        self.reached.update(map(id, call.tensors))
        self._alive += call.outputs
        if not any(id(output) in self._kinds for output in call.outputs):
            kinds = [self.kind_of(tensor) for tensor in call.tensors]
            kind = max(kinds, key=lambda one: one != COMPUTED, default=COMPUTED)
            self._kinds.update(dict.fromkeys(map(id, call.outputs), kind))
        before = len(self.record.refusals)
        if not self.silenced:
            self._operation = call.operation
            self._apply(call, rule)
        caused = range(before, len(self.record.refusals))
        self.history.append(Step(call=call, refusals=caused))

    def note_inputs(self, tensors: list[Tensor]) -> None:
        """Note which tensors are the model's inputs."""
        self._kinds.update(dict.fromkeys(map(id, tensors), INPUT))

    def kind_of(self, tensor: Tensor) -> str:
        """Say in words where a tensor without units comes from: a table, the model's input, numbers of the forward."""
        name = self.parameter_name(id(tensor))
        if name is not None:
            return f"the table {name}, which holds a number for each of them,"
        return self._kinds.get(id(tensor), "a tensor that the forward's own code holds")

    def _apply(self, call: Call, rule: Callable[[TraceRecorder, Call], None]) -> None:
        first = call.args[0] if call.args else None
        view = self.weight_of(first) if isinstance(first, Tensor) else None
        # An index that units choose isn't a view of the weight any more.
        chosen = view is not None and any(map(self.has_units, call.tensors[1:]))
        views = None if view is None or chosen else views_of(call, view)
        if views is not None:
            # Seen from another side, a weight is still the weight: it needs no labels for its entries.
            for output, one in zip(call.outputs, views, strict=True):
                self._views[id(output)] = one
            return
        if view is not None and call.func._schema.is_mutable and len(call.tensors) == 1:
            return  # a weight rescaled in place (by code of a switch of modes): every entry stays in its place
        if self.flow.takes(call):
            self.note_computed(call)
            return
        before = len(self.uses)
        rule(self, call)
        uses = self.uses[before:]
        self.flow.after(call, uses)
        self.sources.after(call, uses)
        self.dots.after(call)
        if uses:
            return  # a linear map ends what is remembered about its input
        if call.operation in PRESERVING_ZERO:
            labeled = [tensor for tensor in call.tensors if id(tensor) in self._label_maps]
            self.flow.passes_zero(labeled, call.outputs)
        self.note_computed(call)
        for tensor in call.tensors:
            if id(tensor) in self._activation:
                for output in call.outputs:
                    self._activation.setdefault(id(output), self._activation[id(tensor)])
