"""Draw the history of a run as a figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from senn import _deprecated
from senn._extras import importing

with importing("senn.viz.plots", "cli"):
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

__all__ = [
    "GrowthFigure",
    "growth_figure",
]

if not TYPE_CHECKING:
    __getattr__ = _deprecated.old_names(__name__)


Records = Sequence[Mapping[str, Any]]

MOST_NAMED = 10
"""Layers in a legend: with more it would be taller than its panel, so there is none."""

_RING: dict[str, Any] = {"marker": "o", "facecolors": "white", "edgecolors": "C0", "zorder": 3}
_CROSS: dict[str, Any] = {"marker": "x", "color": "C1", "zorder": 4}
_ASIDE: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.02), "frameon": False}


class GrowthFigure(Figure):
    """Matplotlib figure that a notebook shows even if `matplotlib.pyplot` isn't used."""

    def _repr_png_(self) -> bytes:
        file = BytesIO()
        self.savefig(file, dpi=80, format="png")
        return file.getvalue()


def growth_figure(
    history: Records, path: str | Path | None = None, start: Sequence[int] = ()
) -> GrowthFigure:
    """Draw how a network grew and what came of it.

    Three panels over steps: the width of each hidden layer, which keeps its color when others are inserted before it;
    the training and validation loss; and for each round with changes the expected decrease of the loss and the decrease
    realized until the next round. Steps are on a square-root scale, since most changes come early.

    Args:
        history: records of a run (`TrainResult.history`).
        path: PNG file to write; None to write none.
        start: hidden widths before the first step, if the history doesn't begin with them.

    Returns:
        The figure, to be changed, saved, or shown (a notebook shows it by itself).

    >>> epoch = {"event": "epoch", "epoch": 1, "step": 9, "train_loss": 0.7, "validation_loss": 0.8}
    >>> figure = growth_figure([{**epoch, "architecture": (3, 2)}])
    >>> [axes.get_ylabel() for axes in figure.axes][:2]
    ['units', 'loss']
    """
    epochs = [record for record in history if record["event"] == "epoch"]
    growth = [record for record in history if record["event"] == "growth"]
    figure = GrowthFigure(figsize=(10, 9), layout="constrained")
    # A canvas of its own: pyplot would keep the figure, and might open a window.
    FigureCanvasAgg(figure)
    upper, middle, lower = figure.subplots(3, 1, sharex=True)
    for axes in (upper, middle, lower):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="0.93", linewidth=0.8)
        axes.set_axisbelow(True)
    _plot_widths(upper, [{"step": 0, "architecture": start}, *history] if start else history)
    _plot_losses(middle, epochs, growth)
    _plot_decreases(lower, growth)
    _mark_kept(upper, (upper, middle, lower), history, epochs)
    # A log scale would have no place for step 0.
    lower.set_xscale("function", functions=(_root, np.square))
    last = max((record["step"] for record in [*epochs, *growth]), default=1)
    # Two percent more, or the last change would lie on the frame.
    lower.set_xlim(0, last * 1.02)
    lower.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
    lower.set_xlabel("step (square-root scale)")
    if path is not None:
        # 1,100 pixels wide: half would blur the labels, and few screens show twice that whole.
        figure.savefig(path, dpi=110, format="png")
    return figure


def _root(step: Any) -> Any:
    # Matplotlib also asks for the positions of margins, below step 0.
    return np.sqrt(np.clip(step, 0, None))


def follow(architectures: Sequence[Sequence[int]]) -> list[list[tuple[int, int]]]:
    """Follow the width of each layer over time, though layers are inserted between others.

    Args:
        architectures: hidden widths at successive moments. Where there are more than before, the new ones are taken
            to be where they leave the widths of the others most alike.

    Returns:
        Pairs (moment, width) for each layer, in order of use.
    """
    layers: list[list[tuple[int, int]]] = []
    for moment, architecture in enumerate(architectures):
        new = len(architecture) - len(layers)
        if new:
            others = [layer[-1][1] for layer in layers]
            at = min(range(len(layers) + 1), key=lambda at: _change(others, architecture, at))
            # New layers are taken to lie side by side: a round inserts few, mostly at one place.
            layers[at:at] = [[] for _ in range(new)]
        for layer, width in zip(layers, architecture, strict=True):
            layer.append((moment, width))
    return layers


