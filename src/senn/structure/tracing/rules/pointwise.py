"""What each ATen operation does to labels.

A rule is a function `rule(trace, call)` that reads the coats of the call's inputs (`trace.coats(tensor)`), gives its
outputs theirs (`trace.dress(tensor, coats)`), and tells `trace.record` which units are the same (`unite`), which only
come and go together (`unite_along`) or must not change (`refuse`). `rule_for` picks it: the table `RULES` by
operation name without overload ("aten::view"), then any operation that torch tags as pointwise, then `unknown`, which
refuses every unit that the operation sees.

To teach another operation, write its rule and add it to `RULES`. Operations that only move entries need no
code: they have the rule `move`, which carries them out on the coats themselves. What reads and makes units is
in `maps`, normalisations in `norms`; a whole layer can have a rule of its own (`leaves`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from senn.structure.tracing.labels import varying

if TYPE_CHECKING:
    from senn.structure.tracing.recorder import Trace


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

    @property
    def operation(self) -> str:
        """The same for people: "add"."""
        return self.name.removeprefix("aten::").strip("_")

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
    for tensor in call.tensors:
        trace.cannot_read(tensor, call.operation)


def move(trace: Trace, call: Call) -> None:
    """Entries change places only: carry the operation out on the labels."""
    # A view without units is followed too: units may be written into it, and so into what it is a view of.
    aliases = any(result.alias_info is not None for result in call.func._schema.returns)
    if not aliases and not any(trace.is_labelled(tensor) for tensor in call.tensors):
        return
    source = call.args[0]
    moved = [source] if isinstance(source, Tensor) else list(source)
    known = {id(tensor) for tensor in moved}
    if any(id(tensor) not in known and trace.is_labelled(tensor) for tensor in call.tensors):
        unknown(trace, call)  # units that choose which entries move
        return
    worn = [trace.coats(tensor) for tensor in moved]
    coats = []
    for number in range(max(map(len, worn))):
        layer = {
            id(tensor): own[number] if number < len(own) else torch.zeros_like(own[0])
            for tensor, own in zip(moved, worn, strict=True)
        }
        coats.append(pytree.tree_leaves(_on_labels(call, layer)))
    for place, tensor in enumerate(call.outputs):
        if any(labels[place].shape != tensor.shape for labels in coats):
            unknown(trace, call)  # a view as another type cuts entries into pieces
            return
        trace.dress(tensor, [labels[place] for labels in coats])


def join(trace: Trace, call: Call) -> None:
    """`cat` and `stack`: set side by side, tensors have their other dimensions in common, so one set of units."""
    move(trace, call)
    output, parts = call.outputs[0], [part for part in call.args[0] if part.numel()]  # an empty one may have any shape
    if not trace.is_labelled(output):
        return
    new = call.name == "aten::stack"
    dim = (call.args[1] if len(call.args) > 1 else call.kwargs.get("dim", 0)) % output.dim()
    coats = []
    for number, coat in enumerate(trace.coats(output)):
        own = [trace.coats(part)[number] for part in parts if number < len(trace.coats(part))]
        if not bool(coat.any()) or (not new and any(dim in varying(labels) for labels in own)):
            coats.append(coat)
            continue
        shared = trace.record.unite_along(coat, {dim})
        for part, labels in zip(parts, own, strict=False):
            if not bool(labels.any()):
                meet_plain(trace, (shared.squeeze(dim) if new else shared).expand(part.shape), part)
        coats.append(shared.expand(coat.shape).clone())
    trace.dress(output, coats)


def _on_labels(call: Call, layer: dict[int, Tensor]) -> Any:
    """Run a moving operation on labels."""
    args, kwargs = pytree.tree_map_only(Tensor, lambda t: layer.get(id(t), t), (call.args, call.kwargs))
    if call.name == "aten::constant_pad_nd":
        return call.func(*args[:2])  # what is padded belongs to no unit, whatever its value
    if call.name in _ONLY_FLOATING:
        return call.func(args[0].double(), *args[1:], **kwargs).long()
    try:
        return call.func(*args, **kwargs)
    except RuntimeError:
        if call.name not in ("aten::view", "aten::_unsafe_view"):
            raise
        return args[0].reshape(call.args[1])  # labels may lie in memory in another way than the tensor


_ONLY_FLOATING = frozenset(
    (
        *("aten::im2col", "aten::channel_shuffle", "aten::native_channel_shuffle"),
        *(f"aten::{kind}_pad{rank}d" for kind in ("reflection", "replication") for rank in (1, 2, 3)),
    )
)


def keep(trace: Trace, call: Call) -> None:
    """The outputs have the units of the first input: casts, copies to a device, tensors made like another."""
    if trace.is_labelled(call.tensors[0]):
        for tensor in call.outputs:
            if tensor is not call.tensors[0] and tensor.shape == call.tensors[0].shape:
                trace.dress(tensor, [coat.to(tensor.device, copy=True) for coat in trace.coats(call.tensors[0])])


def overwrite(trace: Trace, call: Call) -> None:
    """A tensor, or a part of one, is filled with other entries."""
    target, *others = call.tensors
    source = call.arguments.get("src")
    if source is None:
        for value in others:
            trace.cannot_read(value, call.operation)
    if source is not None and trace.is_labelled(source):
        trace.dress(target, [coat.expand_as(target) for coat in trace.coats(source)])
    elif trace.is_labelled(target):
        for coat in trace.coats(target):
            coat.zero_()


def pointwise(trace: Trace, call: Call) -> None:
    """Entries that meet each other belong to the same unit."""
    dressed = [tensor for tensor in call.tensors if trace.is_labelled(tensor)]
    if dressed:
        shape = torch.broadcast_shapes(*(tensor.shape for tensor in call.tensors))  # type: ignore[no-untyped-call]
        device = dressed[0].device
        worn = [coat.to(device).broadcast_to(shape) for tensor in dressed for coat in trace.coats(tensor)]
        coats = together(trace, worn)
        for tensor in call.tensors:
            if not trace.is_labelled(tensor):
                coats = [meet_plain(trace, coat, tensor) for coat in coats]
        for tensor in call.outputs:
            if tensor.shape == shape:
                trace.dress(tensor, [coat.to(tensor.device, copy=True) for coat in coats])
    trace.note_activation(call)


def together(trace: Trace, worn: list[Tensor]) -> list[Tensor]:
    """The coats of what comes out where tensors with these coats, of one shape, meet entry by entry.

    Coats that vary along a common dimension name the same units; the others stay beside each other.
    """
    worn = [coat for coat in worn if bool(coat.any())]
    coats: list[Tensor] = []
    for coat in sorted(worn, key=lambda labels: not trace.record.is_made(labels)):  # parameters last
        along = varying(coat)
        for place, other in enumerate(coats):
            beside = varying(other)
            if along & beside or not along or not beside:
                coats[place] = _meet(trace, other, coat, beside, along)
                break
        else:
            if not coats or trace.record.is_made(coat):
                coats.append(coat)
    return coats


def _meet(trace: Trace, first: Tensor, second: Tensor, along_first: set[int], along_second: set[int]) -> Tensor:
    """Unite two coats of one shape that meet entry by entry; return the coat of what comes out."""
    if torch.equal(first, second):
        return first
    record = trace.record
    if along_first and along_second:
        if not record.is_made(second) and not along_first <= along_second:
            return pinned(trace, first, along_first & along_second)  # a table that all of several groups share
        record.unite(first, second)
        return torch.where(first != 0, first, second)
    if not along_first and not along_second:
        if not (_is_shared(trace, first) or _is_shared(trace, second)):
            record.unite(first, second)
            return torch.where(first != 0, first, second)
        return first if _is_shared(trace, second) else second
    if not _is_shared(trace, second if along_first else first):
        record.refuse(second if along_first else first, f"its units are spread over other units in {trace.place}")
    return first if along_first else second


def _is_shared(trace: Trace, labels: Tensor) -> bool:
    """Whether a label that doesn't vary is that of a parameter with one entry for all units."""
    owner = trace.record.owner(int(labels.max()))
    return owner.shared and owner.count == 1


