"""What all ranks must do alike: take batches, look at one model, decide once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from senn import batch
from senn.batch import Inputs
from senn.errors import SennError, UnsupportedError
from senn.policy import Candidate, Policy
from senn.ranks import Ranks
from senn.scoring.global_batch import first_of
from senn.scoring.pool import Menu
from senn.structure import Structure
from senn.surgery.verify import fingerprint
from senn.verification import analyse


def each_batch(ranks: Ranks, batches: Iterable[Any]) -> Iterator[Any]:
    """A rank's batches, as many as the rank has that has most: the others' further ones hold no samples."""
    own, last = iter(batches), None
    while True:
        with ranks.together("take a batch"):
            one = next(own, None)
            if one is not None and (not isinstance(one, tuple | list) or len(one) not in (2, 3)):
                raise SennError("a batch must be inputs, targets and perhaps weights: give a list of such batches")
        if not any(ranks.exchange("take a batch", one is not None)):
            return
        with ranks.together("take a batch"):
            if one is None:
                if last is None:
                    raise SennError("it has no batch, and others have: give it one, of no samples at least")
                one = batch.take(tuple(last), slice(0, 0), batch.count(last[0]))
        last = one
        yield one


def agree_on_weights(ranks: Ranks, what: str, model: nn.Module) -> None:
    """Check, bit by bit, that all ranks have the same parameters."""
    if not ranks.alone:
        ranks.agree(what, {f"the weights {name}": fingerprint([p]) for name, p in model.named_parameters()})


def agree_on_basis(ranks: Ranks, menu: Menu, policy: Policy, generator: torch.Generator) -> None:
    """Check that all ranks base their decision on the same."""
    if not ranks.alone:
        agree_on_weights(ranks, "decide", menu.model)
        marks = {
            "the structure of its model": [(space.name, space.width) for space in menu.structure.spaces],
            "its random generator": generator.get_state().tolist(),
            "its policy": policy,
            "its budget": menu.budget,
            "its number of training samples": menu.prices.samples,
        }
        ranks.agree("decide", marks)


def chosen(
    ranks: Ranks, policy: Policy, offered: Sequence[Candidate], accepted: Sequence[Candidate]
) -> Candidate | None:
    """The policy's choice, on the first rank.

    Args:
        ranks: the processes that decide.
        policy: what chooses; on the first rank alone.
        offered: the candidates, in the same order on all ranks.
        accepted: those accepted in this round already.

    Returns:
        one of `offered`, or None to end the round.

    Raises:
        SennError: the policy chose something else, or the ranks have other candidates than the first.
    """
    number = None
    with ranks.together("decide"):
        choice = policy.choose(offered, accepted) if ranks.rank == 0 else None
        if choice is not None:
            number = _number_of(choice, offered)
    number, name = ranks.decided("decide", [number, _name(offered, number)])
    with ranks.together("decide"):
        if name != _name(offered, number):
            raise SennError(f"its candidates are others than those of rank 0, it has no {name}")
    return None if number is None else offered[number]


def _number_of(choice: object, offered: Sequence[Candidate]) -> int:
    """Which of the candidates a policy chose: the one with its key, so a copy is understood too."""
    keys = [one.key for one in offered]
    if isinstance(choice, Candidate) and choice.key in keys:
        return keys.index(choice.key)
    shown = _in_words(choice) if isinstance(choice, Candidate) else repr(choice)
    several = "candidate" if len(offered) == 1 else "candidates"
    raise SennError(f"the policy chose {shown}, which is none of the {len(offered)} {several} that it was offered")


def _name(offered: Sequence[Candidate], number: int | None) -> str | None:
    """What a candidate is, in words."""
    return None if number is None or number >= len(offered) else _in_words(offered[number])


def _in_words(one: Candidate) -> str:
    return f"{one.kind} of {one.place}: {one.detail}, {one.units} units to {one.width}"


def analysed(ranks: Ranks, model: nn.Module, inputs: Inputs, ignore: Sequence[str]) -> Structure:
    """What in a model can change size, found on the first samples of all ranks.

    Raises:
        SennError: nothing can.
    """
    structure = analyse(model, first_of(ranks, inputs), ignore=ignore)
    if not structure.spaces and not structure.sites:
        reasons = "; ".join(f"{r.place or 'the model'}: {r.reason}" for r in structure.refused[:3])
        raise SennError(f"the model has no place to grow ({reasons or 'it has no linear maps'})")
    return structure


def check_whole(model: nn.Module) -> None:
    """Refuse a model of whose parameters each process has a part."""
    if any(type(parameter).__name__ == "DTensor" for parameter in model.parameters()):
        raise UnsupportedError(
            "the model's parameters are spread over processes: grow it inside "
            "`with senn.distributed.gathered(model, optimizer):`"
        )


def stale(*_: object) -> None:
    """What a DistributedDataParallel says from a growth on until it is made anew."""
    raise SennError(
        "the model has grown, and its DistributedDataParallel still holds the former parameters: "
        "call senn.distributed.rewrap(model) after a growth"
    )
