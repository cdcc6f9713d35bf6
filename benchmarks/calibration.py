"""Calibration: what accepted growth promised against what it brought.

A network trains by full-batch natural gradient and grows. At each round that grows it, a copy of the network as it
was and a copy of the grown one take the same number of further natural-gradient steps from the same point, with fresh
optimizers. Realised is the difference between their losses, on the training samples and on unseen ones; promised is
half of what the figures (gain, its bound, held-out gain) say. Prints a table; `--out` gets results.json and
calibration.png.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scipy.stats import spearmanr
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional as F

from senn.candidates.candidate_config import CandidateConfig
from senn.grower import Grower
from senn.nn import MLP
from senn.optim import NaturalGradient
from senn.policies import PaperPolicy, Policy, PricePolicy
from senn_reproduce.moons import moons
from senn_reproduce.regression import random_network

FIGURES = ("gain", "bound", "heldout")
POLICIES: dict[str, Callable[[], Policy]] = {
    "paper": lambda: PaperPolicy(1.0, 2.5e-3),
    "price": PricePolicy,
}
Data = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Task:
    """What is learnt, and from which start."""

    data: Callable[[int], tuple[Data, Data]]
    start: Callable[[], MLP]
    loss: Callable[[Tensor, Tensor], Tensor]
    method: str
    every: int
    rounds: int


def regression_data(seed: int) -> tuple[Data, Data]:
    generator = torch.Generator().manual_seed(seed)
    target = random_network(generator)
    x = torch.randn(1050, 1, generator=generator)
    y = target(x)
    return (x[:50], y[:50]), (x[50:], y[50:])


def digits_data(seed: int) -> tuple[Data, Data]:
    x, y = load_digits(return_X_y=True)
    a, b, s, t = train_test_split(x / 16, y, test_size=0.3, random_state=seed, stratify=y)
    first, second = (torch.tensor(v, dtype=torch.float32) for v in (a, b))
    return (first, torch.tensor(s)), (second, torch.tensor(t))


TASKS = {
    "moons": Task(
        lambda seed: (moons(200, 2 * seed), moons(500, 2 * seed + 1)),
        lambda: MLP(2, (2,), 2, activation="rational"), F.cross_entropy, "cg", 20, 8,
    ),
    "regression": Task(regression_data, lambda: MLP(1, (1,), 1, activation="rational"), F.mse_loss, "cg", 20, 8),
    "digits": Task(digits_data, lambda: MLP(64, (2,), 10, activation="relu"), F.cross_entropy, "kfac", 10, 6),
}  # fmt: skip


def optimizer(model: nn.Module, task: Task) -> NaturalGradient:
    return NaturalGradient(
        model,
        loss=task.loss,
        method=task.method,
        adapt=True,
        damping=0.1,
        weight_decay=1e-4,
        iterations=30,
    )  # type: ignore[arg-type]


def train(model: nn.Module, task: Task, data: Data, steps: int) -> nn.Module:
    chosen = optimizer(model, task)
    for _ in range(steps):
        chosen.step(*data)
    return model


@torch.no_grad()
def loss_of(model: nn.Module, task: Task, data: Data) -> float:
    return float(task.loss(model(data[0]), data[1]))


def rounds(name: str, policy: str, seed: int, steps: int) -> list[dict[str, Any]]:
    """One record for each round that grew the network."""
    task = TASKS[name]
    known, unseen = task.data(seed)
    torch.manual_seed(seed)
    model = task.start()
    chosen = optimizer(model, task)
    candidate_config = CandidateConfig(activation=None if name == "digits" else "Rational")
    grower = Grower(
        model,
        chosen,
        task.loss,
        POLICIES[policy](),
        moves=("width", "depth"),
        candidate_config=candidate_config,
        seed=seed,
    )
    found = []
    for number in range(task.rounds):
        before = copy.deepcopy(model)
        events = grower.grow([known])
        if events:
            record: dict[str, Any] = {"task": name, "policy": policy, "seed": seed, "round": number}
            record["text"] = [str(event) for event in events]
            record |= {
                figure: sum(getattr(event, figure) for event in events) / 2 for figure in FIGURES
            }
            grown, same = (train(m, task, known, steps) for m in (copy.deepcopy(model), before))
            record["realised"] = loss_of(same, task, known) - loss_of(grown, task, known)
            record["realised_unseen"] = loss_of(same, task, unseen) - loss_of(grown, task, unseen)
            found.append(record)
        for _ in range(task.every):
            chosen.step(*known)
    return found


def summary(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rank correlation and median of realised over promised, for each task, policy and figure."""
    rows = []
    for task, policy in sorted({(r["task"], r["policy"]) for r in records}):
        chosen = [r for r in records if (r["task"], r["policy"]) == (task, policy)]
        for figure in FIGURES:
            promised = np.array([r[figure] for r in chosen])
            row = {"task": task, "policy": policy, "figure": figure, "rounds": len(chosen)}
            for outcome in ("realised", "realised_unseen"):
                real = np.array([r[outcome] for r in chosen])
                row[f"{outcome}_rank"] = (
                    float(spearmanr(promised, real).statistic) if len(chosen) > 2 else None
                )
                row[f"{outcome}_ratio"] = float(np.median(real / promised))
            rows.append(row)
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    names = list(rows[0])
    cells = [
        [f"{row[n]:.2f}" if isinstance(row[n], float) else str(row[n]) for n in names]
        for row in rows
    ]
    widths = [max(len(line[i]) for line in [names, *cells]) for i in range(len(names))]
    return "\n".join(
        "  ".join(c.rjust(w) for c, w in zip(line, widths, strict=True)) for line in [names, *cells]
    )


def draw(records: Sequence[dict[str, Any]], path: Path) -> None:
    canvas = Figure(figsize=(11, 3.9), layout="constrained")
    FigureCanvasAgg(canvas)
    axes = canvas.subplots(1, 3, sharex=True, sharey=True)
    titles = {
        "gain": "exact K-FAC gain / 2",
        "bound": "bound of Theorem 3.2 / 2",
        "heldout": "held-out gain / 2",
    }
    for axis, figure in zip(axes, FIGURES, strict=True):
        for number, task in enumerate(TASKS):
            for policy, marker in (("paper", "o"), ("price", "^")):
                chosen = [
                    r
                    for r in records
                    if r["task"] == task and r["policy"] == policy and r[figure] > 0
                ]
                real = [max(r["realised"], 1e-9) for r in chosen]
                axis.scatter(
                    [r[figure] for r in chosen], real, s=26, marker=marker, color=f"C{number}", alpha=0.8,
                    edgecolors="white", linewidths=0.4, label=f"{task}, {policy}",
                )  # fmt: skip
        axis.set(
            xscale="log", yscale="log", title=titles[figure], xlabel="promised decrease of the loss"
        )
        axis.axline((1e-3, 1e-3), (1, 1), color="0.4", linewidth=1, zorder=0)
        axis.grid(alpha=0.2)
    axes[0].set_ylabel("realised decrease of the loss")
    axes[2].legend(fontsize=7.5, loc="lower right")
    canvas.savefig(path, dpi=150, format="png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20, help="steps that both copies take")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    records = []
    for task in args.tasks:
        for policy in POLICIES:
            for seed in range(args.seeds):
                records += rounds(task, policy, seed, args.steps)
    rows = summary(records)
    print(table(rows))
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "results.json").write_text(
            json.dumps({"summary": rows, "rounds": records}, indent=2) + "\n"
        )
        draw(records, args.out / "calibration.png")


if __name__ == "__main__":
    main()