def pinned(trace: Trace, coat: Tensor, dims: set[int]) -> Tensor:
    """The coat after its units along some dimensions, whose size is fixed, have become one; they vary along others."""
    return trace.record.unite_along(coat, dims).expand_as(coat)


def meet_plain(trace: Trace, coat: Tensor, other: Tensor) -> Tensor:
    """A tensor without units may meet units only where it is the same for all of them."""
    offset = coat.dim() - other.dim()
    along = varying(coat)
    fixed = {dim for dim in along if dim >= offset and other.shape[dim - offset] > 1}
    if not fixed:
        return coat
    if _is_uniform(other, {dim - offset for dim in fixed}):
        trace.dress_late(other, coat)
        return coat
    if fixed < along:
        return pinned(trace, coat, fixed)
    trace.record.refuse(coat, f"its units meet a tensor that has no units in {trace.place}")
    return coat


def _is_uniform(tensor: Tensor, dims: set[int]) -> bool:
    """Whether all entries along some dimensions are the same: zeros of a first state, a mask."""
    return all(bool((tensor == tensor.narrow(dim, 0, 1)).all()) for dim in dims)


def mixed(trace: Trace, coat: Tensor, dims: set[int], how: str) -> Tensor | None:
    """A coat whose entries along `dims` are mixed: None (and refused) if that mixes whole units."""
    along = varying(coat)
    if not along & dims:
        return coat
    if along <= dims:
        trace.record.refuse(coat, f"{trace.place} mixes its units ({how})")
        return None
    return pinned(trace, coat, along & dims)