def _change(others: Sequence[int], architecture: Sequence[int], at: int) -> int:
    """Sum the changes of the other layers' widths if the new layers came before layer number `at`."""
    # The widths that remain once the new layers are taken out.
    rest = [*architecture[:at], *architecture[at + len(architecture) - len(others) :]]
    return sum(abs(width - other) for width, other in zip(rest, others, strict=True))


def _plot_widths(axes: Axes, history: Records) -> None:
    sized = sorted(
        (r for r in history if "architecture" in r and "step" in r), key=lambda r: r["step"]
    )
    layers = follow([record["architecture"] for record in sized])
    for number, layer in enumerate(layers, start=1):
        steps = [sized[moment]["step"] for moment, _ in layer]
        widths = [width for _, width in layer]
        # post: a width holds from its record on, not back to the one before.
        axes.step(steps, widths, where="post", linewidth=2, label=f"hidden layer {number}")
        axes.plot(steps[0], widths[0], marker="o", markersize=4, color=f"C{(number - 1) % 10}")
    axes.set_ylabel("units")
    axes.set_ylim(bottom=0)
    # There are no half units.
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    if 0 < len(layers) <= MOST_NAMED:
        axes.legend(**_ASIDE)


def _plot_losses(axes: Axes, epochs: Records, growth: Records) -> None:
    values: list[float] = []
    for key, label in (("train_loss", "training"), ("validation_loss", "validation")):
        points = [(record["step"], record[key]) for record in epochs if record[key] is not None]
        values += [loss for _, loss in points]
        if points:
            axes.plot(*zip(*points, strict=True), label=label)
    # Only the first line has a label, or the legend would list every change.
    for at, step in enumerate(sorted({record["step"] for record in growth})):
        axes.axvline(
            step, color="0.75", linewidth=0.8, zorder=0, label=None if at else "change of size"
        )
    axes.set_ylabel("loss")
    if axes.get_legend_handles_labels()[1]:
        axes.legend(**_ASIDE)
    if all(value > 0 for value in values):  # not the case for every loss of a user
        axes.set_yscale("log")


def _plot_decreases(axes: Axes, growth: Records) -> None:
    """Plot expected and realized decreases, summed over a round."""
    # Linear below a thousandth: a lower threshold would give decades of the axis to noise.
    axes.set_yscale(
        "symlog", linthresh=1e-3
    )  # decreases fall by orders of magnitude, and those of pruning are negative
    axes.axhline(0, color="0.6", linewidth=0.8, zorder=0)
    axes.set_ylabel("decrease of the loss after\na change of size (nats)")
    expected: dict[int, float] = {}
    for record in growth:
        expected[record["step"]] = expected.get(record["step"], 0.0) + record["expected_decrease"]
    realized: dict[int, float] = {}
    for record in growth:
        if record.get("realized_decrease") is not None:
            realized[record["step"]] = (
                realized.get(record["step"], 0.0) + record["realized_decrease"]
            )
    for values, label, style in ((expected, "expected", _RING), (realized, "realized", _CROSS)):
        if values:
            axes.scatter(list(values), list(values.values()), label=label, **style)
    for step, value in realized.items():
        axes.vlines(step, expected[step], value, color="0.7", linewidth=1, zorder=2)
    axes.margins(y=0.1)
    if growth:
        axes.legend(**_ASIDE)
    else:
        axes.text(
            0.5, 0.6, "the network did not change its size", transform=axes.transAxes, ha="center"
        )


def _mark_kept(named: Axes, panels: Sequence[Axes], history: Records, epochs: Records) -> None:
    """Mark the epoch whose network is kept."""
    kept = next((record["best_epoch"] for record in history if record["event"] == "end"), None)
    step = next((record["step"] for record in epochs if record["epoch"] == kept), None)
    if step is None:
        return
    for axes in panels:
        axes.axvline(step, color="0.3", linewidth=1, linestyle="--", zorder=1)
    transform = named.get_xaxis_transform()
    named.text(
        step,
        1.01,
        f"epoch {kept} is kept",
        transform=transform,
        ha="center",
        va="bottom",
        color="0.3",
    )
