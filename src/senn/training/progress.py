"""What a run shows while it goes on where there is no command line: lines, or in a notebook a bar and the network."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from html import escape
from typing import Any

from senn import drawn
from senn.training.callbacks import Callback
from senn.training.round_records import Record

_PAUSE = 0.2
"""Seconds between two pictures."""


def progress(verbose: int) -> tuple[Callback, ...]:
    """What tells of a run: nothing for 0, else a picture that is renewed in a notebook, and lines elsewhere."""
    if not verbose:
        return ()
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return (Picture(),) if getattr(shell, "kernel", None) is not None else (Lines(),)


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _state(record: Mapping[str, Any]) -> str:
    hidden = "-".join(map(str, record["architecture"])) or "none"
    losses = f"loss {_figure(record.get('train_loss'))}"
    if record.get("validation_loss") is not None:
        losses += f", validation {_figure(record['validation_loss'])}"
    return f"{losses}, hidden {hidden}, {record['parameters']:,} parameters"


class Lines(Callback):
    """A line for each change of size, and one for every tenth of the epochs."""

    def on_epoch(self, record: Mapping[str, Any]) -> None:
        """The state, now and then."""
        if record["epoch"] % max(1, record["epochs"] // 10) == 0:
            print(f"epoch {record['epoch']}/{record['epochs']}: {_state(record)}")

    def on_growth(self, record: Mapping[str, Any]) -> None:
        """The change."""
        print(f"step {record['step']}: {record['text']}")

    def on_end(self, record: Mapping[str, Any]) -> None:
        """Why training ended."""
        print(f"training ended: {record['reason']} (epoch {record['best_epoch']} is kept)")


class Picture(Callback):
    """A bar, the state and the network, in one place of a notebook's output."""

    def __init__(self) -> None:
        self._sizes: list[Record] = []
        self._changed = ""
        self._handle: Any = None
        self._last = 0.0

    def on_start(self, record: Mapping[str, Any]) -> None:
        """The network as it begins."""
        self._sizes = [dict(record)]
        self._show(record)

    def on_epoch(self, record: Mapping[str, Any]) -> None:
        """The bar moves on."""
        self._sizes.append(dict(record))
        if time.monotonic() - self._last > _PAUSE:
            self._show(record)

    def on_growth(self, record: Mapping[str, Any]) -> None:
        """The change, for the next picture."""
        self._changed = f"step {record['step']}: {record['text']}"

    def on_end(self, record: Mapping[str, Any]) -> None:
        """The network that is kept."""
        self._changed = f"training ended: {record['reason']} (epoch {record['best_epoch']} is kept)"
        self._show({**self._sizes[-1], **record})

    def _show(self, record: Mapping[str, Any]) -> None:
        from IPython.display import HTML, display

        self._last = time.monotonic()
        done, most = len(self._sizes) - 1, self._sizes[-1]["epochs"]
        bar = f'<progress value="{done}" max="{most}" aria-label="epochs"></progress> epoch {done} of {most}'
        words = f"{escape(_state(record))}<br>{escape(self._changed)}"
        page = HTML(f"<div>{bar}<br>{words}<br>{drawn.network(record['architecture'])}</div>")  # type: ignore[no-untyped-call]
        if self._handle is None:
            self._handle = display(page, display_id=True)  # type: ignore[no-untyped-call]
        else:
            self._handle.update(page)
