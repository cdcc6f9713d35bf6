"""Records of growth in a run's history, and the one place where a round is run and recorded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from senn.errors import SennError, SurgeryError
from senn.events import GrowthEvent, GrowthRound
from senn.runs.record_names import current_record

Record = dict[str, Any]


class Growing(Protocol):
    """Holder of rounds: a `Grower`, or a `TrainStep` with one."""

    @property
    def last_round(self) -> GrowthRound | None:
        """Last round, with all its candidates; None before the first."""

    @property
    def rejections(self) -> list[str]:
        """Removals that failed their verification so far, one sentence for each round."""

    @property
    def events(self) -> list[GrowthEvent]:
        """All changes of size so far."""

    @property
    def architecture(self) -> tuple[int, ...]:
        """Widths as they go into the records."""

    @property
    def layer_names(self) -> tuple[str, ...]:
        """Names of the layers that have these widths."""


class RoundRecorder:
    """Runs rounds of growth and records them: what was considered, what failed, what changed, what came of it.

    Every training loop of senn's, and every callback for a loop of another library, runs its rounds here.

    Args:
        grower: holder of the rounds.
        tell: takes each record as soon as it is complete.
        changed: called when the model has changed, before the change is recorded.
        widths_before: True to record, as the widths before a round, those of the grower; False to record those that the
            round itself found, for a grower that knows none before its first round.
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
        """Run one round and record it.

        Args:
            grow: the round itself; calls `grow` of the grower once.
            epoch: number of the epoch, for the records.
            step: number of optimizer steps done, for the records.
            survives: returns True for an error that training survives: the round is then skipped, and a record says
                why. A `SurgeryError` is always survived, since it leaves the model as it was.

        Returns:
            Changes of size; none if the round failed.
        """
        grower = self.grower
        n_rejections = len(grower.rejections)
        previous = grower.last_round
        widths = grower.architecture if self._widths_before else None
        names = list(grower.layer_names) if self._widths_before else None
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
        # The round has measured the loss anew, so what came of the changes before it is known by now. This comes first:
        # listeners to the round's record read it.
        self.settle()
        # A round that failed early has scored nothing: its record would be that of the round before.
        current = grower.last_round
        if current is not None and current is not previous:
            about = growth_round_record(current, epoch, step, widths)
            self._tell(about if names is None else {**about, "layers": names})
        if failure is not None:
            self._tell(failure_record(failure, epoch, step))
        for reason in grower.rejections[n_rejections:]:
            self._tell(rollback_record(reason, epoch, step))
        self.record(events, epoch=epoch, step=step)
        return events

    def record(self, events: Sequence[GrowthEvent], *, epoch: int, step: int) -> None:
        """Record changes of size that were made.

        Args:
            events: of one round, or one that no round has made.
            epoch: number of the epoch.
            step: number of optimizer steps done.
        """
        for event in events:
            if (
                not event.round and not event.architecture
            ):  # before the first round no widths are known
                self._tell(event_record(event, epoch, step, None))
                continue
            # All records of a round have the widths after all of its changes.
            record = event_record(event, epoch, step, self.grower.architecture)
            record["layers"] = list(self.grower.layer_names)
            if event.round:
                self._unrealized.append((event, record))
            self._tell(record)

    def settle(self) -> None:
        """Complete the records of changes whose realized decrease is known by now."""
        for event, record in self._unrealized:
            record["realized_decrease"] = event.realized_decrease
        # Those that are known don't change any more.
        self._unrealized = [
            (event, record) for event, record in self._unrealized if event.realized_decrease is None
        ]

    def resume(self, history: Sequence[Record]) -> None:
        """Go on with the history of a resumed run, whose grower has its state again.

        Raises:
            ValueError: the history and the grower's events don't belong together.
        """
        records = [one for one in history if one["event"] == "growth" and one.get("round", 1)]
        # Both have all changes of the run's rounds, in order.
        pairs = zip([one for one in self.grower.events if one.round], records, strict=True)
        self._unrealized = [
            (event, record) for event, record in pairs if event.realized_decrease is None
        ]


def growth_round_record(
    growth_round: GrowthRound, epoch: int, step: int, hidden: tuple[int, ...] | None = None
) -> Record:
    """Build the record of a round, which comes before those of its changes.

    Args:
        growth_round: the round.
        epoch: number of the epoch.
        step: number of optimizer steps done.
        hidden: widths before the round; None for those that the round found.

    Returns:
        JSON-able record.
    """
    widths = growth_round.architecture if hidden is None else hidden
    head = {"event": "growth_round", "epoch": epoch, "step": step}
    return {**head, **growth_round.as_dict(), "architecture": list(widths)}


def event_record(
    event: GrowthEvent, epoch: int, step: int, hidden: tuple[int, ...] | None
) -> Record:
    """Build the record of a change of size.

    Args:
        event: the change.
        epoch: number of the epoch.
        step: number of optimizer steps done.
        hidden: widths after the round; None where they aren't known.

    Returns:
        JSON-able record.
    """
    record = {"event": "growth", "epoch": epoch, "step": step, **event.as_dict()}
    if hidden is None:
        del record["architecture"]
        return record
    return {**record, "architecture": list(hidden)}


RETURNED = "the weights are those of"
"""How the text of a return to earlier weights begins; other texts are about changes that were undone."""


def rollback_record(reason: Exception | str, epoch: int, step: int) -> Record:
    """Build the record of a change that failed its verification and was undone, or of a return to earlier weights.

    Args:
        reason: why.
        epoch: number of the epoch.
        step: number of optimizer steps done.

    Returns:
        JSON-able record.
    """
    return {"event": "rollback", "epoch": epoch, "step": step, "text": str(reason)}


def fault_record(text: str, epoch: int, step: int) -> Record:
    """Build the record of something that went wrong and was left out.

    Args:
        text: what went wrong, and why.
        epoch: number of the epoch.
        step: number of optimizer steps done.

    Returns:
        JSON-able record.
    """
    return {"event": "fault", "epoch": epoch, "step": step, "text": text}


def failure_record(error: Exception, epoch: int, step: int) -> Record:
    """Build the record of a round that failed: a rollback if the surgery did, else a fault.

    Args:
        error: what the round raised.
        epoch: number of the epoch.
        step: number of optimizer steps done.

    Returns:
        JSON-able record.
    """
    if isinstance(error, SurgeryError):
        return rollback_record(error, epoch, step)
    return fault_record(f"the round was skipped: {describe_error(error)}", epoch, step)


def describe_error(error: Exception) -> str:
    """Describe an error in one line; one that isn't a `SennError` with its type, which says more than many messages."""
    kind = "" if isinstance(error, SennError) else f"{type(error).__name__}: "
    return kind + first_line(error)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the name of its type if it has none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def copies(history: Sequence[Mapping[str, Any]]) -> list[Record]:
    """Copy records, so that they stay as they are when those of the run are completed; old names become new ones."""
    return [current_record(record) for record in history]