def reduce(trace: Trace, call: Call) -> None:
    """Reduction over some dimensions: refused if it mixes units, else the remaining dimensions keep them."""
    source = call.tensors[0]
    if not trace.is_labelled(source):
        return
    dims = dimensions(call, source.dim())
    kept = [mixed(trace, coat, dims, call.operation) for coat in trace.coats(source)]
    coats = [coat for coat in kept if coat is not None]
    for tensor in call.outputs:
        if tensor.shape == source.shape:
            trace.dress(tensor, [coat.clone() for coat in coats])
        else:
            reduced = [coat.amax(sorted(dims), keepdim=True) if dims else coat for coat in coats]
            trace.dress(tensor, [coat.reshape(tensor.shape).clone() for coat in reduced])


def dimensions(call: Call, rank: int) -> set[int]:
    """The dimensions over which an operation mixes entries; all of them unless it names some."""
    if "normalized_shape" in call.arguments:
        return set(range(rank - len(call.arguments["normalized_shape"]), rank))
    dims = call.arguments.get("dim")
    if dims is None or dims == []:
        return set(range(rank))
    return {dim % max(rank, 1) for dim in ([dims] if isinstance(dims, int) else dims)}


def window(trace: Trace, call: Call) -> None:
    """Pooling and resampling of each channel over its last dimensions, as many as the operation's name says."""
    source = call.tensors[0]
    if not trace.is_labelled(source):
        return
    spatial = next(number for number in (1, 2, 3) if f"{number}d" in call.name)
    dims = set(range(source.dim() - spatial, source.dim()))
    kept = [mixed(trace, coat, dims, call.operation) for coat in trace.coats(source)]
    for tensor in call.outputs:
        worn = [coat.amax(sorted(dims), keepdim=True).expand(tensor.shape).clone() for coat in kept if coat is not None]
        trace.dress(tensor, worn)


def glu(trace: Trace, call: Call) -> None:
    """The two halves of a dimension meet."""
    source = call.tensors[0]
    if trace.is_labelled(source):
        halves = [coat.chunk(2, call.arguments.get("dim", -1)) for coat in trace.coats(source)]
        trace.dress(call.outputs[0], [c.clone() for c in together(trace, [half for pair in halves for half in pair])])


def scalar(trace: Trace, call: Call) -> None:
    """A value goes back to Python, where it can steer anything."""
    trace.refuse(call.tensors[0], f"its values steer Python code in {trace.place}")


def _table(rule: Rule, names: str) -> dict[str, Rule]:
    return {f"aten::{name}": rule for name in names.split()}


RULES: dict[str, Rule] = {
    **_table(
        move,
        "view _unsafe_view reshape _reshape_alias t t_ transpose transpose_ permute expand unsqueeze unsqueeze_ "
        "squeeze squeeze_ select slice split split_with_sizes unsafe_split unsafe_split_with_sizes unsafe_chunk unbind "
        "clone repeat repeat_interleave flip roll index index_select gather constant_pad_nd diagonal unfold "
        "tril triu pixel_shuffle pixel_unshuffle detach detach_ alias lift_fresh im2col channel_shuffle "
        "native_channel_shuffle reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d "
        "replication_pad2d replication_pad3d",
    ),
    **_table(join, "cat stack"),
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
    **_table(
        window,
        "max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices avg_pool1d avg_pool2d avg_pool3d "
        "_adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_avg_pool1d adaptive_max_pool2d adaptive_max_pool3d "
        "upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_linear1d upsample_bilinear2d "
        "_upsample_bilinear2d_aa upsample_bicubic2d _upsample_bicubic2d_aa upsample_trilinear3d "
        "_upsample_nearest_exact1d "
        "_upsample_nearest_exact2d _upsample_nearest_exact3d fractional_max_pool2d",
    ),
    **_table(glu, "glu"),
    **_table(scalar, "_local_scalar_dense"),
}


def rule_for(func: Any) -> Rule:
    """The rule of an operation."""
    if (rule := RULES.get(func._schema.name)) is not None:
        return rule
    return pointwise if torch.Tag.pointwise in func.tags else unknown
