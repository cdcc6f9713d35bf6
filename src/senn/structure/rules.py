"""What each ATen operation does to labels.

A rule is a function `rule(trace, call)` that reads the labels of the call's inputs (`trace.labels(tensor)`), writes
those of its outputs (`trace.mark(tensor, labels)`), and tells `trace.record` which units are the same (`unite`) or
must not change (`refuse`). `rule_for` picks it: the table `RULES` by operation name without overload ("aten::view"),
then any operation that torch tags as pointwise, then `unknown`, which refuses every unit that the operation sees.

To teach another operation, write its rule and add it to `RULES`. Operations that only move entries need no
code: they have the rule `move`, which carries them out on the label tensors themselves. An operation that reads and
makes units (a convolution, say) notes the input's units by `trace.use` and labels its output by `trace.produce`, as
`matrix_product` does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from senn.structure.labels import Labels, varying

if TYPE_CHECKING:
    from senn.structure.trace import Trace


@dataclass(frozen=True, eq=False)
class Call:
    """One executed ATen operation: what went in and what came out."""

    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: Any

    @property
    def name(self) -> str:
        """Operation name without overload, such as "aten::add_"."""
        return str(self.func._schema.name)

    @cached_property
    def arguments(self) -> dict[str, Any]:
        """Arguments by name, defaults filled in."""
        schema = self.func._schema.arguments
        values = {a.name: a.default_value for a in schema if a.has_default_value()}
        return values | dict(zip((a.name for a in schema), self.args, strict=False)) | self.kwargs

    @cached_property
    def tensors(self) -> list[Tensor]:
        """All tensors that went in, in order, also those inside lists."""
        return [leaf for leaf in pytree.tree_leaves((self.args, self.kwargs)) if isinstance(leaf, Tensor)]

    @cached_property
    def outputs(self) -> list[Tensor]:
        """All tensors that came out."""
        return [leaf for leaf in pytree.tree_leaves(self.result) if isinstance(leaf, Tensor)]


Rule = Callable[["Trace", Call], None]


def unknown(trace: Trace, call: Call) -> None:
    """Refuse every unit that meets the operation."""
    operation = call.name.removeprefix("aten::").strip("_")
    for tensor in call.tensors:
        trace.cannot_read(tensor, operation)


def move(trace: Trace, call: Call) -> None:
    """Entries change places only: carry the operation out on the labels."""
    # A view without units is followed too: units may be written into it, and so into what it is a view of.
    aliases = any(result.alias_info is not None for result in call.func._schema.returns)
    if not aliases and not any(trace.is_labelled(tensor) for tensor in call.tensors):
        return
    source = call.args[0]
    moved = {id(source)} if isinstance(source, Tensor) else {id(tensor) for tensor in source}
    for tensor in call.tensors:
        if id(tensor) not in moved and trace.is_labelled(tensor):
            unknown(trace, call)  # units that choose which entries move
            return
    args, kwargs = pytree.tree_map_only(
        Tensor, lambda t: trace.labels(t) if id(t) in moved else t, (call.args, call.kwargs)
    )
    moved_labels = pytree.tree_leaves(_on_labels(call, args, kwargs))
    if [labels.shape for labels in moved_labels] != [tensor.shape for tensor in call.outputs]:
        unknown(trace, call)  # a view as another type cuts entries into pieces
        return
    for tensor, labels in zip(call.outputs, moved_labels, strict=True):
        trace.mark(tensor, labels)


def _on_labels(call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run a moving operation on labels."""
    if call.name == "aten::constant_pad_nd":
        return call.func(*args[:2])  # what is padded belongs to no unit, whatever its value
    try:
        return call.func(*args, **kwargs)
    except RuntimeError:
        if call.name not in ("aten::view", "aten::_unsafe_view"):
            raise
        return args[0].reshape(call.args[1])  # labels may lie in memory in another way than the tensor


def keep(trace: Trace, call: Call) -> None:
    """The outputs have the units of the first input: casts, copies to a device, tensors made like another."""
    if trace.is_labelled(call.tensors[0]):
        labels = trace.labels(call.tensors[0])
        for tensor in call.outputs:
            if tensor is not call.tensors[0] and tensor.shape == labels.shape:
                trace.mark(tensor, labels.to(tensor.device, copy=True))


def overwrite(trace: Trace, call: Call) -> None:
    """A tensor, or a part of one, is filled with other entries."""
    target, *others = call.tensors
    source = call.arguments.get("src")
    if source is None:
        for value in others:
            trace.cannot_read(value, call.name.removeprefix("aten::").strip("_"))
    if source is not None and trace.is_labelled(source):
        trace.labels(target).copy_(trace.labels(source))
    elif trace.is_labelled(target):
        trace.labels(target).zero_()


