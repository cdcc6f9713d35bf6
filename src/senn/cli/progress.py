"""What is seen of a training run in a terminal, or in a log where there is no terminal."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column
from rich.text import Text

from senn.training.callbacks import Callback

_COLOURS = {"widen": "green", "insert": "cyan", "prune": "yellow"}


def widths(architecture: Any) -> str:
    """Hidden widths for people: `12-30`, or `none`."""
    return "-".join(str(width) for width in architecture) or "none"


def figure(value: float | None, digits: int = 3) -> str:
    """A number for people."""
    return "-" if value is None else f"{value:.{digits}g}"


def _state(record: Mapping[str, Any]) -> str:
    validation = ""
    if record["validation_loss"] is not None:
        score = figure(record["validation_score"])
        validation = f"validation {figure(record['validation_loss'])} (score {score}), "
    size = f"hidden {widths(record['architecture'])}, {record['parameters']:,} parameters"
    return f"loss {figure(record['train_loss'])}, {validation}{size}"


def _short(record: Mapping[str, Any]) -> str:
    """The state beside a bar, the size first: training / validation loss, validation score."""
    short = f"hidden {widths(record['architecture'])}, loss {figure(record['train_loss'])}"
    if record["validation_loss"] is None:
        return short
    return f"{short} / {figure(record['validation_loss'])}, score {figure(record['validation_score'])}"


class LinesCallback(Callback):
    """One plain line per change of size, and one every few seconds or tenth of the epochs.

    Args:
        console: where to.
        seconds: shortest time between two lines on the state of training.
    """

    def __init__(self, console: Console, seconds: float = 10.0) -> None:
        self.console, self.seconds = console, seconds
        self._last = time.monotonic()

    def on_epoch(self, record: Mapping[str, Any]) -> None:
        """The state, now and then."""
        epoch, epochs = record["epoch"], record["epochs"]
        if epoch % max(1, epochs // 10) == 0 or time.monotonic() - self._last > self.seconds:
            self._last = time.monotonic()
            self._print(f"epoch {epoch}/{epochs}: {_state(record)}")

    def on_growth(self, record: Mapping[str, Any]) -> None:
        """The change."""
        self._print(f"step {record['step']}: {record['text']}", _COLOURS.get(record["kind"], ""))

    def on_fault(self, record: Mapping[str, Any]) -> None:
        """What went wrong."""
        self._print(f"step {record['step']}: {record['text']}", "red")

    def on_end(self, record: Mapping[str, Any]) -> None:
        """Why training ended."""
        self._print(f"training ended: {record['reason']} (epoch {record['best_epoch']} is kept)")

    def _print(self, line: str, style: str = "") -> None:
        self.console.print(Text(line, style), soft_wrap=True)  # a style given to print would colour the bar, too


class LiveCallback(LinesCallback):
    """A progress bar with the state beside it; changes of size scroll by above."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._progress = Progress(
            BarColumn(bar_width=10),
            TextColumn("{task.completed}/{task.total} epochs"),
            TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, ratio=1)),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            expand=True,
        )
        self._task = self._progress.add_task("starting", total=None)

    def on_start(self, record: Mapping[str, Any]) -> None:
        """Show the bar."""
        self._progress.update(self._task, total=record["epochs"])
        self._progress.start()

    def on_epoch(self, record: Mapping[str, Any]) -> None:
        """Move the bar."""
        self._progress.update(self._task, completed=record["epoch"], description=_short(record))

    def on_end(self, record: Mapping[str, Any]) -> None:
        """Take the bar away."""
        self.stop()
        super().on_end(record)

    def stop(self) -> None:
        """Take the bar away, also after an error."""
        self._progress.stop()
