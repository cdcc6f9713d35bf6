"""Events of a round: one for each kind of change at each place."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from senn.events.event_records import GrowthEvent
from senn.events.network_state import NetworkState
from senn.policies import Candidate, Policy, price_of
from senn.surgery import Prune, Receipt


def round_events(
    accepted: Sequence[Candidate],
    receipt: Receipt,
    *,
    number: int,
    before: NetworkState,
    after: NetworkState,
    policy: Policy,
    decrease: float | None = None,
    step_length: float = 0.0,
    undo: Callable[[], None] | None = None,
) -> list[GrowthEvent]:
    """Make the events of one round.

    Args:
        accepted: the round's candidates that were carried out, in the order in which they were accepted.
        receipt: what the surgery did.
        number: number of the round.
        before: figures of the network before the round.
        after: figures of the network after the round.
        policy: the policy that priced the candidates.
        decrease: measured decrease of the loss by the natural step of all additions, in the loss's own unit; None
            where it wasn't measured.
        step_length: how much of that step the additions were born with.
        undo: takes the whole round back; None if that can't be done.

    Returns:
        The events, in the order in which their places were accepted first.
    """
    # Units are accepted one after the other; people think of one change of a place.
    by_place: dict[tuple[str, str], list[Candidate]] = {}
    for candidate in accepted:
        by_place.setdefault((candidate.kind, candidate.place), []).append(candidate)
    events = []
    for several in by_place.values():
        event = _event_of_place(
            several, receipt, number=number, before=before, after=after, policy=policy
        )
        event._undo = undo
        events.append(event)
    additions = [event for event in events if event.kind != "prune"]
    _measure(additions, before.loss, decrease)
    for event in additions:
        event.step_length = step_length
    return events


def _measure(additions: Sequence[GrowthEvent], loss: float, decrease: float | None) -> None:
    """Put the measured decrease of all additions in place of what the quadratic model expects of each."""
    total = sum(event.expected_decrease for event in additions)
    for event in additions:
        if decrease is not None:
            # One forward pass measured them together: they share it as the model weighs them.
            share = event.expected_decrease / total if total > 0 else 1 / len(additions)
            event.expected_decrease = share * decrease / event.loss_per_nat
        elif loss > 0:  # of a likelihood that can't be negative no step takes off more than all
            event.expected_decrease = min(event.expected_decrease, loss / event.loss_per_nat)


def _event_of_place(
    several: Sequence[Candidate],
    receipt: Receipt,
    *,
    number: int,
    before: NetworkState,
    after: NetworkState,
    policy: Policy,
) -> GrowthEvent:
    """Make the event of the candidates of one kind at one place."""
    first, last = several[0], several[-1]
    width_before = 0 if first.kind == "insert" else before.widths.get(first.place, 0)
    removed_units: tuple[int, ...] = ()
    for move in receipt.moves:
        if first.kind == "prune" and isinstance(move, Prune) and move.group == first.place:
            removed_units = tuple(move.units)
    units = sum(one.units for one in several)
    parameters = sum(one.parameters for one in several)
    # Each candidate was scored given those accepted before it, so gains add up.
    gain = sum(one.gain for one in several)
    gain_lower_bound = sum(one.gain_lower_bound for one in several)
    held_out_gain = sum(one.held_out_gain for one in several)
    expected_decrease = sum(one.expected_decrease for one in several)
    # For the same reason, errors add like independent ones.
    held_out_stderr = sum(one.held_out_stderr**2 for one in several) ** 0.5
    # One by one: a policy's price need not be linear in the number of parameters.
    price = sum(price_of(policy, one) for one in several)
    return GrowthEvent(
        kind=first.kind,
        place=first.place,
        detail=first.detail,
        width_before=width_before,
        # Each counts what was accepted before it, so the last one has the final width.
        width_after=last.width,
        units=units,
        parameters=parameters,
        gain=gain,
        gain_lower_bound=gain_lower_bound,
        held_out_gain=held_out_gain,
        held_out_stderr=held_out_stderr,
        expected_decrease=expected_decrease,
        price=price,
        loss_per_nat=first.loss_per_nat,
        eta_before=before.eta,
        eta_after=after.eta,
        score_limit=first.score_limit,
        loss_before=before.loss,
        loss_after=after.loss,
        output_change=receipt.output_change or 0.0,
        architecture=tuple(after.widths.values()),
        round=number,
        removed_units=removed_units,
        unit="nats" if first.dispersion is None else "of the loss",
    )
