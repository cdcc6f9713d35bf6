"""Greedy selection of a round's candidates: the policy picks one, all figures are brought up to date, and so on."""

from __future__ import annotations

from collections.abc import Sequence

from senn.events import Decision, GrowthRound
from senn.policies import MOVES, Candidate, Policy
from senn.scoring.pool import CandidatePool
from senn.scoring.rank_checks import agree_on_basis, chosen
from senn.scoring.scoring_session import ScoringSession


def select_candidates(
    session: ScoringSession,
    pool: CandidatePool,
    policy: Policy,
    *,
    number: int,
    moves: Sequence[str],
    realized: Sequence[float | None],
) -> GrowthRound:
    """Let the policy accept candidates of the pool, one after the other, until it wants no more.

    Args:
        session: the session that the pool was scored in.
        pool: the scored candidates; those that are chosen are accepted in it.
        policy: what chooses; on the first rank alone.
        number: number of the round.
        moves: moves of `MOVES` that may happen.
        realized: what each change of the round before has brought, in nats per sample.

    Returns:
        the round's record.

    Raises:
        SennError: the policy chose something that wasn't offered, or the ranks don't base their decision on the same.
    """
    # Figures of the network as it is: accepting changes those of the pool.
    eta, parameters = pool.eta, pool.size.parameters(())
    kinds = {MOVES[move] for move in moves}
    accepted: list[Decision] = []
    # Ranks that differ would grow different models: better to stop here.
    agree_on_basis(session.communicator, pool, policy, session.generator)
    while True:
        offered = [one for one in pool.candidates() if one.kind in kinds]
        choice = chosen(session.communicator, policy, offered, pool.accepted)
        if choice is None:
            break
        accepted.append(Decision.from_policy(policy, choice))
        pool.commit(choice)
    # Figures of the end of the round: what was accepted has changed them.
    refused = [Decision.from_policy(policy, one, pool.accepted) for one in offered]
    return GrowthRound(
        round=number,
        moves=tuple(moves),
        n_samples_seen=session.samples,
        samples=pool.prices.samples,
        loss=session.loss,
        loss_per_nat=pool.prices.loss_per_nat,
        parameters=parameters,
        architecture=tuple(group.width for group in pool.graph.groups),
        eta=eta,
        eta_by_map=dict(pool.eta_by_map),
        score_limit=pool.prices.score_limit,
        accepted=tuple(accepted),
        refused=tuple(sorted(refused, key=lambda one: -one.margin)),
        realized_decreases=tuple(realized),
    )


def with_removals(accepted: Sequence[Candidate], removals: int) -> list[Candidate]:
    """Leave out all removals but the first ones, which cost least.

    Args:
        accepted: candidates in the order in which they were accepted.
        removals: how many removals to keep.
    """
    kept: list[Candidate] = []
    left = removals
    for candidate in accepted:
        if candidate.kind != "prune" or left > 0:
            kept.append(candidate)
        left -= candidate.kind == "prune"
    return kept


def insertion_price(policy: Policy, samples: int, parameters: int) -> float:
    """Return the least decrease, in nats per sample, with which a layer of so many parameters could be accepted."""
    return policy.min_decrease("insert", parameters, samples)
