"""Draw docs/growing.png: a network on the two moons, as it grows: python docs/growing.py."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from sklearn.datasets import make_moons
from torch import Tensor
from torch.nn import functional as F

import senn

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap

OLD, NEW = "#30506d", "#e07b39"
SIDES = ListedColormap(["#d7e6f2", "#f6e3d3"])


@dataclass
class Snapshot:
    """The network at one moment: its widths, which units are new, and its probabilities on a grid."""

    step: int
    loss: float
    widths: list[int]
    fresh: list[int]
    surface: Tensor


def grid() -> tuple[np.ndarray, np.ndarray, Tensor]:
    """Two coordinates (rows, columns) each, and the points (n, 2)."""
    xs, ys = np.meshgrid(np.linspace(-1.8, 2.8, 160), np.linspace(-1.4, 1.9, 120))
    return xs, ys, torch.tensor(np.stack([xs, ys], -1).reshape(-1, 2), dtype=torch.float32)


def run() -> tuple[np.ndarray, np.ndarray, list[Snapshot]]:
    """Train on the moons; one snapshot at the start, after each growth, and at the end."""
    torch.manual_seed(1)
    x, y = make_moons(400, noise=0.2, random_state=1)
    inputs, targets = torch.tensor(x, dtype=torch.float32), torch.tensor(y)
    model = senn.nn.MLP(2, (1,), 2, activation="tanh")
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    policy = senn.PricePolicy(kappa=0.3, confidence=1.0)
    grower = senn.Grower(model, optimizer, loss=F.cross_entropy, policy=policy, moves=("width",))
    points, snapshots, before = grid()[2], [], [1]

    def snap(step: int) -> None:
        nonlocal before
        with torch.no_grad():
            loss, surface = F.cross_entropy(model(inputs), targets), model(points).softmax(1)[:, 1]
        widths = list(model.hidden)
        fresh = [now - then for now, then in zip(widths, before, strict=True)]
        snapshots.append(Snapshot(step, loss.item(), widths, fresh, surface))
        before = widths

    for step in range(801):
        if step % 40 == 0 and step <= 400:
            events = grower.grow([(inputs, targets)])
            if step == 0 or events:
                snap(step)
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
    snap(800)
    return x, y, snapshots


def draw_network(axes: Axes, snapshot: Snapshot) -> None:
    """Layers as columns of dots; new units in the second colour."""
    sizes = [2, *snapshot.widths, 2]
    fresh = [0, *snapshot.fresh, 0]
    tallest = max(sizes)
    columns = [
        [(c, (i - (n - 1) / 2) / max(tallest, 6)) for i in range(n)] for c, n in enumerate(sizes)
    ]
    for c, (left, right) in enumerate(pairwise(columns)):
        for i, a in enumerate(left):
            for j, b in enumerate(right):
                new = i >= sizes[c] - fresh[c] or j >= sizes[c + 1] - fresh[c + 1]
                axes.plot(
                    *zip(a, b, strict=True), color=NEW if new else OLD, lw=0.7, alpha=0.55, zorder=1
                )
    for c, column in enumerate(columns):
        for i, (px, py) in enumerate(column):
            new = i >= sizes[c] - fresh[c]
            axes.scatter(
                px, py, s=70, color=NEW if new else OLD, edgecolor="white", linewidth=1.2, zorder=2
            )
    axes.set(xlim=(-0.4, len(sizes) - 0.6), ylim=(-0.65, 0.65))
    axes.axis("off")


def main() -> None:
    """Train, choose the snapshots, draw each with its network below."""
    x, y, snapshots = run()
    chosen = snapshots if len(snapshots) <= 5 else [*snapshots[:4], snapshots[-1]]
    xs, ys, _ = grid()
    figure, axes = plt.subplots(
        2, len(chosen), figsize=(2.6 * len(chosen), 4.6), dpi=130, height_ratios=(1, 1.1)
    )
    for column, snapshot in enumerate(chosen):
        top, bottom = axes[:, column]
        surface = snapshot.surface.reshape(xs.shape).numpy()
        top.contourf(xs, ys, surface > 0.5, levels=1, cmap=SIDES)
        top.contour(xs, ys, surface, levels=[0.5], colors=[OLD], linewidths=1.2)
        top.scatter(*x.T, c=[OLD if label == 0 else NEW for label in y], s=4, alpha=0.7)
        top.set(xticks=[], yticks=[])
        units = sum(snapshot.widths)
        top.set_title(
            f"step {snapshot.step}: {units} unit{'s' * (units > 1)}, loss {snapshot.loss:.2f}",
            fontsize=9.5,
        )
        for spine in top.spines.values():
            spine.set_visible(False)
        draw_network(bottom, snapshot)
    figure.tight_layout()
    figure.savefig(Path(__file__).parent / "growing.png")


if __name__ == "__main__":
    main()
