"""The drawing of figure 6: accuracy at any time, before and after the change of data, and how widths change."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

Records = Sequence[Mapping[str, Any]]

COLORS = {"grown": "#d62728", "fixed": "#1f77b4", "scratch": "0.45"}
NAMES = {"grown": "self-expanding", "fixed": "fixed size", "scratch": "from scratch"}


def figure(records: Records, path: Path) -> None:
    """Draw what `senn_reproduce.transfer` records, as a PNG file.

    Three panels over steps: accuracy on held-out CIFAR-10 while the net is pre-trained; on held-out Tiny-ImageNet
    afterwards, rounds that added units marked; channels of each layer of the nets that grew. Thick lines are means over
    the seeds, shades reach from the smallest to the largest, thin lines are single seeds. The last two panels give
    early steps more room.

    Args:
        records: one for each run.
        path: of the PNG file.
    """
    canvas = Figure(figsize=(13.5, 4.7), layout="constrained")
    FigureCanvasAgg(canvas)
    before, after, layers = canvas.subplots(1, 3, width_ratios=[0.75, 1.6, 1.35])
    for axes in (before, after, layers):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="0.93", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.set_xlabel("step")
    _pretraining(before, records)
    _transfer(after, records)
    _widths(layers, records)
    last = records[0]["widths"][-1][0]
    for axes in (after, layers):
        axes.set_xscale("function", functions=(_root, np.square))
        axes.set_xlim(0, last)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        axes.set_xlabel("step (square-root scale)")
    canvas.savefig(path, dpi=160, format="png")


def _root(step: Any) -> Any:
    return np.sqrt(np.clip(step, 0, None))


def _curve(axes: Axes, records: Records, name: str, **style: Any) -> tuple[Any, Any]:
    """Mean over the seeds, shaded from the smallest to the largest; its points."""
    steps = [step for step, _ in records[0]["curves"][name]]
    values = 100 * np.array([[value for _, value in record["curves"][name]] for record in records])
    axes.fill_between(
        steps, values.min(0), values.max(0), color=style["color"], alpha=0.16, linewidth=0
    )
    axes.plot(steps, values.mean(0), linewidth=1.9, **style)
    return steps, values.mean(0)


def _pretraining(axes: Axes, records: Records) -> None:
    _curve(axes, records, "source", color="#2ca02c")
    axes.set_title("before: CIFAR-10", fontsize=11, loc="left")
    axes.set_ylabel("validation accuracy, %")
    axes.set_xlim(0, records[0]["curves"]["source"][-1][0])
    axes.xaxis.set_major_locator(MaxNLocator(nbins=3, integer=True))


def _transfer(axes: Axes, records: Records) -> None:
    for order, arm in enumerate(("scratch", "fixed", "grown")):
        parameters = statistics.fmean(record["parameters"][arm] for record in records)
        test = 100 * statistics.fmean(record["test"][arm] for record in records)
        label = f"{NAMES[arm]}: {parameters:,.0f} parameters, test {test:.1f} %"
        steps, mean = _curve(axes, records, arm, color=COLORS[arm], label=label, zorder=3 + order)
    grown = sorted({step for record in records for step in _rounds(record)})
    axes.scatter(
        grown, np.interp(_root(grown), _root(steps), mean), marker="^", s=42, color=COLORS["grown"], edgecolors="white",
        linewidths=0.8, zorder=8, label="units added",
    )  # fmt: skip
    handles, labels = axes.get_legend_handles_labels()
    best_first = [handles[2::-1] + handles[3:], labels[2::-1] + labels[3:]]
    axes.legend(*best_first, fontsize=9, loc="upper left", framealpha=0.9, borderaxespad=0.8)
    axes.set_ylim(0, 1.15 * axes.get_ylim()[1])
    axes.set_title("after: Tiny-ImageNet, 50 classes", fontsize=11, loc="left")
    axes.set_ylabel("validation accuracy, %")


def _rounds(record: Mapping[str, Any]) -> Iterator[int]:
    """Steps after which units were added."""
    for (_, old), (step, new) in zip(record["widths"], record["widths"][1:], strict=False):
        if sum(new) > sum(old):
            yield step


def _widths(axes: Axes, records: Records) -> None:
    depths = len(records[0]["hidden"])
    shades = colormaps["viridis"](np.linspace(0, 0.82, depths))
    names = [
        f"block {b + 1}, layer {k + 1}"
        for b, count in enumerate(records[0]["blocks"])
        for k in range(count)
    ]
    steps = sorted({step for record in records for step, _ in record["widths"]})
    ends = []
    for layer, shade in enumerate(shades):
        values = np.array([[_at(record, step)[layer] for step in steps] for record in records])
        axes.step(steps, values.T, where="post", color=shade, linewidth=0.8, alpha=0.35)
        axes.step(steps, values.mean(0), where="post", color=shade, linewidth=2.2)
        ends.append(float(values.mean(0)[-1]))
    _label_ends(axes, ends, names, shades)
    axes.set_title("channels of the self-expanding net", fontsize=11, loc="left")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))


def _at(record: Mapping[str, Any], step: int) -> Sequence[int]:
    """Return the widths after a step."""
    found: Sequence[int] = [widths for at, widths in record["widths"] if at <= step][-1]
    return found


def _label_ends(axes: Axes, ends: Sequence[float], names: Sequence[str], colors: Any) -> None:
    """Write names next to the ends of lines, far enough apart to be read."""
    low, high = axes.get_ylim()
    gap = (high - low) / 18
    places: dict[int, float] = {}
    for number in sorted(range(len(ends)), key=lambda number: ends[number]):
        places[number] = max(ends[number], max(places.values(), default=-np.inf) + gap)
    for number, height in places.items():
        axes.annotate(
            names[number], (1, height), xycoords=("axes fraction", "data"), xytext=(5, 0), textcoords="offset points",
            va="center", fontsize=9, color=colors[number], annotation_clip=False,
        )  # fmt: skip
