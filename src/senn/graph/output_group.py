"""Outputs and tables of tokens that can grow on purpose: which rows make them, and which numbers say how many.

No growth round may change what a model returns, so a `DependencyGraph` refuses outputs. Here their owner asks for more:
new classes, or new tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from senn.errors import SennError, UnsupportedError
from senn.graph.forward_passes import examples_of, forward_passes
from senn.graph.grouping import build_groups
from senn.graph.input_checks import check_inputs, check_model
from senn.graph.model_copy import copy_model
from senn.graph.trace_graph import fixed_weights, shared_memory
from senn.graph.tracing.trace_recorder import TraceRecorder
from senn.graph.tracing.tracer import trace_forward
from senn.graph.types import ChannelGroup, CoupledDim, SizeAttribute
from senn.pytree import Inputs, Output, prediction

TABLES = (nn.Embedding, nn.EmbeddingBag)
"""Modules that hold a vector for each token."""

_CLASS_NUMBERS = frozenset(
    (
        *("num_classes", "n_classes", "nb_classes", "num_labels", "n_labels", "num_outputs"),
        *("n_outputs", "output_size", "output_dim", "out_features", "out_channels", "nf"),
    )
)
_TABLE_NUMBERS = frozenset(("num_embeddings",))
_TOKEN_NUMBERS = _TABLE_NUMBERS | {
    *("vocab_size", "vocabulary_size", "n_vocab", "num_tokens", "n_tokens", "out_features", "nf")
}
LABELS = ("id2label", "label2id")
"""Tables of a configuration of transformers with an entry for each class."""


@dataclass(frozen=True, kw_only=True, eq=False)
class OutputGroup(ChannelGroup):
    """Rows whose number is the number of a model's outputs, of its tokens, or of both.

    Nothing in the model has to read them. Where they are outputs, the last entries of an output are new after a Widen.

    Attributes:
        is_output: False for a table of tokens alone.
    """

    is_output: bool = True


def find_outputs(model: nn.Module, inputs: Inputs, output: Output | None = None) -> OutputGroup:
    """Find the rows of linear maps that make a model's outputs.

    Args:
        model: any module; it isn't run, and left as it was.
        inputs: as of `senn.analyze`, a list for several calls.
        output: finds, in what the model returns, the tensor that the loss takes; None where that is a tensor or has
            `logits`, or where only one tensor is floating-point.

    Returns:
        The group: one unit for each output.

    Raises:
        SennError: the inputs don't fit the model.
        UnsupportedError: outputs can't be told, or aren't rows of linear maps one to one.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> group = find_outputs(model, torch.zeros(5, 3))
        >>> group.name, group.width, [coupled.name for coupled in group.dims]
        ('2', 2, ['2.weight', '2.bias'])
    """
    check_model(model)
    examples = examples_of(inputs)
    for example in examples:
        check_inputs(model, example)
    copied = copy_model(model)
    passes, _ = forward_passes(copied, examples, model)
    trace, sizes = trace_forward(copied, passes, lambda result: prediction(result, output))
    fixed = fixed_weights(copied, trace)
    found = build_groups(trace, sizes, fixed, shared_memory(model))
    maps = [labels for several in trace.outputs for labels in several]
    origins = _origins(trace, maps)
    if not origins:
        why = [f"{name} {reason}" for name, reason in fixed.items()]
        why += [reason for _, reason, _ in trace.record.refusals]
        raise UnsupportedError(
            f"the outputs can't grow: {(why or ['they are no rows of a linear map'])[-1]}"
        )
    group = next((one for one in found.groups if _names(one) & origins), None)
    if group is None:
        said = next((one for one in found.refusals if one.place in origins), None)
        if said is None:
            raise UnsupportedError(f"the outputs, made by {_listed(origins)}, can't grow")
        line = f" ({said.line})" if said.line else ""
        raise UnsupportedError(f"the outputs of '{said.place}' can't grow: {said.reason}{line}")
    if group.norms:
        raise UnsupportedError(f"the outputs of '{group.name}' can't grow: a norm mixes them")
    _check_order(trace, group)
    numbers = (*group.attributes, *_written(model, group, _CLASS_NUMBERS))
    return OutputGroup(**{**vars(group), "attributes": _distinct(numbers)})


def find_tokens(
    model: nn.Module,
    inputs: Inputs,
    *,
    embedding: str | None = None,
    heads: Sequence[str] | None = None,
    output: Output | None = None,
) -> OutputGroup:
    """Find the table that holds a vector for each token, and the outputs that stand for the same tokens.

    Args:
        model: any module; it isn't run, and left as it was.
        inputs: as of `senn.analyze`.
        embedding: name of the table; None for that of `get_input_embeddings()`, or the only one.
        heads: names of the maps whose outputs are the tokens'; None for a tied one, or that of
            `get_output_embeddings()`; none of both where no other map has as many rows.
        output: as of `find_outputs`.

    Returns:
        The group: one unit for each token.

    Raises:
        SennError: a name is none of the model's, or the inputs don't fit the model.
        UnsupportedError: it can't be told which table or which outputs are meant.
    """
    check_model(model)
    name, table = _table(model, embedding)
    weight = _name_of(model, table.weight)
    rows = _rows(weight, table.num_embeddings)
    dims: tuple[CoupledDim, ...] = (rows,)
    attributes: tuple[SizeAttribute, ...] = ()
    is_output = _has_head(model, name, table, heads, inputs, output)
    if is_output:
        made = find_outputs(model, inputs, output)
        missing = sorted({*(heads or ())} - {one.map for one in made.dims} - {*_tied(model, table)})
        if missing:
            raise UnsupportedError(f"'{missing[0]}' doesn't make the model's outputs")
        if made.width != table.num_embeddings:
            raise UnsupportedError(
                f"'{name}' has {table.num_embeddings} rows, and the model {made.width} outputs, so these aren't its "
                "tokens'"
            )
        dims = made.dims if weight in {one.name for one in made.dims} else (rows, *made.dims)
        attributes = made.attributes
    group = OutputGroup(
        name=name, width=table.num_embeddings, dims=dims, attributes=attributes, is_output=is_output
    )
    # With `heads=[]` a number further up may say how many outputs there are.
    names = _TABLE_NUMBERS if heads is not None and not heads else _TOKEN_NUMBERS
    numbers = (*attributes, *_written(model, group, names))
    return replace(group, attributes=_distinct(numbers))


# -- which outputs


def _origins(trace: TraceRecorder, maps: Sequence[Tensor]) -> set[str]:
    """Return the names of the linear maps that make some labels."""
    units = trace.record.units()
    found = set()
    for origin in trace.record.origins:
        own = units[origin.start : origin.end]
        if origin.produces and any(bool(torch.isin(units[one.cpu()], own).any()) for one in maps):
            found.add(origin.map_name)
    return found


def _names(group: ChannelGroup) -> set[str]:
    return {coupled.map for coupled in group.dims_of("producer")}


def _listed(names: set[str]) -> str:
    return " and ".join(f"'{name}'" for name in sorted(names))


def _check_order(trace: TraceRecorder, group: ChannelGroup) -> None:
    """Refuse outputs that aren't a group's units one to one, in their order, along one dimension."""
    units = trace.record.units()
    first = group.dims[0]
    made = [one for one in trace.record.origins if one.name == first.name and one.produces]
    # A table makes units with its columns as well.
    origin = next(one for one in made if one.dim in (None, first.dim))
    rows = units[origin.start : origin.end]
    for maps in trace.outputs:
        lines = [units[one.cpu()] for one in maps]
        fits = [dim for one in lines for dim in range(one.dim()) if _lies_along(one, dim, rows)]
        if len(fits) != 1 or first.index.shape[1] != 1 or group.width != len(rows):
            raise UnsupportedError(
                f"the outputs of '{group.name}' can't grow: they aren't its rows, one each, along one dimension"
            )


def _lies_along(units: Tensor, dim: int, rows: Tensor) -> bool:
    """Return True if the units along a dimension are some rows in their order, wherever one looks."""
    if units.shape[dim] != len(rows):
        return False
    shape = [-1 if one == dim else 1 for one in range(units.dim())]
    return bool((units == rows.view(shape)).all())


# -- which table, and which of the outputs are its tokens'


def _table(model: nn.Module, embedding: str | None) -> tuple[str, Any]:
    tables = {name: one for name, one in model.named_modules() if isinstance(one, TABLES)}
    if embedding is not None:
        if embedding not in tables:
            known = _listed({*tables}) if tables else "none"
            raise SennError(f"'{embedding}' is no table of tokens; the model has {known}")
        return embedding, tables[embedding]
    given = _part_of(model, "get_input_embeddings")
    if given is not None:
        tables = {name: one for name, one in tables.items() if one is given}
    if not tables:
        raise UnsupportedError("the model has no table of tokens (torch.nn.Embedding)")
    if len(tables) > 1:
        raise UnsupportedError(
            f"the model has several tables, {_listed({*tables})}: say by embedding=... which one has the tokens"
        )
    return next(iter(tables.items()))


def _part_of(model: nn.Module, method: str) -> nn.Module | None:
    """Ask a model of transformers for one of its parts; None from any other model."""
    ask = getattr(model, method, None)
    try:
        part = ask() if callable(ask) else None
    except (NotImplementedError, AttributeError):
        return None
    return part if isinstance(part, nn.Module) else None


def _tied(model: nn.Module, table: Any) -> list[str]:
    """Return the names of other modules that hold the very weight of a table."""
    return [
        name
        for name, module in model.named_modules()
        if module._parameters.get("weight") is table.weight and not isinstance(module, TABLES)
    ]


def _has_head(
    model: nn.Module,
    name: str,
    table: Any,
    heads: Sequence[str] | None,
    inputs: Inputs,
    output: Output | None,
) -> bool:
    """Tell whether the model's outputs are tokens of a table."""
    if heads is not None:
        names = {one for one, _ in model.named_modules()}
        unknown = [one for one in heads if one not in names]
        if unknown:
            raise SennError(f"the model has no module '{unknown[0]}'")
        return bool(heads)
    if _tied(model, table):
        return True
    head = _part_of(model, "get_output_embeddings")
    if head is not None:
        return True
    try:
        made = find_outputs(model, inputs, output)
    except UnsupportedError:
        return False  # outputs that can't grow aren't the tokens'
    if any(one.name == f"{name}.weight" for one in made.dims):
        return True  # the forward pass itself applies the table once more
    if made.width != table.num_embeddings:
        return False
    raise UnsupportedError(
        f"'{made.name}' makes as many outputs as '{name}' has rows, so it isn't clear whether these are tokens: say "
        f"heads=['{made.name}'] if they are, heads=[] if they aren't"
    )


