"""Records of growth as they go into a run's history, and the one place where a round is run and recorded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from senn.errors import SennError, SurgeryError
from senn.events import GrowthEvent, GrowthRound
from senn.runs.record_names import current_record

Record = dict[str, Any]


class Growing(Protocol):
    """What a round needs of a `Grower`, or of a `Learner` that has one."""

    @property
    def last_round(self) -> GrowthRound | None:
        """The last round, with all its candidates."""

    @property
    def rejections(self) -> list[str]:
        """Removals that failed their verification so far, one sentence for each round."""

    @property
    def events(self) -> list[GrowthEvent]:
        """All changes of size so far."""

    @property
    def architecture(self) -> tuple[int, ...]:
        """Widths that are recorded."""


class RoundRecorder:
    """Runs rounds of growth and records them: what was considered, what failed, what changed, what came of it.

    Args:
        grower: holds the rounds.
        tell: takes each record as soon as it is known.
        changed: called when the model has changed, before the records of the change.
        widths_before: True to record as the widths before a round those that the grower has then; False for those that
            the round itself found, where a grower knows none before its first one.
    """

    def __init__(
        self,
        grower: Growing,
        tell: Callable[[Record], None],
        *,
        changed: Callable[[], None] = lambda: None,
        widths_before: bool = False,
    ) -> None:
        self.grower = grower
        self._tell, self._changed = tell, changed
        self._widths_before = widths_before
        self._unrealized: list[tuple[GrowthEvent, Record]] = []

    def run(
        self,
        grow: Callable[[], list[GrowthEvent]],
        *,
        epoch: int,
        step: int,
        survives: Callable[[Exception], bool] = lambda error: False,
    ) -> list[GrowthEvent]:
        """Let a round take place and record it.

        Args:
            grow: the round itself: calls the grower's `grow` once.
            epoch: as it is recorded.
            step: as it is recorded.
            survives: True for an error that training survives; the round is then skipped, and a record says why. A
                `SurgeryError` always is one, since the model is as it was before.

        Returns:
            The changes; none where the round failed.
        """
        grower = self.grower
        known, last = len(grower.rejections), grower.last_round
        widths = grower.architecture if self._widths_before else None
        events: list[GrowthEvent] = []
        failure: Exception | None = None
        try:
            events = grow()
        except Exception as error:
            if not isinstance(error, SurgeryError) and not survives(error):
                raise
            failure = error
        if events:
            self._changed()
        self.settle()
        round_ = grower.last_round
        if round_ is not None and round_ is not last:
            self._tell(growth_round_record(round_, epoch, step, widths))
        if failure is not None:
            self._tell(failure_record(failure, epoch, step))
        for reason in grower.rejections[known:]:
            self._tell(rollback_record(reason, epoch, step))
        for event in events:
            record = event_record(event, epoch, step, grower.architecture)
            self._unrealized.append((event, record))
            self._tell(record)
        return events

    def settle(self) -> None:
        """Complete the records of changes of which it is known by now what came of them."""
        for event, record in self._unrealized:
            record["realized_decrease"] = event.realized_decrease
        self._unrealized = [(event, record) for event, record in self._unrealized if event.realized_decrease is None]

    def resume(self, history: Sequence[Record]) -> None:
        """Go on with the history of a run whose grower has its state again.

        Raises:
            ValueError: they don't belong together.
        """
        records = [record for record in history if record["event"] == "growth"]
        pairs = zip(self.grower.events, records, strict=True)
        self._unrealized = [(event, record) for event, record in pairs if event.realized_decrease is None]


def growth_round_record(
    growth_round: GrowthRound, epoch: int, step: int, hidden: tuple[int, ...] | None = None
) -> Record:
    """A round as it goes into the history, before the changes that it made, with the widths that it found.

    `hidden` are these; None: as the consideration has them.
    """
    head = {"event": "growth_round", "epoch": epoch, "step": step}
    widths = growth_round.architecture if hidden is None else hidden
    return {**head, **growth_round.as_dict(), "architecture": list(widths)}


def event_record(event: GrowthEvent, epoch: int, step: int, hidden: tuple[int, ...]) -> Record:
    """A growth event as it goes into the history, with the widths that it left."""
    return {"event": "growth", "epoch": epoch, "step": step, **event.as_dict(), "architecture": list(hidden)}


def rollback_record(reason: Exception | str, epoch: int, step: int) -> Record:
    """A change of size that failed its verification, as it goes into the history."""
    return {"event": "rollback", "epoch": epoch, "step": step, "text": str(reason)}


def fault_record(text: str, epoch: int, step: int) -> Record:
    """Something that went wrong and was left out, as it goes into the history."""
    return {"event": "fault", "epoch": epoch, "step": step, "text": text}


def failure_record(error: Exception, epoch: int, step: int) -> Record:
    """A round that failed: a rollback where the surgery did, else a fault."""
    if isinstance(error, SurgeryError):
        return rollback_record(error, epoch, step)
    return fault_record(f"the round was skipped: {describe_error(error)}", epoch, step)


def describe_error(error: Exception) -> str:
    """What went wrong, in one line, with the type of an error that isn't one of senn's."""
    return f"{'' if isinstance(error, SennError) else f'{type(error).__name__}: '}{first_line(error)}"


def first_line(error: BaseException) -> str:
    """What an error says, in one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def copies(history: Sequence[Mapping[str, Any]]) -> list[Record]:
    """Records that don't change any more when those of the run are completed."""
    return [current_record(record) for record in history]
