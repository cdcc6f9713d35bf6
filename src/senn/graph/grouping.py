"""Spaces put together from elements: which only change together, and which Python numbers change with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from senn.graph.label_classes import LabelClassDim, LabelClasses
from senn.graph.sizes.solver import NoSolutionError, SizeSolver, Symbol
from senn.graph.sizes.symbolic_int import Key, Numbers
from senn.graph.tracing.labels import distinct
from senn.graph.tracing.recorder import TraceRecorder
from senn.graph.types import ChannelGroup, CoupledDim, Norm, Refusal, Role, SizeAttribute

# Python attributes that hold a size, by what the module's tensor is to the units.
_SIZES: dict[Role, tuple[str, ...]] = {
    "producer": ("out_features", "out_channels", "embedding_dim", "nf"),
    "elementwise": ("num_features", "num_parameters", "num_channels"),
    "consumer": ("in_features", "in_channels", "nx"),
}
_DEPTHWISE = ("in_channels", "out_channels", "groups")
_EPS = ("eps", "variance_epsilon", "epsilon", "norm_eps")


def build_groups(
    trace: TraceRecorder, numbers: Numbers, fixed: Mapping[str, str], tied: Mapping[str, str]
) -> tuple[list[ChannelGroup], list[Refusal]]:
    """Build the spaces that one forward pass shows.

    Args:
        trace: of the forward pass.
        numbers: of the same pass.
        fixed: weights whose shape must not change, by full name, and why (a verb phrase).
        tied: full names of tensors that share memory with another tensor object, and which.

    Returns:
        All spaces in order of use, and refusals of those that can't change.
    """
    builder = _Builder(trace, fixed, tied)
    coupling = SizeSolver(numbers, builder.elements, builder.groups_along())
    groups: list[ChannelGroup] = []
    refused: list[Refusal] = []
    taken: dict[int, str] = {}
    for number, element in enumerate(builder.elements.all):
        if number in taken:
            continue
        try:
            if element.reason is not None:
                raise NoSolutionError(element.reason)
            change = coupling.solve(number)
            members = sorted(symbol for symbol in change if isinstance(symbol, int))
            for other in members:
                if other in taken:
                    raise NoSolutionError(f"its size follows that of {taken[other]}, which changes by itself")
            groups.append(builder.group(number, members, change))
            taken |= dict.fromkeys(members, element.name)
        except NoSolutionError as reason:
            refused.append(Refusal(place=element.name, reason=str(reason)))
    return groups, refused


class _Builder:
    """Puts spaces together from the elements of one forward pass."""

    def __init__(self, trace: TraceRecorder, fixed: Mapping[str, str], tied: Mapping[str, str]) -> None:
        self.model, self.trace, self.tied = trace.model, trace, tied
        self.elements = LabelClasses(trace, fixed)

    def groups_along(self) -> dict[int, dict[Key, int]]:
        """Numbers of groups grow with the units that are the groups, numbers of heads with heads."""
        found: dict[int, dict[Key, int]] = {}
        for number, element in enumerate(self.elements.all):
            for part in element.parts:
                module = part.tensor.rpartition(".")[0]
                projects = part.tensor.endswith(("in_proj_weight", "q_proj_weight")) and part.dim == 0
                if projects and isinstance(self.model.get_submodule(module), nn.MultiheadAttention):
                    found.setdefault(number, {})[module, "num_heads", None] = 1
        for module, channels in self.trace.groups:
            if isinstance(getattr(self.model.get_submodule(module), "num_groups", None), int):
                for number in distinct(self.elements.element_of[channels]).tolist():
                    if number >= 0:
                        found.setdefault(number, {})[module, "num_groups", None] = 1
        return found

    def group(self, first: int, members: list[int], change: Mapping[Symbol, int]) -> ChannelGroup:
        """One space of elements that change together, a unit of it being so many units of each."""
        elements = self.elements.all
        widths = {elements[number].width / change[number] for number in members}
        if len(widths) > 1:
            names = ", ".join(elements[number].name for number in members)
            raise NoSolutionError(f"its size is tied to those of {names} in a way that isn't understood")
        width = elements[first].width // change[first]
        coupled_dims: list[CoupledDim] = []
        for number in members:
            quiet = bool(self._norms({number}))
            coupled_dims += [self._slot(part, width, change[number], quiet) for part in elements[number].parts]
        coupled_dims = self._merged(coupled_dims)
        makers = [coupled.module for coupled in coupled_dims if coupled.role == "producer"]
        order: dict[str, Callable[[str], int]] = {
            "producer": makers.index,
            "elementwise": lambda _: len(makers),
            "consumer": lambda _: len(makers) + 1,
        }
        coupled_dims.sort(key=lambda coupled: order[coupled.role](coupled.module))
        norms = self._norms(set(members))
        attributes = self._attributes(coupled_dims, {key: by for key, by in change.items() if not isinstance(key, int)})
        return ChannelGroup(
            name=elements[first].name,
            width=width,
            dims=tuple(coupled_dims),
            attributes=attributes,
            granularity=1,
            norms=norms,
        )

    def _slot(self, part: LabelClassDim, width: int, units: int, quiet: bool) -> CoupledDim:
        """The slot of a part, `units` units of its element being one unit of the space."""
        if part.tensor in self.tied:
            raise NoSolutionError(f"{part.tensor} shares its memory with {self.tied[part.tensor]}")
        index = part.index.reshape(width, -1).sort(1).values
        runs = segments(index)
        if runs is None and units > 1:  # any units of an element may be one unit of the space
            index = part.index.T.reshape(part.index.shape[1], width, units).transpose(0, 1).reshape(width, -1)
            runs = segments(index)
        if runs is None:
            raise NoSolutionError(f"its units lie in {part.tensor} in an order that isn't understood")
        module, _, tensor = part.tensor.rpartition(".")
        role: Role = "producer" if quiet and self._is_made(part) else part.role
        quiet = quiet and (role != "consumer" or part.normed)
        return CoupledDim(
            role=role, module=module, tensor=tensor, dim=part.dim, index=index, n_segments=runs, behind_norm=quiet
        )

    def _is_made(self, part: LabelClassDim) -> bool:
        """Whether units are made along that dimension, whoever else reads them there (a tied embedding)."""
        return (part.tensor, part.dim) in self.trace.rows and part.role == "consumer"

    def _merged(self, coupled_dims: list[CoupledDim]) -> list[CoupledDim]:
        """Slots of one tensor and dimension as one: two elements of a space may lie in it, one after the other."""
        places: dict[tuple[str, int], list[CoupledDim]] = {}
        for coupled in coupled_dims:
            places.setdefault((coupled.name, coupled.dim), []).append(coupled)
        merged = []
        for same in places.values():
            if len({coupled.role for coupled in same}) > 1:
                raise NoSolutionError(f"{same[0].name} both makes and reads its units")
            merged += same
        return merged

    def _norms(self, members: set[int]) -> tuple[Norm, ...]:
        """Normalisations that mix the units."""
        found: dict[str, Norm] = {}
        for use in self.trace.norms:
            within = set(self.elements.element_of[distinct(use.label_map.cpu())].tolist()) - {-1}
            if not within & members:
                continue
            module = self.model.get_submodule(use.module)
            if not use.weighted:
                where = use.module or "the model's own forward"
                raise NoSolutionError(f"{where} normalises over its units and has no weight to make up for it")
            eps = next((name for name in _EPS if isinstance(getattr(module, name, None), float)), None)
            found[use.module] = Norm(module=use.module, kind="rms" if use.kind == "rms" else "layer", eps=eps)
        if len({norm.kind for norm in found.values()}) > 1:
            raise NoSolutionError("normalisations of two kinds mix its units")
        return tuple(found.values())

    def _attributes(self, coupled_dims: list[CoupledDim], solved: Mapping[Key, int]) -> tuple[SizeAttribute, ...]:
        """Python attributes that hold the sizes of the slots' dimensions, and those that were solved for."""
        sizes: dict[Key, int] = {}
        for coupled in coupled_dims:
            module = self.model.get_submodule(coupled.module)
            names = _SIZES[coupled.role]
            if (
                coupled.role == "elementwise"
                and isinstance(module, nn.modules.conv._ConvNd)
                and coupled.tensor == "weight"
            ):
                names = _DEPTHWISE
            elif coupled.role == "producer" and coupled.tensor.startswith("bias"):
                continue
            for name in names:
                if isinstance(getattr(module, name, None), int):
                    count = coupled.index.shape[1]
                    read = name in ("in_channels", "in_features") and coupled.role == "consumer"
                    if read or (name == "out_channels" and coupled.role == "producer" and coupled.dim == 1):
                        count *= getattr(module, "groups", 1)
                    sizes[coupled.module, name, None] = count
            shape = getattr(module, "normalized_shape", None)
            if coupled.role == "elementwise" and isinstance(shape, tuple) and len(shape) == 1:
                sizes[coupled.module, "normalized_shape", 0] = coupled.index.shape[1]
        sizes |= solved
        return tuple(
            SizeAttribute(module=module, name=name, per_unit=by, item=item)
            for (module, name, item), by in sizes.items()
        )


def segments(index: Tensor) -> int | None:
    """In how many runs of all units a (width, k) index is laid out (see `Slot.runs`); None if in another way."""
    width, k = index.shape
    jumps = (index[0, 1:] - index[0, :-1] != 1).nonzero().flatten() + 1
    for block in [int(jumps[0]) if len(jumps) else k, 1]:
        first = index[0].view(-1, block)[:, :1] if k % block == 0 else None
        if first is None or not torch.equal(index[0].view(-1, block), first + torch.arange(block)):
            continue
        if torch.equal(index, index[0] + block * torch.arange(width)[:, None]):
            return k // block
    return None