def pointwise(trace: Trace, call: Call) -> None:
    """Entries that meet each other belong to the same unit."""
    tensors = call.tensors
    if any(trace.is_labelled(tensor) for tensor in tensors):
        shape = torch.broadcast_shapes(*(tensor.shape for tensor in tensors))  # type: ignore[no-untyped-call]
        labels = torch.zeros(shape, dtype=torch.long, device=tensors[0].device)
        for tensor in tensors:
            if trace.is_labelled(tensor):
                other = trace.labels(tensor).to(labels.device).broadcast_to(shape)
                labels = _meet(trace, labels, other) if bool(labels.any()) else other
        for tensor in tensors:
            if not trace.is_labelled(tensor):
                _meet_unlabelled(trace, labels, tensor)
        for tensor in call.outputs:
            if tensor.shape == shape:
                trace.mark(tensor, labels.to(tensor.device, copy=True))
    trace.note_activation(call)


def _meet(trace: Trace, first: Tensor, second: Tensor) -> Tensor:
    """Unite two label tensors of one shape that meet entry by entry; return the labels of what comes out."""
    if torch.equal(first, second):
        return first
    record, along_first, along_second = trace.record, varying(first), varying(second)
    if not along_first and not along_second and (_is_shared(record, first) or _is_shared(record, second)):
        return first if _is_shared(record, second) else second
    if along_first & along_second or not (along_first or along_second):
        record.unite(first, second)
        alone = (first != 0) ^ (second != 0)
        record.refuse((first + second)[alone], f"its units meet a tensor that has no units in {trace.place}")
        return torch.where(first != 0, first, second)
    spread = f"its units are spread over other units in {trace.place}"
    if along_first and along_second:
        record.refuse(first, spread)
        record.refuse(second, spread)
        return torch.zeros_like(first)
    record.refuse(second if along_first else first, spread)
    return first if along_first else second


def _is_shared(record: Labels, labels: Tensor) -> bool:
    """Whether a label that doesn't vary is that of a parameter with one entry for all units."""
    owner = record.owner(int(labels.reshape(-1)[0]))
    return owner.shared and owner.count == 1


def _meet_unlabelled(trace: Trace, labels: Tensor, other: Tensor) -> None:
    """A tensor without units may meet units only where it is broadcast over them."""
    offset = labels.dim() - other.dim()
    if any(dim >= offset and other.shape[dim - offset] > 1 for dim in varying(labels)):
        trace.record.refuse(labels, f"its units meet a tensor that has no units in {trace.place}")


def reduce(trace: Trace, call: Call) -> None:
    """Reduction over some dimensions: refused if it mixes units, else the remaining dimensions keep them."""
    source = call.tensors[0]
    if not trace.is_labelled(source):
        return
    labels = trace.labels(source)
    dims = _dimensions(call, labels)
    if varying(labels) & dims:
        trace.record.refuse(labels, f"{trace.place} mixes its units ({call.name.removeprefix('aten::').strip('_')})")
        return
    reduced = labels.amax(sorted(dims), keepdim=True) if dims else labels
    for tensor in call.outputs:
        trace.mark(tensor, labels.clone() if tensor.shape == labels.shape else reduced.reshape(tensor.shape).clone())


def _dimensions(call: Call, labels: Tensor) -> set[int]:
    """The dimensions over which an operation mixes entries; all of them unless it names some."""
    if "normalized_shape" in call.arguments:
        return set(range(labels.dim() - len(call.arguments["normalized_shape"]), labels.dim()))
    dims = call.arguments.get("dim")
    if dims is None or dims == []:
        return set(range(labels.dim()))
    return {dim % max(labels.dim(), 1) for dim in ([dims] if isinstance(dims, int) else dims)}


def layer_norm(trace: Trace, call: Call) -> None:
    """Normalisation over the last dimensions: refused if it mixes units."""
    source = call.tensors[0]
    if trace.is_labelled(source):
        labels = trace.labels(source)
        if varying(labels) & _dimensions(call, labels):
            trace.record.refuse(labels, f"{trace.place} mixes its units")
        else:
            trace.mark(call.outputs[0], labels.clone())


def batch_norm(trace: Trace, call: Call) -> None:
    """Normalisation of each channel (dimension 1) on its own: weight, bias and running statistics are carriers."""
    source = call.tensors[0]
    labels = trace.labels(source)
    channels = per_column(trace, labels.movedim(1, -1).reshape(-1, labels.shape[1]))
    for key in ("weight", "bias", "running_mean", "running_var"):
        carrier = call.arguments.get(key)
        if isinstance(carrier, Tensor) and carrier.shape == channels.shape:
            trace.record.unite(channels, trace.labels(carrier).to(channels.device))
    trace.mark(call.outputs[0], labels.clone())


