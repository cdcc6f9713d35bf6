"""Progress of a training run: plain lines, a live bar in a terminal, or a bar and the network in a notebook."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from senn import html
from senn._text import printable
from senn.training.callbacks import Callback
from senn.training.round_records import RETURNED, Record

if TYPE_CHECKING:
    from rich.console import Console

_COLORS = {"widen": "green", "insert": "cyan", "prune": "yellow"}

# A notebook keeps up with five pictures a second; each is a message to the browser.
_PAUSE = 0.2
"""Seconds between two pictures in a notebook."""


def progress(verbose: int) -> tuple[Callback, ...]:
    """Return callbacks that show how training goes on: none for 0, else a picture in a notebook and lines elsewhere."""
    if not verbose:
        return ()
    # Not imported: a notebook has it already, and elsewhere it may be missing.
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    in_notebook = getattr(shell, "kernel", None) is not None
    return (NotebookCallback(),) if in_notebook else (LinesCallback(seconds=math.inf),)


def widths(architecture: Iterable[int]) -> str:
    """Format hidden widths, as `12-30` or `none`."""
    return "-".join(str(width) for width in architecture) or "none"


def figure(value: float | None, digits: int = 3) -> str:
    """Format a number with some significant digits.

    Args:
        value: the number; None is shown as `-`.
        digits: significant digits.
    """
    return "-" if value is None else f"{value:.{digits}g}"


def state_line(record: Mapping[str, Any]) -> str:
    """Format losses and sizes of an epoch, in one line."""
    parts = [f"loss {figure(record.get('train_loss'))}"]
    if record.get("validation_loss") is not None:
        loss, score = figure(record["validation_loss"]), figure(record["validation_score"])
        parts.append(f"validation {loss} (score {score})")
    parts.append(f"hidden {widths(record['architecture'])}")
    parts.append(f"{record['parameters']:,} parameters")
    return ", ".join(parts)


def short_state_line(record: Mapping[str, Any]) -> str:
    """Format widths, losses and score of an epoch for the end of a bar, where a narrow terminal cuts the rest off."""
    hidden, loss = widths(record["architecture"]), figure(record["train_loss"])
    short = f"hidden {hidden}, loss {loss}"
    if record["validation_loss"] is None:
        return short
    validation_loss, score = figure(record["validation_loss"]), figure(record["validation_score"])
    return f"{short} / {validation_loss}, score {score}"


def _change_line(record: Mapping[str, Any]) -> str:
    return f"step {record['step']}: {record['text']}"


def taken_back_lines(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say what a round tried and took back, before what it did change is told.

    Args:
        records: the records of one round's attempts, and of a return to earlier weights.

    Returns:
        A line for the return, and one for all attempts.
    """
    returns = [one for one in records if str(one["text"]).startswith(RETURNED)]
    attempts = [one for one in records if one not in returns]
    lines = [_change_line(one) for one in returns]
    if len(attempts) == 1:
        lines.append(
            f"step {attempts[0]['step']}: one attempt was taken back: {attempts[0]['text']}"
        )
    elif attempts:
        # Of removals fewer and fewer are tried until the validation rows allow them; the last says why not more.
        last = attempts[-1]
        lines.append(
            f"step {last['step']}: {len(attempts)} attempts were taken back, and less was tried each time; the last "
            f"one: {last['text']}"
        )
    return lines


def _end_line(record: Mapping[str, Any]) -> str:
    return f"training ended: {record['reason']}; {record['kept']}"


