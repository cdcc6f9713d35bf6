"""The drawing of figure 5: widths that follow a cyclic learning rate."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from senn_reproduce.results import Record

STRONG, QUIET = (
    ("#d95f02", "#c2185b", "#7b1fa2", "#ad1457"),
    ("#1b7837", "#2166ac", "#4d9ed8", "#92c5de"),
)
"""Colors of the first block's last layers, and of others."""


class CyclicRun(Protocol):
    """What the drawing reads of the experiment's settings."""

    @property
    def hidden(self) -> Sequence[Sequence[int]]:
        """First widths of the layers of each block."""

    @property
    def cycles(self) -> int:
        """Number of cycles of the learning rate."""

    @property
    def cycle(self) -> int:
        """Steps of a cycle."""

    @property
    def steps(self) -> int:
        """Steps of all cycles."""

    @property
    def rate(self) -> float:
        """Peak of the learning rate."""

    def relative(self, step: int) -> float:
        """Return the learning rate of a step as a fraction of its peak."""


def figure(record: Record, settings: CyclicRun, path: Path) -> None:
    """Draw widths over one run's steps, the first block's last layers in color, and the learning rate and accuracy.

    Where the rate is above half its peak the ground is shaded.

    Args:
        record: of the run.
        settings: sizes of the experiment.
        path: of the PNG file.
    """
    canvas = Figure(figsize=(9, 8), layout="constrained")
    FigureCanvasAgg(canvas)
    grid = canvas.add_gridspec(3, 1, height_ratios=[3, 0.8, 1.3])
    above = canvas.add_subplot(grid[0])
    panels = [above, *(canvas.add_subplot(grid[row], sharex=above) for row in (1, 2))]
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_xlim(0, 1.005 * settings.steps)
        for cycle in range(settings.cycles):
            high = [cycle + 0.04, cycle + 0.55]  # where the rate is above half its peak
            axes.axvspan(
                *(settings.cycle * edge for edge in high), color="#f3e9dc", zorder=0, linewidth=0
            )
    _widths(panels[0], record, settings)
    _rate(panels[1], settings)
    _accuracy(panels[2], record)
    for axes in panels[:2]:
        axes.tick_params(labelbottom=False)
    canvas.savefig(path, dpi=160, format="png")


def _widths(axes: Axes, record: Record, settings: CyclicRun) -> None:
    steps, quiet = [0, *record["curves"]["steps"]], iter([*QUIET, *["#bbbbbb"] * 20])
    layers = [
        (b, k, first) for b, block in enumerate(settings.hidden) for k, first in enumerate(block)
    ]
    for (b, k, first), width in zip(
        layers, zip(*record["curves"]["widths"], strict=True), strict=True
    ):
        bold = b == 0 and k > 0
        axes.step(
            steps, [first, *width], where="post", color=STRONG[(k - 1) % len(STRONG)] if bold else next(quiet),
            linewidth=2.6 if bold else 1.3, zorder=3 if bold else 2, label=f"block {b + 1}, layer {k + 1}",
        )  # fmt: skip
    axes.set_ylim(0)
    axes.set_ylabel("channels")
    axes.legend(loc="upper left", ncols=len(settings.hidden), fontsize=9, framealpha=0.9)


def _rate(axes: Axes, settings: CyclicRun) -> None:
    steps = range(0, settings.steps, max(settings.cycle // 200, 1))
    axes.plot(
        steps,
        [settings.rate * settings.relative(step) for step in steps],
        color="#555555",
        linewidth=1.5,
    )
    axes.set_ylim(0)
    axes.set_ylabel("learning rate")


def _accuracy(axes: Axes, record: Record) -> None:
    curves = record["curves"]
    for name, color, label in (
        ("grown", "black", "grown"),
        ("fixed", "#999999", "fixed at the grown net's last size"),
    ):
        axes.plot(curves["steps"], curves[name], color=color, linewidth=1.6, label=label)
    axes.set_xlabel("optimization step")
    axes.set_ylabel("validation accuracy")
    axes.legend(loc="lower right", fontsize=9, framealpha=0.9)
