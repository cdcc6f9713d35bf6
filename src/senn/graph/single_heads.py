"""Guesses at attention with a single head, which a copy with two heads has to confirm.

One forward pass doesn't show which attribute counts heads where there is one, nor along which dimension a second one
would lie. So all rows that make queries, keys and values, and all columns that read what comes out, are taken for one
unit, and the attributes that may follow are tried: those of value 1 (numbers of heads), those of the size of all heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor, nn

from senn.graph.dim_order import in_order
from senn.graph.label_classes import LabelClassDim, LabelClasses
from senn.graph.sizes.size_tracker import SizeTracker
from senn.graph.sizes.symbolic_int import Key
from senn.graph.tracing.dot_products import DotProduct
from senn.graph.tracing.trace_recorder import TraceRecorder
from senn.graph.types import ChannelGroup, CoupledDim, SizeAttribute

MOST_GUESSES = 12
"""Guesses for one attention: two attributes of value 1 and two sizes give eight."""


def guess_single_heads(
    trace: TraceRecorder, sizes: SizeTracker, classes: LabelClasses
) -> list[tuple[ChannelGroup, ...]]:
    """Guess the group of each attention with a single head.

    Args:
        trace: the recorder of the pass.
        sizes: symbolic integers of the same pass.
        classes: label classes of the same pass.

    Returns:
        For each attention its guesses, which differ in the attributes that follow; the likeliest first.
    """
    guesses = []
    done: set[frozenset[int]] = set()
    for product in trace.dots.found:
        numbers = _numbers(product, classes)
        if not numbers or numbers in done:
            continue
        done.add(numbers)
        places = classes.places_of_all(numbers)
        # Norms over the features of the head stay as they are: all heads share their weights.
        shared = {
            name
            for use in trace.flow.norms
            if numbers & {*classes.numbers(use.label_map)}
            for name in (*use.weights, *use.shifts)
        }
        places = [place for place in places if place.tensor not in shared]
        if places:
            pairs = {*classes.units[product.pairs].tolist()}
            dims = [_coupled_dim(place, classes, pairs) for place in places]
            keys = _keys(trace.model, sizes, classes, numbers, len(pairs))
            name = classes.all[min(numbers)].name
            guesses.append(tuple(_guesses(trace.model, name, dims, *keys, len(pairs))))
    return guesses


def _numbers(product: DotProduct, classes: LabelClasses) -> frozenset[int]:
    """Label classes that take part; none unless queries, keys and values are all made by linear maps."""
    pairs = {*classes.numbers(product.pairs)}
    values = {number for labels in product.values for number in classes.numbers(labels)}
    return (
        frozenset(pairs | values) if pairs and values and -1 not in pairs | values else frozenset()
    )


def _coupled_dim(place: LabelClassDim, classes: LabelClasses, pairs: set[int]) -> CoupledDim:
    module, _, tensor = place.tensor.rpartition(".")
    return CoupledDim(
        role=place.role,
        module=module,
        tensor=tensor,
        dim=place.dim,
        index=place.index,
        n_segments=_parts(place, classes, pairs),
    )


def _parts(place: LabelClassDim, classes: LabelClasses, pairs: set[int]) -> int:
    """Number of parts (queries, keys, values) that lie one after the other."""
    labels = _labels_along(classes.trace, place.tensor, place.dim)
    if labels is None:
        return 1
    units = classes.units[labels[place.index.flatten()]].tolist()
    starts = [0]
    seen: set[int] = set()
    for position, unit in enumerate(units):
        # Keys have the units of the queries again; values have others.
        turns = position > 0 and (unit in pairs) != (units[position - 1] in pairs)
        if unit in seen or turns:
            starts.append(position)
            seen = set()
        seen.add(unit)
    size, parts = len(units), len(starts)
    even = size % parts == 0 and starts == list(range(0, size, size // parts))
    return parts if even else 1


def _labels_along(trace: TraceRecorder, tensor: str, dim: int) -> Tensor | None:
    """Return the labels of the positions along a dimension of a parameter; None if they aren't of one kind."""
    if (tensor, dim) in trace.rows:
        return trace.rows[tensor, dim]
    columns = [use.columns for use in trace.uses if (use.weight, use.in_dim) == (tensor, dim)]
    entries = [
        torch.arange(origin.start, origin.end)
        for origin in trace.record.origins
        if origin.name == tensor and len(origin.shape) == 1
    ]
    return next(iter([*columns, *entries]), None)


def _guesses(
    model: nn.Module,
    name: str,
    dims: Sequence[CoupledDim],
    ones: tuple[Key, ...],
    wholes: tuple[Key, ...],
    width: int,
) -> list[ChannelGroup]:
    """All guesses of one attention; `width` is the number of features of its head."""
    some = [ones, *((key,) for key in ones if len(ones) > 1), *([()] if ones else [])]
    others: list[tuple[Key, ...]] = [(), *((key,) for key in wholes), *combinations(wholes, 2)]
    base = _layer_sizes(model, dims)
    found = []
    for sized in others:
        for counted in some:
            attributes = {**base, **dict.fromkeys(counted, 1), **dict.fromkeys(sized, width)}
            found.append(
                ChannelGroup(
                    name=name,
                    width=1,
                    dims=tuple(in_order([*dims])),
                    attributes=tuple(
                        SizeAttribute(module=module, name=attribute, per_unit=by, item=item)
                        for (module, attribute, item), by in attributes.items()
                    ),
                )
            )
    return found[:MOST_GUESSES]


def _keys(
    model: nn.Module,
    sizes: SizeTracker,
    classes: LabelClasses,
    numbers: frozenset[int],
    width: int,
) -> tuple[tuple[Key, ...], tuple[Key, ...]]:
    """Attributes of value 1, and of the size of the head, that shape what the units lie in."""
    ones: dict[Key, None] = {}
    wholes: dict[Key, None] = {}
    for call in sizes.calls:
        held = [label_map for tensor in call.tensors for label_map in tensor.label_maps]
        if not any(numbers & {*classes.numbers(label_map)} for label_map in held):
            continue
        for source in call.sources:
            for key in source.keys:
                value = getattr(model.get_submodule(key[0]), key[1])
                if key[2] is None and value == 1:
                    ones[key] = None
                elif key[2] is None and value == width:
                    wholes[key] = None
    for number in numbers:
        for place in classes.all[number].dims or classes.places_of_all(frozenset({number})):
            module = place.tensor.rpartition(".")[0]
            if getattr(model.get_submodule(module), "num_heads", None) == 1:
                ones[module, "num_heads", None] = None
    return tuple(ones), tuple(wholes)


def _layer_sizes(model: nn.Module, dims: Sequence[CoupledDim]) -> dict[Key, int]:
    """Sizes that layers keep beside their weights."""
    found: dict[Key, int] = {}
    for coupled in dims:
        names = {
            "producer": ("out_features", "out_channels"),
            "consumer": ("in_features", "in_channels"),
        }
        module = model.get_submodule(coupled.module)
        if coupled.tensor.startswith("weight"):
            for name in names.get(coupled.role, ()):
                if isinstance(getattr(module, name, None), int):
                    found[coupled.module, name, None] = coupled.index.shape[1]
    return found