def per_column(trace: Trace, labels: Tensor) -> Tensor:
    """The unit of each column of (rows, columns) labels; units that share a column are the same unit."""
    along = varying(labels)
    if 0 not in along:
        return labels[0]
    if 1 not in along:
        trace.record.refuse(labels, f"its units are not along the feature dimension in {trace.place}")
        return torch.zeros_like(labels[0])
    first = labels.amax(0)
    trace.record.unite(labels, first.expand_as(labels))
    trace.record.refuse(first[(labels == 0).any(0)], f"its units meet a tensor that has no units in {trace.place}")
    return first


def matrix_product(trace: Trace, call: Call) -> None:
    """A linear map reads the units of its input and makes new ones; any other matrix product is not understood."""
    given = call.arguments
    weight = trace.weight_of(given["mat2"], transposed=True)
    if weight is None or given.get("alpha", 1) != 1 or given.get("beta", 1) != 1:
        unknown(trace, call)
    elif "mat1" in given:
        _linear(trace, call, weight, given["mat1"], given["self"])
    else:
        _linear(trace, call, weight, given["self"], None)


def linear(trace: Trace, call: Call) -> None:
    """`aten::linear`, where a backend doesn't split it up."""
    weight = trace.weight_of(call.arguments["weight"], transposed=False)
    if weight is None:
        unknown(trace, call)
    else:
        _linear(trace, call, weight, call.arguments["input"], call.arguments["bias"])


def _linear(trace: Trace, call: Call, weight: str, source: Tensor, bias: Tensor | None) -> None:
    labels = trace.labels(source)
    trace.use(weight, per_column(trace, labels.reshape(-1, labels.shape[-1])), source)
    output = call.outputs[0]
    made = trace.produce(weight).to(output.device)
    if bias is not None and trace.is_labelled(bias):
        shape = torch.broadcast_shapes(made.shape, bias.shape)  # type: ignore[no-untyped-call]
        made = _meet(trace, made.expand(shape), trace.labels(bias).to(made.device).expand(shape))
    elif bias is not None:
        _meet_unlabelled(trace, made, bias)
    trace.mark(output, made.expand(output.shape).clone())


def scalar(trace: Trace, call: Call) -> None:
    """A value goes back to Python, where it can steer anything."""
    trace.record.refuse(trace.labels(call.tensors[0]), f"its values steer Python code in {trace.place}")


def _table(rule: Rule, names: str) -> dict[str, Rule]:
    return {f"aten::{name}": rule for name in names.split()}


RULES: dict[str, Rule] = {
    **_table(
        move,
        "view _unsafe_view reshape t t_ transpose transpose_ permute expand unsqueeze unsqueeze_ squeeze squeeze_ "
        "select slice split split_with_sizes unbind cat stack clone repeat flip roll index index_select gather "
        "constant_pad_nd diagonal unfold tril triu pixel_shuffle pixel_unshuffle detach detach_ alias lift_fresh",
    ),
    **_table(
        keep,
        "_to_copy empty_like zeros_like ones_like full_like rand_like randn_like native_dropout bernoulli bernoulli_ "
        "normal_ uniform_ exponential_",
    ),
    **_table(overwrite, "copy_ fill_ zero_"),
    **_table(
        pointwise,
        "hardswish hardswish_ log_sigmoid_forward _prelu_kernel masked_fill masked_fill_ floor_divide "
        "rrelu_with_noise rrelu_with_noise_functional",
    ),
    **_table(
        reduce,
        "mean sum prod amax amin max min var std var_mean std_mean logsumexp linalg_vector_norm norm any all argmax "
        "argmin _softmax _log_softmax _safe_softmax cumsum cumprod",
    ),
    **_table(layer_norm, "native_layer_norm"),
    **_table(
        batch_norm,
        "native_batch_norm cudnn_batch_norm miopen_batch_norm _native_batch_norm_legit "
        "_native_batch_norm_legit_no_training _batch_norm_no_update",
    ),
    **_table(matrix_product, "mm addmm"),
    **_table(linear, "linear"),
    **_table(scalar, "_local_scalar_dense"),
}


def rule_for(func: Any) -> Rule:
    """The rule of an operation."""
    if (rule := RULES.get(func._schema.name)) is not None:
        return rule
    return pointwise if torch.Tag.pointwise in func.tags else unknown
