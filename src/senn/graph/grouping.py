"""Channel groups, built from label classes that only change together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from senn.graph.dim_order import in_order
from senn.graph.label_classes import LabelClassDim, LabelClasses
from senn.graph.norm_record import Norm
from senn.graph.single_heads import guess_single_heads
from senn.graph.sizes.size_tracker import SizeTracker
from senn.graph.sizes.solver import NoSolutionError, SizeSolver, Symbol
from senn.graph.sizes.symbolic_int import Key
from senn.graph.tracing.labels import distinct
from senn.graph.tracing.recorded import NormUse
from senn.graph.tracing.trace_recorder import TraceRecorder
from senn.graph.types import ChannelGroup, CoupledDim, Refusal, Role, SizeAttribute

# Attributes that hold a size, by what the module's tensor is to the units. They are rewritten even where the forward
# doesn't read them (`nn.Linear.out_features`); those that it reads, the solver finds under any name.
_SIZES: dict[Role, tuple[str, ...]] = {
    "producer": ("out_features", "out_channels", "embedding_dim", "nf"),
    "elementwise": ("num_features", "num_parameters", "num_channels", "embedding_dim"),
    "consumer": ("in_features", "in_channels", "nx"),
}
_DEPTHWISE = ("in_channels", "out_channels", "groups")


@dataclass(frozen=True, kw_only=True, eq=False)
class FoundGroups:
    """What one forward pass shows.

    Attributes:
        groups: all groups in order of use.
        refusals: of units that can't change in number.
        located_in: by weight, names of the groups whose units are locations to it.
        guesses: groups that one pass can't show; see `single_heads`.
        tensors: full names of all tensors that make, read or go along with units, of groups or refused ones.
    """

    groups: list[ChannelGroup]
    refusals: list[Refusal]
    located_in: dict[str, set[str]]
    tensors: set[str]
    guesses: list[tuple[ChannelGroup, ...]]


def build_groups(
    trace: TraceRecorder, sizes: SizeTracker, fixed: Mapping[str, str], tied: Mapping[str, str]
) -> FoundGroups:
    """Build the channel groups that one forward pass shows; of outputs alone, where these may grow.

    Args:
        trace: the recorder of the pass.
        sizes: symbolic integers of the same pass.
        fixed: weights whose shape must not change, by full name, and why (a verb phrase).
        tied: full names of tensors that share memory with another tensor object, and its name.

    Returns:
        All groups in order of use, refusals of those that can't change, and where units of either lie.
    """
    builder = _Builder(trace, fixed, tied)
    solver = SizeSolver(sizes, builder.classes, builder.counted_attributes())
    groups: list[ChannelGroup] = []
    refused: list[Refusal] = []
    taken: dict[int, str] = {}  # label classes that are in a group, and the group's name
    for number, one in enumerate(builder.classes.all):
        if number in taken or (trace.finds_output is not None and not one.is_output):
            continue
        try:
            if one.reason is not None:
                raise NoSolutionError(one.reason, one.line)
            change = solver.solve(number)
            members = sorted(symbol for symbol in change if isinstance(symbol, int))
            # Coupling needn't be symmetric: one class may change alone that another can't change without.
            leader = next((taken[other] for other in members if other in taken), None)
            if leader is not None:
                raise NoSolutionError(f"its size follows that of {leader}, which changes by itself")
            groups.append(builder.group(number, members, change))
            taken |= dict.fromkeys(members, one.name)
        except NoSolutionError as reason:
            refused.append(Refusal(place=one.name, reason=str(reason), line=reason.line))
    return FoundGroups(
        groups=groups,
        refusals=refused,
        located_in=_located_in(builder, taken),
        tensors=builder.classes.tensors(),
        guesses=guess_single_heads(trace, sizes, builder.classes),
    )


def _located_in(builder: _Builder, taken: Mapping[int, str]) -> dict[str, set[str]]:
    """Return, by weight, the groups that lie across the features of its inputs."""
    located: dict[str, set[str]] = {}
    for use in builder.trace.uses:
        columns = set(builder.classes.numbers(use.columns))
        for label_map in use.source:
            across = set(builder.classes.numbers(label_map)) - columns
            names = {taken[number] for number in across if number in taken}
            located.setdefault(use.weight, set()).update(names)
    return located


class _Builder:
    """Puts channel groups together from the label classes of one forward pass."""

    def __init__(
        self, trace: TraceRecorder, fixed: Mapping[str, str], tied: Mapping[str, str]
    ) -> None:
        self.model, self.trace, self.tied = trace.model, trace, tied
        self.classes = LabelClasses(trace, fixed)

    def counted_attributes(self) -> dict[int, dict[Key, int]]:
        """Find the numbers of heads and groups that count a label class but appear in no Python code."""
        found: dict[int, dict[Key, int]] = {}
        for number, one in enumerate(self.classes.all):
            for place in one.dims:
                module = place.tensor.rpartition(".")[0]
                projects = (
                    place.tensor.endswith(("in_proj_weight", "q_proj_weight")) and place.dim == 0
                )
                if projects and isinstance(self.model.get_submodule(module), nn.MultiheadAttention):
                    found.setdefault(number, {})[module, "num_heads", None] = 1
        for module, channels in self.trace.groups:
            if not isinstance(getattr(self.model.get_submodule(module), "num_groups", None), int):
                continue
            for number in distinct(self.classes.class_of[channels]).tolist():
                if number >= 0:
                    found.setdefault(number, {})[module, "num_groups", None] = 1
        return found

    def group(self, first: int, members: list[int], change: Mapping[Symbol, int]) -> ChannelGroup:
        """Make one group of label classes that change together.

        A unit of the group is `change[member]` units of each member: one head, say, and its share of the stream.
        """
        classes = self.classes.all
        if len({classes[number].width / change[number] for number in members}) > 1:
            names = ", ".join(classes[number].name for number in members)
            raise NoSolutionError(
                f"its size is tied to those of {names} in a way that isn't understood"
            )
        width = classes[first].width // change[first]
        dims: list[CoupledDim] = []
        for number in members:
            uses = self._norm_uses({number})
            for place in classes[number].dims:
                dims.append(self._coupled_dim(place, width, change[number], uses))
        dims = in_order(dims)
        solved = {key: by for key, by in change.items() if not isinstance(key, int)}
        return ChannelGroup(
            name=classes[first].name,
            width=width,
            dims=tuple(dims),
            attributes=self._attributes(dims, solved),
            norms=self._norms(set(members)),
        )

    def _coupled_dim(
        self, place: LabelClassDim, width: int, units: int, norms: list[NormUse]
    ) -> CoupledDim:
        """Make a dimension of a group; one unit of it is so many `units` of the label class."""
        if place.tensor in self.tied:  # resized, the two objects would no longer share their memory
            raise NoSolutionError(
                f"{place.tensor} shares its memory with {self.tied[place.tensor]}"
            )
        index = place.index.reshape(width, -1).sort(1).values
        n_segments = segments(index)
        if n_segments is None and units > 1:
            # Not sorted: within each segment, the positions of the unit's members side by side, in their own order.
            by_position = place.index.T.reshape(-1, width, units)
            index = by_position.transpose(0, 1).reshape(width, -1)
            n_segments = segments(index)
        if n_segments is None:
            raise NoSolutionError(
                f"its units lie in {place.tensor} in an order that isn't understood"
            )
        role, normed = place.role, bool(norms)
        terms: dict[str, tuple[str, ...]] = {}
        for use in norms:
            terms |= use.inputs.gains
        past_norms = (place.tensor, place.dim) in self.trace.sources.raw_reads and not place.normed
        if normed and role == "consumer" and (place.tensor, place.dim) in self.trace.rows:
            role = "producer"  # a tied embedding makes the units along the dimension in which the head reads them
        module, _, tensor = place.tensor.rpartition(".")
        return CoupledDim(
            role=role,
            module=module,
            tensor=tensor,
            dim=place.dim,
            index=index,
            n_segments=n_segments,
            behind_norm=normed and (role != "consumer" or place.normed),
            gains=terms.get(place.tensor, ()) if role == "producer" else (),
            stream_power=int(role != "consumer" and place.tensor in terms)
            - int(normed and role == "consumer" and past_norms),
        )

    def _norm_uses(self, members: set[int]) -> list[NormUse]:
        """Normalizations over the units of some label classes, in order of use."""
        found = []
        for use in self.trace.flow.norms:
            if not members.isdisjoint(self.classes.numbers(use.label_map)):
                found.append(use)
        return found

    def _norms(self, members: set[int]) -> tuple[Norm, ...]:
        """Normalizations over the units of some label classes, each once."""
        places = [place for number in members for place in self.classes.all[number].dims]
        found: dict[object, Norm] = {}
        for use in self._norm_uses(members):
            where = use.module or "the model's own forward"
            if use.blocked is not None and use.power:
                raise NoSolutionError(
                    f"{where} normalizes over its units and has no weight to make up for it: {use.blocked} comes after"
                )
            scaled = set(use.reads)
            scaled |= {(place.tensor, place.dim) for place in places if place.tensor in use.weights}
            norm = Norm(
                module=use.module,
                kind=use.kind,
                eps=None if use.eps is None else use.eps[1],
                eps_module="" if use.eps is None else use.eps[0],
                eps_power=use.eps_power,
                fixed_eps=use.fixed_eps,
                scaled=tuple(sorted(scaled)),
                shifts=tuple(use.shifts),
                power=use.power,
                spare=use.spare,
                other_power=use.other_power,
                obstacle=use.inputs.obstacle,
            )
            key = use.module, use.eps, use.power, use.spare
            found[key] = _joined(found[key], norm) if key in found else norm
        if len({norm.kind for norm in found.values()}) > 1:
            raise NoSolutionError("normalizations of two kinds mix its units")
        return tuple(found.values())

    def _attributes(
        self, dims: list[CoupledDim], solved: Mapping[Key, int]
    ) -> tuple[SizeAttribute, ...]:
        """Attributes that hold the sizes of dimensions, and those that were solved for."""
        sizes: dict[Key, int] = {}
        for coupled in dims:
            module = self.model.get_submodule(coupled.module)
            for name in _size_names(coupled, module):
                if not isinstance(getattr(module, name, None), int):
                    continue
                per_unit = coupled.index.shape[1]
                reads = name in ("in_channels", "in_features") and coupled.role == "consumer"
                makes = name == "out_channels" and coupled.role == "producer" and coupled.dim == 1
                if reads or makes:  # a grouped weight counts the channels of one group only
                    per_unit *= getattr(module, "groups", 1)
                sizes[coupled.module, name, None] = per_unit
            shape = getattr(module, "normalized_shape", None)
            if coupled.role == "elementwise" and isinstance(shape, tuple) and len(shape) == 1:
                sizes[coupled.module, "normalized_shape", 0] = coupled.index.shape[1]
        sizes |= solved  # what the forward computes with overrides what the names suggest
        return tuple(
            SizeAttribute(module=module, name=name, per_unit=per_unit, item=item)
            for (module, name, item), per_unit in sizes.items()
        )


def _joined(first: Norm, second: Norm) -> Norm:
    """Two uses of one normalization as one."""
    return replace(
        first,
        scaled=tuple(sorted({*first.scaled, *second.scaled})),
        shifts=tuple(dict.fromkeys([*first.shifts, *second.shifts])),
        obstacle=first.obstacle or second.obstacle,
    )


def _size_names(coupled: CoupledDim, module: nn.Module) -> tuple[str, ...]:
    """Names of attributes that may hold the size of a dimension."""
    if coupled.role == "producer" and coupled.tensor.startswith("bias"):
        return ()  # its weight says the same
    if isinstance(module, nn.Embedding | nn.EmbeddingBag) and coupled.dim == 0:
        return ("num_embeddings",)  # a tied head makes outputs with the rows of a table
    is_convolution = isinstance(module, nn.modules.conv._ConvNd)
    if coupled.role == "elementwise" and is_convolution and coupled.tensor == "weight":
        return _DEPTHWISE
    return _SIZES[coupled.role]


def segments(index: Tensor) -> int | None:
    """Count the segments of a layout; see `CoupledDim.n_segments`.

    Args:
        index: (width, k) long, positions of each unit in ascending order.

    Returns:
        The number of segments; None if the units are laid out in another way.

    >>> segments(torch.tensor([[0, 1], [2, 3]]))  # each unit's positions are neighbors
    1
    >>> segments(torch.tensor([[0, 2], [1, 3]]))  # units alternate
    2
    """
    width, k = index.shape
    first = index[0]
    jumps = (first.diff() != 1).nonzero()
    longest = int(jumps[0]) + 1 if len(jumps) else k
    # The first unit's positions up to its first jump are one block. Where there is a single unit, or neighbors of one
    # segment touch those of the next, blocks look longer than they are: then try blocks of one position.
    for block in (longest, 1):
        if k % block:
            continue
        starts = first.view(-1, block)[:, :1]
        within = torch.arange(block)
        shifted = first + block * torch.arange(width)[:, None]
        if torch.equal(first.view(-1, block), starts + within) and torch.equal(index, shifted):
            return k // block
    return None
