"""Draw docs/spaces.png, the channel groups of a small vision transformer: python docs/draw_spaces.py.

Everything but the positions on the page comes from what `senn.analyze` finds in the model. Tensors stand in the order
in which the forward pass first uses them; weights of linear maps are matrices, (out, in * kernel positions), to scale.
"""

from __future__ import annotations

import sys
import textwrap
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.colors import to_rgb
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from senn.graph import CoupledDim, DependencyGraph, LinearMap, analyze, get_tensor, owned_columns

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "helpers"))

from zoo.transformer import ViT

COLORS = ("#2a78d6", "#e0632b", "#149a6b", "#6a4fc4")
GREY, INK, FAINT, PAPER = "#a9aeb4", "#22272c", "#f4f5f6", "#ffffff"
STRIP, GAP, BAR, LINE = (
    2.0,
    7.0,
    1.8,
    2.4,
)  # in cells: thickness of a band, gap between boxes, an elementwise tensor, a line
ACROSS, FONT = 130, 9


def model() -> nn.Module:
    """A convolution with BatchNorm before the patches, one block with fused queries, keys and values, a head."""
    torch.manual_seed(0)
    vit = ViT(width=12, heads=3)
    stem = [nn.Conv2d(3, 5, 3, 2, padding=1), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 12, 2, 2)]
    vit.patch, vit.blocks = nn.Sequential(*stem), vit.blocks[:1]
    return vit


