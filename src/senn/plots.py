"""Figures of training runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

Records = Sequence[Mapping[str, Any]]

MOST_NAMED = 10
"""Deeper networks get no legend."""

_RING: dict[str, Any] = {"marker": "o", "facecolors": "none", "edgecolors": "C0"}
_CROSS: dict[str, Any] = {"marker": "x", "color": "C0"}


def growth_figure(history: Records, path: Path) -> None:
    """Draw how a network grew and what came of it, as a PNG file.

    Three panels over steps: the width of each hidden layer; training and validation loss; for each change of size
    the decrease of the loss that was promised, and the one that followed until the next consideration.

    Args:
        history: the records of a run (`Run.history`).
        path: the file.
    """
    epochs = [record for record in history if record["event"] == "epoch"]
    growth = [record for record in history if record["event"] == "growth"]
    figure = Figure(figsize=(8, 9), layout="constrained")
    FigureCanvasAgg(figure)
    upper, middle, lower = figure.subplots(3, 1, sharex=True)
    _widths(upper, history)
    _losses(middle, epochs, growth)
    _promises(lower, growth)
    lower.set_xlabel("step")
    figure.savefig(path, dpi=110, format="png")


def _widths(axes: Axes, history: Records) -> None:
    sized = sorted((r for r in history if "architecture" in r and "step" in r), key=lambda r: r["step"])
    depth = max((len(record["architecture"]) for record in sized), default=0)
    for layer in range(depth):
        points = [(r["step"], r["architecture"][layer]) for r in sized if layer < len(r["architecture"])]
        axes.step(*zip(*points, strict=True), where="post", label=f"hidden layer {layer + 1}")
    axes.set_ylabel("units")
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    if 0 < depth <= MOST_NAMED:
        axes.legend(loc="upper left")


def _losses(axes: Axes, epochs: Records, growth: Records) -> None:
    drawn: list[float] = []
    for key, label in (("train_loss", "training"), ("validation_loss", "validation")):
        points = [(record["step"], record[key]) for record in epochs if record[key] is not None]
        drawn += [loss for _, loss in points]
        if points:
            axes.plot(*zip(*points, strict=True), label=label)
    for record in growth:
        axes.axvline(record["step"], color="0.8", linewidth=0.8, zorder=0)
    axes.set_ylabel("loss")
    if epochs:
        axes.legend()
    if all(value > 0 for value in drawn):
        axes.set_yscale("log")


def _promises(axes: Axes, growth: Records) -> None:
    for key, style in (("promised", _RING), ("realised", _CROSS)):
        points = [(record["step"], record[key]) for record in growth if record.get(key) is not None]
        if points:
            axes.scatter(*zip(*points, strict=True), label=key, **style)
    axes.axhline(0, color="0.8", linewidth=0.8, zorder=0)
    axes.set_ylabel("decrease of the loss")
    if growth:
        axes.legend()
    else:
        axes.text(0.5, 0.5, "the network did not change its size", transform=axes.transAxes, ha="center")
