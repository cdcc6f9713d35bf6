"""The drawing of figure 2: fits over landscapes of the score of a new neuron, by location and scale."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import QuadMesh
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional as F

from senn.kfac.capture import capture
from senn.kfac.factors import kronecker_factors
from senn.kfac.loss_metric import LossMetric
from senn.nn import MLP
from senn.scoring.formulas import residual_cross, width_gain_bound

LOCATIONS, SCALES = (-4.0, 4.0), (0.03, 10.0)
RED, BLUE = "#d62728", "#1f77b4"

Data = tuple[Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class Moment:
    """A network at one moment and the candidates that were considered for it.

    Attributes:
        step: when.
        model: one hidden layer of rational units on one input.
        eta: its expansion score.
        weight: (candidates,) incoming weights.
        bias: (candidates,).
        taken: (candidates,) whether each was accepted.
    """

    step: int
    model: MLP
    eta: float
    weight: Tensor
    bias: Tensor
    taken: Tensor

    @property
    def units(self) -> int:
        """Number of neurons in the network."""
        return self.model.hidden[0]


def landscape(moment: Moment, data: Data, size: int = 72) -> tuple[Tensor, Tensor, Tensor]:
    """Compute Delta eta' / eta_c of a neuron sigma((x - location) / scale), the best of some shapes (v, c, l).

    Args:
        moment: a network and what is measured of it.
        data: the images.
        size: points of each axis.

    Returns:
        Locations (size,), scales (size,), score (scales, locations).
    """
    x, y = data
    locations = torch.linspace(*LOCATIONS, size)
    scales = torch.logspace(math.log10(SCALES[0]), math.log10(SCALES[1]), size)
    name = f"body.{len(moment.model.body) - 1}"
    generator = torch.Generator().manual_seed(0)
    rows = capture(moment.model, [name], x, y, LossMetric(F.mse_loss), generator=generator).rows[
        name
    ]
    known = kronecker_factors(rows.a, rows.output_grad, rows.pseudo_grad)
    score = torch.zeros(size, size, dtype=torch.float64)
    for row, scale in enumerate(scales):
        f = _features((x - locations) / scale).double()  # (samples, shapes * locations)
        columns = f.mT[..., None]  # one candidate each: (candidates, samples, 1)
        cross = residual_cross(
            rows.output_grad.double().mT @ columns / len(x),
            known.G,
            known.A,
            rows.a.double().mT @ columns / len(x),
        )
        bound = width_gain_bound(cross, columns.mT @ columns / len(x), known.S)
        score[row] = bound.view(-1, size).max(0).values
    return locations, scales, score / max(moment.eta, 1e-30)


def _features(u: Tensor) -> Tensor:
    """Rational units of a ring of shapes at u (samples, locations), shape by shape."""
    angles = torch.arange(8) * torch.pi / 8
    shapes = [(float(a.cos()), float(a.sin()), slope) for a in angles for slope in (-1.0, 0.0, 1.0)]
    return torch.cat([slope * u + (c + 2 * v * u) / (1 + u**2) for v, c, slope in shapes], 1)


def figure(shown: Sequence[Moment], data: Data, target: nn.Module, tau: float, path: Path) -> None:
    """Draw fits above, landscapes below, one column for each moment.

    Args:
        shown: the moments.
        data: the images.
        target: the function to fit.
        tau: score at which a neuron is added.
        path: of the PNG file.
    """
    canvas = Figure(figsize=(3.1 * len(shown) + 0.8, 5.6), layout="constrained")
    FigureCanvasAgg(canvas)
    axes = canvas.subplots(
        2, len(shown), sharex=True, sharey="row", squeeze=False, height_ratios=[1, 1.1]
    )
    score = [landscape(moment, data) for moment in shown]
    top = max(float(s.max()) for *_, s in score)
    norm = LogNorm(max(top, 2 * tau) * 1e-4, max(top, 2 * tau))
    for upper, lower, moment, found in zip(*axes, shown, score, strict=True):
        _fit(upper, moment, data, target)
        mesh = _map(lower, moment, found, norm, tau)
    axes[0, 0].set_ylabel("y")
    axes[0, 0].legend(fontsize=8, loc="best", framealpha=0.9)
    axes[1, 0].set_ylabel("scale of the new neuron")
    bar = canvas.colorbar(mesh, ax=axes[1], pad=0.01, aspect=25)
    bar.set_label(r"$\Delta\eta'/\eta_c$")
    bar.ax.axhline(tau, color=RED, linewidth=2)
    canvas.savefig(path, dpi=160, format="png")


@torch.no_grad()
def _fit(axes: Axes, moment: Moment, data: Data, target: nn.Module) -> None:
    x, y = data
    line = torch.linspace(*LOCATIONS, 600)[:, None]
    for place in _places(moment.model):
        axes.axvline(place, color="0.75", linewidth=0.9, zorder=0)
    axes.plot(line, moment.model(line), color="black", linewidth=1.8, label="network", zorder=3)
    axes.plot(
        line,
        target(line),
        color=RED,
        linestyle=(0, (4, 2)),
        linewidth=1.6,
        label="target",
        zorder=4,
    )
    axes.scatter(
        x, y, s=13, color=BLUE, label="samples", zorder=5, edgecolors="white", linewidths=0.3
    )
    low, high = float(target(line).min()), float(target(line).max())
    axes.set_ylim(low - 0.15 * (high - low), high + 0.15 * (high - low))
    axes.set_xlim(*LOCATIONS)
    grown = f", {int(moment.taken.sum())} accepted" if bool(moment.taken.any()) else ""
    neurons = f"{moment.units} neuron{'s' if moment.units > 1 else ''}"
    axes.set_title(f"step {moment.step}: {neurons}{grown}", fontsize=10)


def _places(model: MLP) -> list[float]:
    """List where each neuron's nonlinearity is centered."""
    first = model.body[0]
    assert isinstance(first, nn.Linear)
    places: list[float] = (-first.bias / first.weight[:, 0]).tolist()
    return places


def _map(
    axes: Axes, moment: Moment, found: tuple[Tensor, Tensor, Tensor], norm: LogNorm, tau: float
) -> QuadMesh:
    locations, scales, score = (tensor.numpy() for tensor in found)
    mesh = axes.pcolormesh(
        locations,
        scales,
        score.clip(norm.vmin or 0.0),
        norm=norm,
        cmap="viridis",
        shading="gouraud",
        rasterized=True,
    )
    if score.min() < tau < score.max():
        axes.contour(locations, scales, score, levels=[tau], colors="white", linewidths=1.2)
    place, scale = -moment.bias / moment.weight, 1 / moment.weight.abs()
    for chosen, color, size, order in ((~moment.taken, "black", 14, 3), (moment.taken, RED, 60, 4)):
        axes.scatter(
            place[chosen], scale[chosen], s=size, color=color, marker="o", edgecolors="white", linewidths=0.6,
            zorder=order, clip_on=True,
        )  # fmt: skip
    axes.set_yscale("log")
    axes.set(xlim=LOCATIONS, ylim=SCALES, xlabel="location")
    return mesh