class LinesCallback(Callback):
    """One line for each change of size, and one every few seconds or tenth of the epochs.

    Args:
        console: where to, in color; None for plain lines on standard output.
        seconds: longest time between two lines on the state of training.
    """

    def __init__(self, console: Console | None = None, seconds: float = 10.0) -> None:
        self.console, self.seconds = console, seconds
        self._last = time.monotonic()
        self._taken_back: list[Mapping[str, Any]] = []

    def on_rollback(self, record: Mapping[str, Any]) -> None:
        """Keep what was taken back until the round's attempts are over, which are one line."""
        self._taken_back.append(record)

    def tell_taken_back(self) -> None:
        """Show what was taken back."""
        if self._taken_back:
            for line in taken_back_lines(self._taken_back):
                self._print(line)
            self._taken_back = []

    def on_growth_round(self, record: Mapping[str, Any]) -> None:
        """Show what was taken back before: weights that an earlier epoch had."""
        self.tell_taken_back()

    def on_epoch(self, record: Mapping[str, Any]) -> None:
        """Show the state, if it is time for a line."""
        self.tell_taken_back()
        epoch, epochs = record["epoch"], record["epochs"]
        is_tenth = epoch % max(1, epochs // 10) == 0
        if is_tenth or time.monotonic() - self._last > self.seconds:
            self._last = time.monotonic()
            self._print(f"epoch {epoch}/{epochs}: {state_line(record)}")

    def on_growth(self, record: Mapping[str, Any]) -> None:
        """Show the change of size."""
        self.tell_taken_back()
        self._print(_change_line(record), _COLORS.get(record["kind"], ""))

    def on_fault(self, record: Mapping[str, Any]) -> None:
        """Show what was left out, and why."""
        self._print(_change_line(record), "red")

    def on_members(self, record: Mapping[str, Any]) -> None:
        """Say that further networks are trained, which takes a while."""
        self.tell_taken_back()
        self._print(f"{record['members'] - 1} further networks are trained, to be averaged with it")

    def on_end(self, record: Mapping[str, Any]) -> None:
        """Show the reason why training ended."""
        self.tell_taken_back()
        self._print(_end_line(record))

    def _print(self, line: str, style: str = "") -> None:
        if self.console is None:
            print(printable(line))
            return
        from rich.text import Text

        # Text with a style of its own: one given to `print` would color the bar, too.
        self.console.print(Text(printable(line), style), soft_wrap=True)


class LiveCallback(LinesCallback):
    """A progress bar with the state next to it; changes of size scroll by above.

    Args:
        console: a terminal.
    """

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
        from rich.table import Column

        self._progress = Progress(
            BarColumn(bar_width=10),
            TextColumn("{task.completed}/{task.total} epochs"),
            TextColumn(
                "{task.description}", markup=False, table_column=Column(no_wrap=True, ratio=1)
            ),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            expand=True,
        )
        self._task = self._progress.add_task("starting", total=None)

    def on_start(self, record: Mapping[str, Any]) -> None:
        """Show the bar, with no epoch done."""
        self._progress.update(self._task, total=record["epochs"])
        self._progress.start()

    def on_epoch(self, record: Mapping[str, Any]) -> None:
        """Move the bar on by an epoch."""
        self.tell_taken_back()
        self._progress.update(
            self._task, completed=record["epoch"], description=short_state_line(record)
        )

    def on_members(self, record: Mapping[str, Any]) -> None:
        """Remove the bar, whose epochs are done, and say what follows."""
        self.stop()
        super().on_members(record)

    def on_end(self, record: Mapping[str, Any]) -> None:
        """Remove the bar, and show why training ended."""
        self.stop()
        super().on_end(record)

    def stop(self) -> None:
        """Remove the bar, also after an error."""
        self._progress.stop()


class NotebookCallback(Callback):
    """A bar, the state and the network, in one place of a notebook's output."""

    def __init__(self) -> None:
        self._sizes: list[Record] = []
        self._changed = ""
        self._handle: Any = None
        self._last = 0.0

    def on_start(self, record: Mapping[str, Any]) -> None:
        """Show the network as it begins."""
        self._sizes = [dict(record)]
        self._show(record)

    def on_epoch(self, record: Mapping[str, Any]) -> None:
        """Move the bar on by an epoch."""
        self._sizes.append(dict(record))
        if time.monotonic() - self._last > _PAUSE:
            self._show(record)

    def on_growth(self, record: Mapping[str, Any]) -> None:
        """Keep the change for the next picture."""
        self._changed = _change_line(record)

    def on_end(self, record: Mapping[str, Any]) -> None:
        """Show the network that is kept."""
        self._changed = _end_line(record)
        self._show({**self._sizes[-1], **record})

    def _show(self, record: Mapping[str, Any]) -> None:
        from IPython.display import HTML, display

        self._last = time.monotonic()
        done, most = len(self._sizes) - 1, self._sizes[-1]["epochs"]
        bar = f'<progress value="{done}" max="{most}" aria-label="epochs"></progress> epoch {done} of {most}'
        # Names of modules come from the user and may hold anything.
        state, changed = escape(state_line(record)), escape(self._changed)
        picture = html.network(record["architecture"])
        page = HTML(f"<div>{bar}<br>{state}<br>{changed}<br>{picture}</div>")  # type: ignore[no-untyped-call]
        # Renewed in place, so that the output stays as long as it is.
        if self._handle is None:
            self._handle = display(page, display_id=True)  # type: ignore[no-untyped-call]
        else:
            self._handle.update(page)
