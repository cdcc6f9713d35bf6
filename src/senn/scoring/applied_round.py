"""A round's decisions carried out on the model, all or nothing, on all ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch.optim import Optimizer

from senn import pytree
from senn.errors import SurgeryError
from senn.graph import DependencyGraph
from senn.policies import Candidate
from senn.scoring.pool import CandidatePool
from senn.scoring.rank_checks import agree_on_weights
from senn.scoring.scoring_session import ScoringSession
from senn.scoring.selection import with_removals
from senn.surgery import Prune, Receipt, transaction
from senn.surgery.moves import tensors_of
from senn.verification import analyze


@dataclass(frozen=True, eq=False, kw_only=True)
class AppliedRound:
    """A round that was carried out.

    Attributes:
        accepted: the candidates that were carried out.
        receipt: what the surgery did, and the way back.
        graph: what in the model can change now.
        loss_after: loss on the last batch right after the change.
    """

    accepted: list[Candidate]
    receipt: Receipt
    graph: DependencyGraph
    loss_after: float


def apply_round(
    pool: CandidatePool,
    session: ScoringSession,
    *,
    optimizer: Optimizer | None,
    averaged: Sequence[Any],
    ignore: Sequence[str],
    rejections: list[str],
) -> AppliedRound | None:
    """Carry out what the pool has accepted, and verify it on the session's last batch.

    If removals fail their verification, half of them are tried, those that cost least, and so on.

    Args:
        pool: the pool, whose model is changed in place.
        session: the session that the pool was scored in.
        optimizer: the optimizer of the model, or None.
        averaged: averages of the model, which change with it.
        ignore: names of modules that a new analysis leaves alone.
        rejections: one sentence is appended for each failed attempt.

    Returns:
        what was carried out; None if only removals were accepted and all of them fail.

    Raises:
        SurgeryError: an addition failed its verification; everything is as it was.
    """
    removals = sum(one.kind == "prune" for one in pool.accepted)
    while accepted := with_removals(pool.accepted, removals):
        try:
            return _attempt(
                pool,
                session,
                accepted,
                removals=removals,
                optimizer=optimizer,
                averaged=averaged,
                ignore=ignore,
            )
        except SurgeryError as error:
            if not removals:
                raise
            rejections.append(str(error))
            # Costs of removals are the quadratic model's; fewer of them stay where that holds.
            removals //= 2
    return None


def _attempt(
    pool: CandidatePool,
    session: ScoringSession,
    accepted: list[Candidate],
    *,
    removals: int,
    optimizer: Optimizer | None,
    averaged: Sequence[Any],
    ignore: Sequence[str],
) -> AppliedRound:
    """Carry out the additions and the first so many removals, all or nothing."""
    communicator, model = session.communicator, pool.model
    with communicator.fail_together("change the model"):
        moves, probe = pool.to_moves(removals), session.probe_inputs
        # Ranks computed the same values up to rounding: the first one's count.
        communicator.broadcast("send the decision", tensors_of(moves))
    # A quadratic model says what removals cost; twice that, and rounding, is still believed. Where it is more, the
    # model was wrong, and half as many removals are tried.
    cost = sum(-one.gain / 2 for one in accepted if one.kind == "prune")
    removes = any(isinstance(move, Prune) for move in moves)
    receipt = None
    try:
        with communicator.fail_together("change the model"):
            receipt = transaction(
                model,
                moves,
                pool.graph,
                optimizer=optimizer,
                averaged=averaged,
                probe=probe,
                loss=session.probe_loss if removes else None,
                loss_limit=2 * cost + 1e-4 * abs(session.loss) + 1e-6,
            )
            graph = receipt.graph
            if graph is None:  # something was inserted, which index arithmetic can't follow
                graph = analyze(model, pytree.head(probe), ignore=ignore)
            loss_after = session.probe_loss()
        agree_on_weights(communicator, "compare the changed model", model)
    except BaseException:  # all or nothing, for an interrupt too
        if receipt is not None:
            receipt.undo()
        raise
    return AppliedRound(accepted=accepted, receipt=receipt, graph=graph, loss_after=loss_after)