class FirstUse(TorchFunctionMode):
    """Notes the tensors of a model in the order of their first use."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.names = {
            id(tensor): name for name, tensor in [*net.named_parameters(), *net.named_buffers()]
        }
        self.order: list[str] = []

    def __torch_function__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        """Note the tensors among the arguments, then call the function."""
        for value in (*args, *(kwargs or {}).values()):
            name = self.names.get(id(value))
            if name is not None and name not in self.order:
                self.order.append(name)
        return function(*args, **(kwargs or {}))


@dataclass
class Box:
    """One item of the page: a matrix (out, in), or the elementwise tensors of one module side by side.

    Attributes:
        name: name of the module or bare tensor.
        size: (rows, columns) in cells; (units, tensors) for elementwise tensors.
        rows: shade of each row (of each entry for elementwise tensors); None where it belongs to no unit.
        columns: shade of each column; empty for elementwise tensors.
        words: lines under the box, each with its color.
    """

    name: str
    size: tuple[int, int]
    rows: list[str | None]
    columns: list[str | None] = field(default_factory=list)
    words: list[tuple[str, str]] = field(default_factory=list)

    @property
    def across(self) -> float:
        """Width in cells."""
        return self.size[1] + STRIP if self.columns else self.size[1] * BAR


def shade(color: str, unit: int, width: int) -> str:
    """Return the full color for one unit of a group, and two pale shades by turns for the others."""
    keep = 1.0 if unit == width // 2 else (0.34, 0.5)[unit % 2]
    return mpl.colors.to_hex(1 - keep * (1 - np.array(to_rgb(color))))


def painted(
    size: int, index: Tensor, color: str, cells: list[str | None] | None = None
) -> list[str | None]:
    """Return the shades of `size` positions, of which those in `index`, (width, k), belong to units."""
    cells = cells or [None] * size
    for unit, positions in enumerate(index.tolist()):
        for position in positions:
            cells[position] = shade(color, unit, len(index))
    return cells


def counted(coupled: CoupledDim, kernel: int = 1) -> str:
    """Describe how units lie in a dimension; `kernel` is the number of kernel positions."""
    width, k = coupled.index.shape
    times = (f" x {k}" if k > 1 else "") + (f" x {kernel}" if kernel > 1 else "")
    return f"{width} units{times}" + (
        f"\nin {coupled.n_segments} segments" if coupled.n_segments > 1 else ""
    )


def matrix_box(
    net: nn.Module, graph: DependencyGraph, one: LinearMap, colors: dict[str, str]
) -> Box:
    """Make the box of a linear map: the group that its rows make and the one that its columns read, if any."""
    shape = get_tensor(net, one.weight).shape
    box = Box(one.name, (shape[one.out_dim], shape[one.in_dim] * one.kernel_numel), [], [])
    box.rows, box.columns = [None] * box.size[0], [None] * box.size[1]
    reads = f"reads {shape[one.in_dim]} inputs" + (
        f"\nx {one.kernel_numel}" if one.kernel_numel > 1 else ""
    )
    read, made = [(reads, INK)], []
    for group in graph.groups:
        for coupled in (coupled for coupled in group.dims if coupled.name == one.weight):
            color = colors[group.name]
            if coupled.role == "consumer":
                painted(box.size[1], owned_columns(coupled, one.kernel_numel), color, box.columns)
                read = [(f"reads {counted(coupled, one.kernel_numel)}", color)]
            else:
                painted(box.size[0], coupled.index, color, box.rows)
                made.append((f"makes {counted(coupled)}", color))
    for refusal in graph.refusals:
        if refusal.place == one.name:
            box.rows = [GREY] * box.size[0]
            made.append((f"cannot change:\n{textwrap.fill(refusal.reason, 18)}", "#6b7178"))
    box.words = [*read, *made]
    return box


def boxes(
    net: nn.Module, graph: DependencyGraph, order: list[str], colors: dict[str, str]
) -> list[Box]:
    """Make all boxes, in order of first use."""
    maps = {one.weight: one for one in graph.linear_maps}
    elementwise = {
        coupled.name: (group, coupled)
        for group in graph.groups
        for coupled in group.dims_of("elementwise")
    }
    found: dict[str, Box] = {}
    for name in order:
        if name in maps:
            found[name] = matrix_box(net, graph, maps[name], colors)
        elif name in elementwise:
            group, coupled = elementwise[name]
            place = coupled.module or coupled.name
            shades = painted(
                get_tensor(net, name).shape[coupled.dim], coupled.index, colors[group.name]
            )
            if place in found:
                found[place].size = (found[place].size[0], found[place].size[1] + 1)
            else:
                found[place] = Box(
                    place, (len(shades), 1), shades, words=[("per unit", colors[group.name])]
                )
    return list(found.values())


def rectangle(
    axes: Axes, place: tuple[float, float], size: tuple[float, float], **style: object
) -> None:
    """Draw a rectangle, filled and without an edge unless the style says otherwise."""
    axes.add_patch(Rectangle(place, *size, **{"linewidth": 0, **style}))


def band(
    axes: Axes, cells: list[str | None], start: tuple[float, float], thick: float, *, down: bool
) -> None:
    """Draw cells one after another, to the right or down from a corner, with a light line around each."""
    x, y = start
    for place, color in enumerate(cells):
        where, size = ((x, y - place - 1), (thick, 1)) if down else ((x + place, y), (1, thick))
        if color is not None:
            rectangle(axes, where, size, facecolor=color, edgecolor=PAPER, linewidth=0.7)


def draw_matrix(axes: Axes, box: Box, left: float, floor: float) -> None:
    """Draw a matrix with a band over its columns and one on the right of its rows; mark one unit of each group."""
    rows, across = box.size
    rectangle(axes, (left, floor), (across, rows), facecolor=FAINT)
    for place in (place for place, color in enumerate(box.columns) if color in COLORS):
        rectangle(axes, (left + place, floor), (1, rows), facecolor=box.columns[place], alpha=0.25)
    for place in (place for place, color in enumerate(box.rows) if color in COLORS):
        rectangle(
            axes,
            (left, floor + rows - place - 1),
            (across, 1),
            facecolor=box.rows[place],
            alpha=0.25,
        )
    rectangle(axes, (left, floor), (across, rows), fill=False, edgecolor=GREY, linewidth=0.6)
    if not any(box.columns):
        rectangle(
            axes,
            (left, floor + rows + 0.6),
            (across, STRIP),
            fill=False,
            edgecolor=GREY,
            linewidth=0.6,
        )
    band(axes, box.columns, (left, floor + rows + 0.6), STRIP, down=False)
    band(axes, box.rows, (left + across + 0.6, floor + rows), STRIP, down=True)


def draw_elementwise(axes: Axes, box: Box, left: float, floor: float) -> None:
    """Draw tensors with one entry for each unit, side by side."""
    for tensor in range(box.size[1]):
        band(axes, box.rows, (left + tensor * BAR, floor + box.size[0]), BAR - 0.4, down=True)


def broken(name: str, most: int = 11) -> str:
    """Break a name at its dots, into lines of at most so many letters if possible."""
    lines = [""]
    for part in name.split("."):
        joined = f"{lines[-1]}.{part}" if lines[-1] else part
        lines[-1:] = [joined] if len(joined) <= most else [f"{lines[-1]}.", part]
    return "\n".join(lines)


def draw(axes: Axes, box: Box, left: float, floor: float) -> None:
    """Draw a box and the words under it."""
    (draw_matrix if box.columns else draw_elementwise)(axes, box, left, floor)
    middle, down = left + box.across / 2, floor - 1.2
    for text, color, weight in [
        (broken(box.name), INK, "bold"),
        *((t, c, "normal") for t, c in box.words),
    ]:
        for line in text.splitlines():
            axes.text(
                middle, down, line, color=color, weight=weight, fontsize=FONT, ha="center", va="top"
            )
            down -= LINE


def lines_of(found: list[Box]) -> list[list[tuple[Box, float]]]:
    """Arrange boxes in lines that fit the page; each box with its left edge."""
    lines: list[list[tuple[Box, float]]] = [[]]
    left = 2.0
    for box in found:
        if left + box.across > ACROSS:
            lines.append([])
            left = 2.0
        lines[-1].append((box, left))
        left += box.across + GAP
    return lines


def legend(
    axes: Axes, graph: DependencyGraph, colors: dict[str, str], left: float, top: float
) -> None:
    """Draw the legend: each group with the attributes that change with it."""
    for group in graph.groups:
        shades = [shade(colors[group.name], unit, group.width) for unit in range(group.width)]
        band(axes, shades, (left, top - 3.2), STRIP, down=False)
        text = f"{group.name}: {group.width} units"
        axes.text(
            left + 23, top, text, weight="bold", color=colors[group.name], fontsize=FONT, va="top"
        )
        changes = sorted({f"{one.name} +{one.per_unit}" for one in group.attributes})
        for line in textwrap.wrap("one more: " + ", ".join(changes), 82):
            top -= LINE
            axes.text(left + 23, top, line, color=INK, fontsize=FONT - 1, va="top")
        top -= LINE + 1.2


def height(line: list[tuple[Box, float]]) -> float:
    """Return the height of the words under a line of boxes."""
    texts = ([broken(box.name), *(text for text, _ in box.words)] for box, _ in line)
    return LINE * max(sum(1 + text.count("\n") for text in words) for words in texts)


def main() -> None:
    """Analyze the model and draw its groups."""
    net, inputs = model().eval(), torch.randn(2, 3, 16, 16)
    graph = analyze(net, inputs)
    with torch.no_grad(), FirstUse(net) as seen:
        net(inputs)
    colors = {group.name: color for group, color in zip(graph.groups, COLORS, strict=True)}
    lines = lines_of(boxes(net, graph, seen.order, colors))
    figure, axes = plt.subplots(figsize=(10, 7), dpi=180, facecolor=PAPER)
    floor = 0.0
    for line in lines:
        floor -= max(box.size[0] for box, _ in line) + STRIP + 1
        for box, left in line:
            draw(axes, box, left, floor)
        floor -= 1.2 + height(line) + 1
    legend(axes, graph, colors, lines[0][0][1], 0)
    axes.set(xlim=(0, ACROSS), ylim=(floor + 1, 1), aspect="equal")
    axes.axis("off")
    figure.savefig(Path(__file__).parent / "spaces.png", bbox_inches="tight", pad_inches=0.12)


if __name__ == "__main__":
    main()
