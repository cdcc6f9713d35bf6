"""Steps that all ranks must take alike: they take batches, score one model, and decide once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from senn import pytree
from senn.collectives import Communicator
from senn.errors import SennError, UnsupportedError, warn
from senn.graph import DependencyGraph
from senn.graph.stream_places import stream_refusal
from senn.graph.table_cells import left_alone
from senn.graph.trained_places import without_untrained
from senn.policies import MOVES, Candidate, Policy
from senn.pytree import Inputs, Prepare
from senn.scoring.pool import CandidatePool
from senn.surgery.outputs import model_digest
from senn.verification import analyze
from senn.verification.verify_insertions import NO_LAYER


def each_batch(
    communicator: Communicator, batches: Iterable[Any], prepare: Prepare | None = None
) -> Iterator[Any]:
    """Yield this rank's batches, padded with empty ones up to the longest rank's count.

    Args:
        communicator: the processes.
        batches: this rank's batches.
        prepare: makes inputs, targets and perhaps weights of a batch; None if a batch is a tuple of these.

    Raises:
        SennError: a batch is no such tuple, or this rank has none.
    """
    own, last = iter(batches), None
    while True:
        with communicator.fail_together("take a batch"):
            one = next(own, None)
            if one is not None:
                one = one if prepare is None else prepare(one)
                check_batch(one)
        if not any(communicator.all_gather_object("take a batch", one is not None)):
            return
        with communicator.fail_together("take a batch"):
            if one is None:
                if last is None:
                    raise SennError(
                        "it has no batch, and others have: give it one, of no samples at least"
                    )
                # Collectives need every rank: one that has run out goes on with batches of no samples.
                one = pytree.index_batch(tuple(last), slice(0, 0), pytree.count(last[1]))
        last = one
        yield one


def check_batch(one: Any) -> None:
    """Refuse what isn't a tuple of inputs, targets and perhaps weights, and say how to make one of it.

    Args:
        one: a batch.
    """
    if isinstance(one, tuple | list) and len(one) in (2, 3):
        return
    kind = type(one).__name__
    if isinstance(one, Mapping):
        some = next(iter(one), "x")
        way = f"make a tuple of it by prepare=..., such as ({{{some!r}: batch[{some!r}]}}, targets)"
        raise SennError(
            f"a batch is a mapping ({kind}), and inputs, targets and perhaps weights are needed: {way}"
        )
    if isinstance(one, Tensor | tuple | list):
        raise SennError(
            "a batch must be inputs, targets and perhaps weights: give a list of such batches"
        )
    raise SennError(
        f"a batch is of type {kind}, and inputs, targets and perhaps weights are needed: "
        "make a tuple (inputs, targets) of it by prepare=..."
    )


def number_of_samples(batches: Iterable[Any]) -> int | None:
    """Find out how many samples training has, which prices are per: a DataLoader knows.

    Args:
        batches: a DataLoader, or any other batches.

    Returns:
        The length of the data set; None if there is none, of which a warning says what follows if it should have one.
    """
    dataset = getattr(batches, "dataset", None)
    if dataset is None:
        return None
    try:
        return len(dataset)
    except (TypeError, NotImplementedError):
        warn(
            f"the data set ({type(dataset).__name__}) has no length, so prices count the samples that are scored "
            "instead of all that training has: give the grower samples=...",
        )
        return None


def agree_on_weights(communicator: Communicator, what: str, model: nn.Module) -> None:
    """Check, bit by bit, that all ranks have the same parameters.

    Args:
        communicator: the processes.
        what: the step that this is checked in, for the error message.
        model: the model.

    Raises:
        SennError: a rank has others; the message names it and the first parameter that differs.
    """
    if not communicator.is_single:
        digests = {f"the weights {name}": model_digest([p]) for name, p in model.named_parameters()}
        communicator.assert_equal(what, digests)


def agree_on_model(communicator: Communicator, what: str, model: nn.Module) -> None:
    """Check that all ranks have one model; buffers are the first rank's, as in DistributedDataParallel.

    Args:
        communicator: the processes.
        what: the step that this is checked in, for the error message.
        model: the model.

    Raises:
        SennError: a rank has other parameters.
    """
    if communicator.is_single:
        return
    buffers = [*model.buffers()]
    digests = communicator.all_gather_object(what, model_digest(buffers))
    # Running statistics differ between ranks in training; scoring needs those of one.
    if any(one != digests[0] for one in digests):
        communicator.broadcast("copy buffers", buffers)
    agree_on_weights(communicator, what, model)


def agree_on_basis(
    communicator: Communicator, pool: CandidatePool, policy: Policy, generator: torch.Generator
) -> None:
    """Check that all ranks base their decision on the same.

    Args:
        communicator: the processes.
        pool: the candidates.
        policy: what will choose among them.
        generator: the generator that candidates were sampled with.

    Raises:
        SennError: a rank differs; the message says in what.
    """
    if not communicator.is_single:
        agree_on_weights(communicator, "decide", pool.model)
        marks = {
            "the structure of its model": [
                (group.name, group.width) for group in pool.graph.groups
            ],
            # Candidates are sampled on each rank: the same numbers give the same candidates.
            "its random generator": generator.get_state().tolist(),
            "its policy": policy,
            "its budget": pool.budget,
            "its number of training samples": pool.prices.samples,
        }
        communicator.assert_equal("decide", marks)


def chosen(
    communicator: Communicator,
    policy: Policy,
    offered: Sequence[Candidate],
    accepted: Sequence[Candidate],
) -> Candidate | None:
    """Ask the first rank's policy for its choice.

    Args:
        communicator: the processes that decide.
        policy: what chooses; on the first rank alone.
        offered: the candidates, in the same order on all ranks.
        accepted: those accepted in this round already.

    Returns:
        one of `offered`, or None to end the round.

    Raises:
        SennError: the policy chose something else, or the ranks have other candidates than the first.
    """
    number = None
    with communicator.fail_together("decide"):
        choice = policy.choose(offered, accepted) if communicator.rank == 0 else None
        if choice is not None:
            number = _number_of(choice, offered)
    # A number is small and has one meaning everywhere; the name shows that it has.
    number, name = communicator.broadcast_object("decide", [number, _name(offered, number)])
    with communicator.fail_together("decide"):
        if name != _name(offered, number):
            raise SennError(f"its candidates are others than those of rank 0, it has no {name}")
    return None if number is None else offered[number]


def _number_of(choice: object, offered: Sequence[Candidate]) -> int:
    """Find the candidate that a policy chose, by its key: a copy is understood too."""
    # By key, not by identity: policies may return an equal record, or one from a pickle.
    keys = [one.key for one in offered]
    if isinstance(choice, Candidate) and choice.key in keys:
        return keys.index(choice.key)
    shown = _in_words(choice) if isinstance(choice, Candidate) else repr(choice)
    several = "candidate" if len(offered) == 1 else "candidates"
    raise SennError(
        f"the policy chose {shown}, which is none of the {len(offered)} {several} that it was offered"
    )


def _name(offered: Sequence[Candidate], number: int | None) -> str | None:
    """Text of a candidate; None if there is none of that number."""
    return None if number is None or number >= len(offered) else _in_words(offered[number])


def _in_words(one: Candidate) -> str:
    return f"{one.kind} of {one.place}: {one.detail}, {one.units} units to {one.width}"


def analyzed(
    model: nn.Module,
    examples: Iterable[Inputs],
    ignore: Sequence[str],
    moves: Sequence[str] = (*MOVES,),
    untrained: Sequence[str] = (),
    *,
    streams: bool = False,
) -> DependencyGraph:
    """Analyze what in a model can change size.

    Args:
        model: the model.
        examples: inputs of one call each, the same on all ranks.
        ignore: names of modules to leave alone.
        moves: moves that may ever happen.
        untrained: full names of parameters that no optimizer holds.
        streams: True if units of streams behind norms may be offered.

    Raises:
        SennError: none of the moves can happen anywhere.
    """
    graph = without_untrained(analyze(model, [*examples], ignore=ignore), untrained)
    # Better one sentence now than a training run in which nothing ever grows.
    by_depth = "depth" in moves and (graph.insertion_points or graph.residual_blocks)
    by_width = "width" in moves and any(
        not group.norms or (streams and stream_refusal(group) is None) for group in graph.groups
    )
    if by_depth or by_width or ("prune" in moves and graph.groups):
        return graph
    why = [f"{r.place or 'the model'}: {r.reason}" for r in graph.refusals[:3]]
    normed = [group for group in graph.groups if group.norms]
    why += [f"{one.name}: {stream_refusal(one) or left_alone(one.norms[0])}" for one in normed[:1]]
    reasons = "; ".join(why)
    limit = "" if {*moves} == {*MOVES} else f" by {' or '.join(moves)}"
    sentence = f"the model has no place to grow{limit} ({reasons or 'it has no linear maps'})"
    if "depth" in moves and any(NO_LAYER in refusal.reason for refusal in graph.refusals):
        # Places that can't take a layer now may be free once the forward pass is written otherwise.
        warn(sentence)
        return graph
    raise SennError(sentence)


def check_whole(model: nn.Module) -> None:
    """Refuse a model whose parameters are sharded over processes."""
    # By name: not every build of torch has DTensor.
    if any(type(parameter).__name__ == "DTensor" for parameter in model.parameters()):
        raise UnsupportedError(
            "the model's parameters are spread over processes: grow it inside "
            "`with senn.distributed.full_parameters(model, optimizer):`"
        )