def _name_of(model: nn.Module, tensor: Tensor) -> str:
    """Return the first full name of a parameter."""
    return next(name for name, one in model.named_parameters() if one is tensor)


def _rows(weight: str, width: int) -> CoupledDim:
    module, _, tensor = weight.rpartition(".")
    index = torch.arange(width)[:, None]
    return CoupledDim(role="producer", module=module, tensor=tensor, dim=0, index=index)


# -- numbers that say how many there are


def _written(
    model: nn.Module, group: ChannelGroup, names: frozenset[str]
) -> Iterator[SizeAttribute]:
    """Yield the numbers of modules and configurations that say the size of a group, by their names and values."""
    own = {coupled.name for coupled in group.dims_of("producer")}
    tensors = {id(one) for name, one in model.named_parameters() if name in own}
    holders = [
        path
        for path, module in model.named_modules()
        if any(id(one) in tensors for one in module._parameters.values())
    ]
    above = {""} | {
        path.rsplit(".", cut)[0] for path in holders for cut in range(path.count(".") + 1)
    }
    seen: set[int] = set()
    for path, module in model.named_modules():
        if path not in above:
            continue
        for key, value in vars(module).items():
            if key in names and type(value) is int and value == group.width:
                yield SizeAttribute(module=path, name=key, per_unit=1)
            if hasattr(value, "to_dict") and id(value) not in seen:
                seen.add(id(value))  # most modules of a model share one configuration
                for name in sorted(names & vars(value).keys()):
                    if vars(value)[name] == group.width:
                        yield SizeAttribute(module=path, name=f"{key}.{name}", per_unit=1)
                for name in LABELS if names is _CLASS_NUMBERS else ():
                    if len(vars(value).get(name) or ()) == group.width:
                        yield SizeAttribute(module=path, name=f"{key}.{name}", per_unit=1)


def _distinct(numbers: Sequence[SizeAttribute]) -> tuple[SizeAttribute, ...]:
    """Keep the first of several attributes of one place: those that the forward pass computes with come first."""
    found: dict[tuple[str, str, int | None], SizeAttribute] = {}
    for one in numbers:
        found.setdefault((one.module, one.name, one.item), one)
    return tuple(found.values())
