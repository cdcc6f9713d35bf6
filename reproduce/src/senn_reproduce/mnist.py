"""Figure 4 left: MNIST from ten hidden units, sizes and accuracy over the steps, and no dip where the net grows.

Natural gradient or Adam trains the net, and it may widen, or widen and deepen: four arms. The loop is that of
`senn.training`, taken apart so that the net can be looked at right before and right after each round of growth.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional as F

from senn.events import GrowthEvent
from senn.nn import MLP
from senn.policies import PaperPolicy, PricePolicy
from senn.schedule import GrowthSchedule
from senn.training import TrainConfig
from senn.training.train_step import TrainStep
from senn_reproduce.image_runs import Data, load, pick_device
from senn_reproduce.results import Record, by_arm, table, write_results
from senn_reproduce.step_threads import step_threads

WIDTH, DEPTH = ("width", "prune"), ("width", "depth", "prune")
ARMS = {
    "natural gradient": ("natural", WIDTH),
    "natural gradient, depth": ("natural", DEPTH),
    "Adam": ("adam", WIDTH),
    "Adam, depth": ("adam", DEPTH),
}
"""By name: which recipe of the settings, and what may happen to the net."""

EARLY = (0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.04, 0.06, 0.08, 0.12, 0.16, 0.24, 0.32)
PRICE = PricePolicy(kappa=0.01, confidence=1.0)
# The damping and the rate are the paper's.
NATURAL = TrainConfig(
    hidden=(10,), shortcut=False, optimizer="natural-gradient", epochs=6, batch_size=512, weight_decay=1e-3,
    optimizer_options={"damping": 0.1, "norm_constraint": 3e-3}, policy=PRICE, addition_rounds=EARLY, pruning_rounds=(),
    growth_steps=100_000, candidates_per_layer=64,
)  # fmt: skip
ADAM = replace(
    NATURAL,
    optimizer="adam",
    lr=2e-3,
    epochs=15,
    batch_size=214,
    weight_decay=None,
    optimizer_options={},
)
# The authors' values for a net that may widen: conjugate gradients at a constant rate, rational units, 100 candidates.
PAPER = replace(
    NATURAL,
    epochs=2000,
    batch_size=1024,
    lr=0.1,
    schedule="constant",
    optimizer_options={
        "method": "cg", "metric": "euclidean", "damping": 0.1, "momentum": 0.0, "norm_constraint": None,
    },
    policy=PaperPolicy(tau=0.03, alpha=2.5e-3, layer_cost=20.0),
    max_width=128,
    max_scoring_samples=16_384,
    candidates_per_layer=None,
    addition_rounds=tuple(epoch / 2000 for epoch in range(0, 2000, 10)),
    growth_steps=10_000_000,
)  # fmt: skip
# And for one that may deepen. Their scores are larger than eta by up to the number of outputs, since they scale each
# sample's gradient to length one, so an alpha of .25 is stricter here.
PAPER_DEPTH = {
    "policy": PaperPolicy(tau=0.007, alpha=0.25, layer_cost=60.0),
    "max_width": 64,
}


@dataclass(frozen=True)
class Settings:
    """How a run goes; found on training images of seeds from 100 on, which no figure reports.

    Args:
        natural: natural gradient, growth, and how long both last; `moves` and `seed` come from arm and run.
        adam: the same with Adam.
        deep: fields in which the recipe of a net that may deepen differs.
        images: to train on; None for all that are not held out.
        held_out: images for the validation accuracy.
        looks: how often it is taken, more densely early on, besides twice a round of growth.
    """

    natural: TrainConfig = NATURAL
    adam: TrainConfig = ADAM
    deep: Mapping[str, Any] = field(default_factory=dict)
    images: int | None = None
    held_out: int = 5000
    looks: int = 60


FULL = Settings(
    natural=PAPER,
    adam=replace(PAPER, optimizer="adam", lr=2e-3, weight_decay=None, optimizer_options={}),
    deep=PAPER_DEPTH,
)
"""The paper's size, with the values of its authors' code. Ours: the arms with Adam, standardized pixels, images of
28 x 28 pixels for depth too (theirs: 24 x 24), candidates by ascent (theirs: a sampler, and 10,000 for depth).
"""


@dataclass(frozen=True, eq=False)
class Rows:
    """The parts of a set as rows of standardized pixels (n, 784) and labels (n,)."""

    train: tuple[Tensor, Tensor]
    validation: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]

    @classmethod
    def of(cls, data: Data) -> Rows:
        """Build the rows of an image set."""
        parts = (data.train, data.validation, data.test)
        train, validation, test = (
            (data.standard(part.pixels).flatten(1), part.labels) for part in parts
        )
        return cls(train, validation, test)


@dataclass
class Course:
    """What is seen of a run while it goes on.

    Attributes:
        steps: at which the validation accuracy was taken.
        accuracy: there.
        units: there, in all hidden layers.
        growths: of every change of size its step, kind, widths before and after, and the changes at that moment.
    """

    steps: list[int] = field(default_factory=list)
    accuracy: list[float] = field(default_factory=list)
    units: list[int] = field(default_factory=list)
    growths: list[Record] = field(default_factory=list)

    def look(self, step: int, accuracy: float, units: int) -> None:
        """Note accuracy and size at a step.

        Args:
            step: of the training.
            accuracy: on the validation images, from 0 to 1.
            units: hidden ones.
        """
        self.steps.append(step)
        self.accuracy.append(round(accuracy, 5))
        self.units.append(units)

    def largest(self) -> dict[str, float]:
        """Return the largest changes, either way, at rounds that only added."""
        added = [growth for growth in self.growths if growth["kind"] != "prune"]
        return {
            name: max((abs(growth[name]) for growth in added), default=0.0)
            for name in ("loss_change", "accuracy_change")
        }


def run(arm: str, seed: int, rows: Rows, settings: Settings) -> Record:
    """Train and grow one net.

    Args:
        arm: its optimizer.
        seed: decides its start, the batches and all candidates.
        rows: images as rows.
        settings: sizes of the experiment.

    Returns:
        A record of the run.
    """
    recipe_name, moves = ARMS[arm]
    deep = settings.deep if "depth" in moves else {}
    # The paper's units: nothing changes at the moment of growth.
    recipe: TrainConfig = replace(
        getattr(settings, recipe_name), moves=moves, seed=seed, birth="silent", **deep
    )
    x, y = rows.train
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = MLP(
            x.shape[1],
            recipe.start("hidden"),
            10,
            activation=recipe.start("activation"),
            shortcut=recipe.start("shortcut"),
        ).to(x.device)
    learner = TrainStep(model, recipe, "classification", samples=len(x))
    plan = recipe.plan(len(x))
    rounds = GrowthSchedule(recipe, plan.steps)
    looks = {
        round(plan.steps * (number / settings.looks) ** 2) for number in range(settings.looks + 1)
    }
    course, sizes, step = Course(), model.hidden, 0
    course.look(0, judge(model, rows.validation)["accuracy"], sum(sizes))
    seconds = -time.perf_counter()
    with step_threads(model, x[:1], len(x) // plan.batches) as threads:
        for _ in range(plan.epochs):
            for batch in torch.tensor_split(
                torch.randperm(len(x), generator=generator).to(y.device), plan.batches
            ):
                learner.set_lr(recipe.lr_factor(step / plan.steps))
                learner.step(x[batch], y[batch])
                step += 1
                due = rounds.due(step)
                if not due and step not in looks:
                    continue
                seconds += time.perf_counter()
                before = judge(model, rows.validation)["accuracy"]
                course.look(step, before, sum(sizes))
                seconds -= time.perf_counter()
                if due:
                    probe = torch.randperm(len(x), generator=generator)[
                        : recipe.max_scoring_samples
                    ].to(y.device)
                    events = learner.grow([(x[probe], y[probe])], due)
                    threads.follow(step)
                    sizes = events[-1].architecture if events else sizes
                    after = judge(model, rows.validation)["accuracy"]
                    course.growths += [_growth(event, step, after - before) for event in events]
                    course.look(step, after, sum(sizes))
    seconds += time.perf_counter()
    return {
        "arm": arm, "seed": seed, "test": judge(model, rows.test), "validation": judge(model, rows.validation),
        "hidden": list(sizes), "units": sum(sizes), "parameters": sum(p.numel() for p in model.parameters()),
        "largest": course.largest(), "seconds": seconds, "threads": threads.record, "course": vars(course),
    }  # fmt: skip


def _growth(event: GrowthEvent, step: int, accuracy_change: float) -> Record:
    loss_change = event.loss_after / event.loss_before - 1
    kept = {
        "kind": event.kind,
        "place": event.place,
        "before": event.width_before,
        "after": event.width_after,
    }
    return {"step": step, **kept, "loss_change": loss_change, "accuracy_change": accuracy_change}


@torch.no_grad()
def judge(model: nn.Module, part: tuple[Tensor, Tensor]) -> dict[str, float]:
    """Compute accuracy and cross-entropy.

    Args:
        model: the network.
        part: images (n, 784) and labels (n,).

    Returns:
        `accuracy`, from 0 to 1, and `loss`, in nats.
    """
    logits = model(part[0])
    return {
        "accuracy": float((logits.argmax(1) == part[1]).double().mean()),
        "loss": float(F.cross_entropy(logits, part[1])),
    }


def main(
    seeds: int,
    out: Path,
    settings: Settings | None = None,
    *,
    data_dir: Path | None = None,
    device: str | None = None,
) -> list[Record]:
    """Run the experiment with several seeds; write `results.json` and `figure.png`, print a table.

    Args:
        seeds: number of seeds: 0, 1, ... are run one after the other.
        out: folder for the results, which exists.
        settings: sizes of the experiment; None for those for two cores.
        data_dir: folder of the image sets; None for that in `SENN_DATA`, else they are downloaded.
        device: cpu, cuda, ...; None for a GPU where there is one, else the CPU.

    Returns:
        A record for each run.
    """
    place = pick_device(device)
    settings = settings or Settings()
    records = []
    for seed in range(seeds):
        rows = Rows.of(load("mnist", 28, settings.images, settings.held_out, seed, data_dir, place))
        records += [run(arm, seed, rows, settings) for arm in ARMS]
    command = f"senn reproduce mnist --seeds {seeds}" + " --full" * (settings == FULL)
    about = {
        "images": len(rows.train[0]),
        "held_out": settings.held_out,
        "epochs": {"natural gradient": settings.natural.epochs, "Adam": settings.adam.epochs},
    }
    write_results(records, out / "results.json", command, arms=True, settings=about)
    figure(records, out / "figure.png")
    for arm, runs in by_arm(records).items():
        print(f"{arm}\n{table(runs)}\n")
    return records


# -- the figure


BLUE, ORANGE = "#1f77b4", "#e6741d"


def figure(records: Sequence[Record], path: Path) -> None:
    """Draw hidden units and validation accuracy over the steps, all seeds; natural gradient next to Adam.

    Args:
        records: one for each run.
        path: of the PNG file.
    """
    canvas = Figure(figsize=(10.5, 6.6), layout="constrained")
    FigureCanvasAgg(canvas)
    panels = canvas.subplots(2, 2, sharex="col", sharey="row")
    for column, optimizer in enumerate(("natural gradient", "Adam")):
        upper, lower = panels[:, column]
        upper.set_title(optimizer)
        for arm, color in ((optimizer, BLUE), (f"{optimizer}, depth", ORANGE)):
            for number, record in enumerate(by_arm(records).get(arm, [])):
                _draw(
                    upper,
                    lower,
                    record,
                    color,
                    None if number else f"may {'deepen too' if 'depth' in arm else 'widen'}",
                )
        upper.legend(frameon=False, loc="lower right")
        lower.set_xlabel("optimisation step")
        lower.set_xscale("log")
        lower.xaxis.set_major_formatter("{x:g}")
    for axes in panels.flat:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="0.93", linewidth=0.8)
        axes.set_axisbelow(True)
    panels[0, 0].set_ylabel("hidden units, all layers\n($\\blacktriangle$ a layer comes)")
    panels[0, 0].set_ylim(bottom=0)
    ticks = (0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.97, 0.98, 0.99)
    accuracy_axis(
        panels[1, 0], "validation accuracy\n($\\bullet$ right before and after a growth)", ticks
    )
    canvas.savefig(path, dpi=160, format="png")


def _draw(upper: Axes, lower: Axes, record: Record, color: str, label: str | None) -> None:
    """One run: its units, and a triangle where a layer came; its accuracy, and dots where it grew."""
    course = record["course"]
    seen = slice(1, None)  # a logarithmic axis has no step 0
    steps, accuracy, units = (course[name][seen] for name in ("steps", "accuracy", "units"))
    upper.step(steps, units, where="post", color=color, linewidth=1.1, alpha=0.8, label=label)
    lower.plot(steps, accuracy, color=color, linewidth=1.1, alpha=0.8)
    at = dict(zip(steps, units, strict=True))  # after a round, where there are two looks
    layers = [growth["step"] for growth in course["growths"] if growth["kind"] == "insert"]
    upper.plot(
        layers,
        [at[step] for step in layers],
        "^",
        color=color,
        markersize=6,
        markeredgecolor="white",
    )
    grown = {growth["step"] for growth in course["growths"] if growth["kind"] != "prune"}
    dots = [(step, value) for step, value in zip(steps, accuracy, strict=True) if step in grown]
    if dots:
        lower.plot(*zip(*dots, strict=True), ".", color=color, markersize=5)


def accuracy_axis(axes: Axes, label: str, ticks: Sequence[float]) -> None:
    """Scale a vertical axis so that 90 and 99 % are as far apart as 50 and 90 %.

    Args:
        axes: to scale.
        label: of the axis.
        ticks: accuracies from 0 to 1.
    """
    axes.set_yscale("logit")
    axes.autoscale()
    limits = axes.get_ylim()
    axes.set_yticks(list(ticks), [f"{tick:.3g}" for tick in ticks])
    axes.set_yticks([], minor=True)
    axes.set_ylim(limits)
    axes.set_ylabel(label)
