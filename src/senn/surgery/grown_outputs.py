"""New outputs and new tokens for a model that trains: rows that its owner asks for, which no round would add.

How a new row begins. Under a softmax only differences between outputs count, so "zero" means nothing there, and the
mean of the old rows is what zero is elsewhere: no opinion. Its output is the mean of the n old outputs, and by Jensen's
inequality its probability is at most 1 / n of theirs on *any* input, wherever the old outputs lie (Hewitt 2021,
*Initializing new word embeddings for pretrained language models*). Where there is a bias, it is lowered until all k new
classes together have at most `RARE`: by log(RARE n / k), where that is negative. A row of zeros with a low bias keeps
the old probabilities only on inputs like those that the bias was chosen on. Where each output has a term of its own in
the loss (sigmoids, squared errors), the old ones don't notice new ones, and a row of zeros says the same of every
input.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from senn._validate import Rule, check, check_arguments, each, one_of, text, whole
from senn.compilation import uncompiled
from senn.errors import SennError
from senn.graph.forward_passes import examples_of
from senn.graph.named_tensors import get_tensor
from senn.graph.output_group import LABELS, OutputGroup, find_outputs, find_tokens
from senn.graph.types import CoupledDim, DependencyGraph
from senn.pytree import Inputs, Output
from senn.surgery.moves import Widen
from senn.surgery.transaction import Receipt, UncarriedState, transaction

RowStart = Literal["mean", "zero"]
"""How the row of a new output begins: as the mean of the old rows, or as zeros."""

RARE = 0.01
"""Probability that all new classes have together at first, at most; with rows of zeros that each of them has."""

RANGES: dict[str, Rule] = {
    "count": whole(low=1),
    "start": one_of("mean", "zero"),
    "names": each(text()).or_none(),
}
"""Ranges of the arguments of `add_outputs`."""


def add_outputs(
    model: nn.Module,
    count: int,
    inputs: Inputs,
    *,
    names: Sequence[str] | None = None,
    start: RowStart = "mean",
    optimizer: Any = None,
    averaged: Sequence[Any] = (),
    on_uncarried_state: UncarriedState = "refuse",
    output: Output | None = None,
) -> Receipt:
    """Give a classifier outputs for new classes, in the middle of training as well.

    The linear maps that make the outputs get new rows, after the old ones. Old outputs and the old entries of the
    optimizer's state stay as they are; Parameters stay the same objects. Numbers that say how many classes there are
    follow, in modules and in a configuration of transformers.

    Args:
        model: any module whose outputs are rows of linear maps one to one; changed in place.
        count: number of new outputs.
        inputs: a small batch of what its forward takes, or a list of those of several calls.
        names: labels of the new classes, for the configuration of a model of transformers; None for none.
        start: `mean`, the mean of the old rows with a lower bias, for a softmax; `zero`, rows of zeros and the bias of
            a rare class, for outputs with a term of their own in the loss.
        optimizer: as of `transaction`; its state follows.
        averaged: averages of the model, which change with it.
        on_uncarried_state: as of `transaction`.
        output: finds, in what the model returns, the tensor that the loss takes; None as in `Grower`.

    Returns:
        A receipt with `undo()`.

    Raises:
        SennError: an argument is out of range, or the inputs don't fit the model.
        UnsupportedError: the outputs can't be told, or aren't rows of linear maps; nothing was changed.
        SurgeryError: the change failed or the old outputs differ, and everything was rolled back.

    Example:
        >>> import torch, senn
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
        >>> x = torch.randn(8, 3)
        >>> before = model(x)
        >>> receipt = senn.add_outputs(model, 2, x)
        >>> model(x).shape, torch.allclose(model(x)[:, :2], before)
        (torch.Size([8, 4]), True)
    """
    check_arguments(RANGES, locals())
    check_names(names, count)
    model = uncompiled(model)
    group = find_outputs(model, inputs, output)
    refuse_tied(model, group)
    receipt = grow_rows(
        model,
        group,
        count,
        inputs,
        start=start,
        optimizer=optimizer,
        averaged=averaged,
        on_uncarried_state=on_uncarried_state,
    )
    name_classes(model, group, names)
    return receipt


def resize_token_embeddings(
    model: nn.Module,
    vocab_size: int,
    inputs: Inputs,
    *,
    embedding: str | None = None,
    heads: Sequence[str] | None = None,
    optimizer: Any = None,
    averaged: Sequence[Any] = (),
    on_uncarried_state: UncarriedState = "refuse",
    output: Output | None = None,
) -> Receipt:
    """Give a model rows for new tokens, in the middle of training as well.

    Unlike the method of that name in transformers, it keeps Parameters and modules the same objects, and the old
    entries of the optimizer's state; new ones begin like those of other births. A tied head follows, and so do numbers
    such as `config.vocab_size`. New rows are the mean of the old ones; the bias of a head is lowered as by
    `add_outputs`.

    Args:
        model: any module with an `nn.Embedding`; changed in place.
        vocab_size: number of tokens from now on, larger than before.
        inputs: a small batch of what its forward takes, or a list of those of several calls.
        embedding: name of the table; None for that of `get_input_embeddings()`, or the only one.
        heads: names of the maps whose outputs are these tokens; None for a tied one or that of
            `get_output_embeddings()`. `[]`, where the outputs are something else.
        optimizer: as of `transaction`; its state follows.
        averaged: averages of the model, which change with it.
        on_uncarried_state: as of `transaction`.
        output: as of `add_outputs`.

    Returns:
        A receipt with `undo()`.

    Raises:
        SennError: an argument is out of range, or the inputs don't fit the model.
        UnsupportedError: it can't be told which table or which outputs are meant; nothing was changed.
        SurgeryError: the change failed or the old outputs differ, and everything was rolled back.

    Example:
        >>> import torch, senn
        >>> model = torch.nn.Sequential(torch.nn.Embedding(10, 4), torch.nn.Flatten(), torch.nn.Linear(8, 3))
        >>> receipt = senn.resize_token_embeddings(model, 12, torch.tensor([[1, 2], [0, 9]]))
        >>> model[0].num_embeddings, model(torch.tensor([[10, 11]])).shape
        (12, torch.Size([1, 3]))
    """
    check("vocab_size", vocab_size, whole(low=1))
    model = uncompiled(model)
    group = find_tokens(model, inputs, embedding=embedding, heads=heads, output=output)
    return grow_rows(
        model,
        group,
        new_tokens(group, vocab_size),
        inputs,
        optimizer=optimizer,
        averaged=averaged,
        on_uncarried_state=on_uncarried_state,
    )


def grow_rows(
    model: nn.Module,
    group: OutputGroup,
    count: int,
    inputs: Inputs,
    *,
    start: RowStart = "mean",
    graph: DependencyGraph | None = None,
    **settings: Any,
) -> Receipt:
    """Add rows to a group of outputs or tokens, all or nothing.

    Args:
        model: changed in place.
        group: of the model.
        count: number of new units.
        inputs: on which outputs are compared: the first of several examples in full, the others in a rehearsal.
        start: how new rows begin.
        graph: what else in the model can change size; None where that isn't known.
        **settings: further arguments of `transaction`.

    Returns:
        A receipt, whose graph follows the given one.
    """
    others = () if graph is None else graph.groups
    nothing = DependencyGraph(linear_maps=(), groups=(), insertion_points=())
    whole_graph = _with_groups(graph or nothing, (*others, group))
    probe, *examples = examples_of(inputs)
    move = Widen(group.name, count, starting_rows(model, group, count, start))
    receipt = transaction(
        model, [move], whole_graph, probe=probe, examples=[probe, *examples], **settings
    )
    assert receipt.graph is not None, "after a Widen the graph follows by index arithmetic"
    kept = tuple(one for one in receipt.graph.groups if not isinstance(one, OutputGroup))
    receipt.graph = _with_groups(receipt.graph, kept)
    return receipt


def _with_groups(graph: DependencyGraph, groups: tuple[Any, ...]) -> DependencyGraph:
    return DependencyGraph(**{**vars(graph), "groups": groups})


def starting_rows(
    model: nn.Module, group: OutputGroup, count: int, start: RowStart
) -> dict[str, Tensor]:
    """Compute what new rows begin with; see the module's docstring.

    Args:
        model: isn't changed.
        group: of the model.
        count: number of new rows.
        start: `mean` or `zero`.

    Returns:
        Values of `Widen`, by full name.
    """
    biases = [one.name for one in group.dims_of("producer") if _is_bias(model, one)]
    values = {}
    for coupled in group.dims_of("producer"):
        old = get_tensor(model, coupled.name).detach()
        rows = old.index_select(coupled.dim, coupled.index.flatten().to(old.device)).double()
        row = rows.mean(coupled.dim, keepdim=True)
        row = row if start == "mean" else torch.zeros_like(row)
        if group.is_output and coupled.name == next(iter(biases), None):
            row = row + (
                min(0.0, math.log(RARE * group.width / count)) if start == "mean" else _rare()
            )
        values[coupled.name] = row.repeat_interleave(count, coupled.dim).to(old.dtype)
    return values


def _rare() -> float:
    """Return the logit of a rare class."""
    return math.log(RARE / (1 - RARE))


def _is_bias(model: nn.Module, coupled: CoupledDim) -> bool:
    return get_tensor(model, coupled.name).dim() == 1


def new_tokens(group: OutputGroup, vocab_size: int) -> int:
    """Return how many tokens are new; refuse a size that isn't larger.

    Args:
        group: the tokens of now.
        vocab_size: their number from now on.

    Raises:
        SennError: it isn't larger.
    """
    if vocab_size <= group.width:
        raise SennError(
            f"vocab_size must be more than the {group.width} rows that '{group.name}' has, not {vocab_size}"
        )
    return vocab_size - group.width


def refuse_tied(model: nn.Module, group: OutputGroup) -> None:
    """Refuse outputs whose rows are the vectors of tokens as well.

    Args:
        model: the model.
        group: its outputs.

    Raises:
        SennError: they are; the sentence says what to call.
    """
    own = {id(get_tensor(model, one.name)) for one in group.dims}
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and id(module.weight) in own:
            raise SennError(
                f"the outputs of the model share their rows with the table '{name}', so new ones are new tokens: call "
                "resize_token_embeddings"
            )


def check_names(names: Sequence[str] | None, count: int) -> None:
    """Refuse names of new classes that are too many, too few or equal.

    Args:
        names: the names.
        count: number of new classes.

    Raises:
        SennError: they don't fit.
    """
    if names is not None and (len(names) != count or len({*names}) != count):
        raise SennError(f"names must be {count} different labels, not {list(names)!r}")


def name_classes(model: nn.Module, group: OutputGroup, names: Sequence[str] | None) -> None:
    """Write the names of new classes into a configuration of transformers.

    Args:
        model: it has the new outputs.
        group: its outputs as they were before.
        names: of the new classes; None leaves those that a configuration gives them.
    """
    for attribute in group.attributes:
        *path, key = attribute.name.split(".")
        if key not in LABELS or names is None:
            continue
        holder: Any = model.get_submodule(attribute.module)
        for part in path:
            holder = getattr(holder, part)
        table, numbers = vars(holder)[key], range(group.width, group.width + len(names))
        # In place: an undo puts the former table back.
        if key == "id2label":
            table.update(zip(numbers, names, strict=True))
        else:
            for number in numbers:
                table.pop(f"LABEL_{number}", None)
            table.update(zip(names, numbers, strict=True))
