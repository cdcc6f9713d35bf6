"""Greedy selection of a round's candidates: the policy picks one, every figure is brought up to date, and so on."""

from __future__ import annotations

from collections.abc import Sequence

from senn.events import Consideration, Verdict
from senn.policy import MOVES, Policy
from senn.scoring.pool import Menu
from senn.scoring.rank_checks import agree_on_basis, chosen
from senn.scoring.scoring_session import Survey


def select_candidates(
    session: Survey, pool: Menu, policy: Policy, *, number: int, moves: Sequence[str], realised: float | None
) -> Consideration:
    """Let the policy accept candidates of the pool, one after the other, until it wants no more.

    Args:
        session: what the pool was scored in.
        pool: the scored candidates; those that are chosen are accepted in it.
        policy: what chooses; on the first rank alone.
        number: of the round.
        moves: which of `MOVES` may happen.
        realised: decrease of the loss since the changes of the round before, in nats per sample, or None.

    Returns:
        the round's record.

    Raises:
        SennError: the policy chose something that wasn't offered, or the ranks don't base their decision on the same.
    """
    eta, parameters = pool.eta, pool.parameters
    eta_of = {name: ledger.eta for name, ledger in pool.ledgers.items()}
    kinds = {MOVES[move] for move in moves}
    accepted: list[Verdict] = []
    agree_on_basis(session.ranks, pool, policy, session.generator)
    while True:
        offered = [one for one in pool.candidates() if one.kind in kinds]
        choice = chosen(session.ranks, policy, offered, pool.accepted)
        if choice is None:
            break
        accepted.append(Verdict.of(policy, choice))
        pool.accept(choice)
    refused = [Verdict.of(policy, one, pool.accepted) for one in offered]
    return Consideration(
        round=number,
        moves=tuple(moves),
        looked_at=session.samples,
        samples=pool.prices.samples,
        loss=session.loss,
        nat=pool.prices.loss_per_nat,
        parameters=parameters,
        architecture=tuple(space.width for space in pool.structure.spaces),
        eta=eta,
        eta_of=eta_of,
        limit=pool.prices.score_limit,
        accepted=tuple(accepted),
        refused=tuple(sorted(refused, key=lambda one: -one.margin)),
        realised=realised,
    )
