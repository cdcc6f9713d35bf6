"""The figures of docs/how_it_decides.md, drawn at each build by `senn.scoring.formulas`, for light and dark pages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from senn.scoring import formulas

THEMES = {
    "light": {"ink": "#3b4045", "old": "#30506d", "new": "#d9691e", "faint": "#c9ced3"},
    "dark": {"ink": "#cfd3d7", "old": "#8fbbe0", "new": "#f0a068", "faint": "#4a5056"},
}
SAMPLES, CANDIDATES = 400, 200


def bump(x: Tensor) -> Tensor:
    """What is to be learnt: a line that has a bend."""
    return torch.tanh(3 * x[:, :1] - 1) + 0.3 * x[:, 1:]


def moments(rows: Tensor, units: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A, A_cp and C of a linear map that reads `rows` (n, c), for units (n, k); C is the residual one."""
    n = len(rows)
    A, A_cp = rows.T @ rows / n, rows.T @ units / n
    G, C = gradient.T @ rows / n, gradient.T @ units / n
    return A, A_cp, G, formulas.residual_cross(C, G, A, A_cp, damping=1e-6)


def gains(target: str) -> dict[str, Tensor]:
    """In-sample gain, bound and held-out gain of candidate units, each on its own, for squared error; in nats."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2 * SAMPLES, 2, generator=generator, dtype=torch.float64)
    noise = torch.randn(2 * SAMPLES, 1, generator=generator, dtype=torch.float64)
    y = bump(x) + 0.3 * noise if target == "signal" else noise
    rows = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1)
    weight = torch.randn(3, CANDIDATES, generator=generator, dtype=x.dtype)
    units = torch.relu(rows @ weight)
    fit, test = slice(0, SAMPLES), slice(SAMPLES, None)
    gradient = -y  # of half the squared error, at output zero
    A, A_cp, G, C = moments(rows[fit], units[fit], gradient[fit])
    S = torch.eye(1, dtype=x.dtype)
    kept: dict[str, list[Tensor]] = {"gain": [], "bound": [], "heldout": []}
    for j in range(CANDIDATES):
        one = slice(j, j + 1)
        a_pp = (units[fit, one] ** 2).mean().view(1, 1)
        left = units[:, one] - rows @ torch.linalg.solve(
            A, A_cp[:, one]
        )  # what the existing columns don't say
        if (
            left[fit] ** 2
        ).mean() < 0.01 * a_pp + 1e-4:  # never active, or always: a linear function
            continue
        kept["gain"].append(formulas.width_gain(C[:, one], a_pp, A_cp[:, one], A, S, damping=1e-6))
        kept["bound"].append(formulas.width_gain_bound(C[:, one], a_pp, S, damping=1e-6))
        step = C[:, one] / (left[fit] ** 2).mean()
        residual = gradient - rows @ torch.linalg.solve(A, G.T)
        H, A_left = (
            (residual[test] * left[test]).mean().view(1, 1),
            (left[test] ** 2).mean().view(1, 1),
        )
        kept["heldout"].append(formulas.held_out_gain(step, H, A_left, S))
    return {name: torch.stack(values) / 2 for name, values in kept.items()}


def tidy(axes: Axes, title: str, x: str, y: str) -> None:
    """Labels, and no frame at the top and to the right."""
    axes.set_title(title, fontsize=10.5, loc="left")
    axes.set(xlabel=x, ylabel=y)
    axes.spines[["top", "right"]].set_visible(False)


def figure(colors: dict[str, str]) -> Figure:
    """Three panels: the bound, the fold where there is something to learn, and where there is nothing."""
    signal, noise = gains("signal"), gains("noise")
    drawn = Figure(figsize=(10.5, 3.5), layout="constrained")
    left, middle, right = drawn.subplots(1, 3)
    dots: dict[str, Any] = {"s": 13, "alpha": 0.75, "linewidths": 0}
    left.scatter(signal["gain"], signal["bound"], color=colors["old"], **dots)
    tidy(left, "Theorem 3.2: below the diagonal", "exact gain, nats", "bound, nats")
    middle.scatter(signal["gain"], signal["heldout"], color=colors["new"], **dots)
    tidy(middle, "something to learn", "promise on the samples fitted", "promise on the others")
    right.scatter(noise["gain"], noise["heldout"], color=colors["new"], **dots)
    tidy(right, "nothing but noise", "promise on the samples fitted", "promise on the others")
    for axes in (left, middle, right):
        high = max(axes.get_xlim()[1], axes.get_ylim()[1])
        axes.plot([0, high], [0, high], color=colors["faint"], lw=1.2, zorder=0)
        axes.axhline(0, color=colors["faint"], lw=0.8, zorder=0)
    return drawn


def write(folder: Path) -> None:
    """Write both versions."""
    folder.mkdir(exist_ok=True)
    for theme, colors in THEMES.items():
        ink = dict.fromkeys(
            ("text.color", "axes.labelcolor", "xtick.color", "ytick.color", "axes.edgecolor"),
            colors["ink"],
        )
        with rc_context({**ink, "svg.hashsalt": "senn", "font.size": 9.5}):
            figure(colors).savefig(
                folder / f"gains-{theme}.svg", transparent=True, metadata={"Date": None}
            )


def setup(app: Any) -> dict[str, bool]:
    """Draw before Sphinx looks for images."""
    app.connect("builder-inited", lambda app: write(Path(app.srcdir) / "_generated"), priority=100)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
