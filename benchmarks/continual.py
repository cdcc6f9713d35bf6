"""Streams of data that change: does a net that grows and shrinks go on learning?

    python benchmarks/continual.py permuted [--seeds 0 1 2] [--tasks 60] [--out benchmarks/results/continual.json]
    python benchmarks/continual.py classes [--seeds 0 1 2 3 4] [--out benchmarks/results/continual.json]

`permuted`: online permuted MNIST. The pixels are permuted anew every 4,000 images, which no learner is told; each image
is seen once, in minibatches of 8. What counts is the share of images that are right before they are learned from, task
by task. Adam at a learning rate of 1e-3; images of 14 x 14 pixels, which two cores manage.

`classes`: class-incremental digits (of scikit-learn, 8 x 8) and MNIST (4,000 images, 14 x 14). Five tasks of two
classes each, 200 steps of 32 new images and 16 of a memory that holds ten of each former class. What counts is the
accuracy on test images of all ten classes at the end.

Learners:

- `fixed`: 64 and 64 hidden units (`permuted`), 32 (`classes`), outputs for all classes from the start;
- `fixed, 1.5 x`: with one and a half times the parameters;
- `continual backprop`: the fixed net, whose units of low utility begin anew (Dohare et al., Nature 2024), at the rate
  1e-4 and a maturity of 100 steps as published;
- `senn`: begins as the fixed net, and may get 1.5 times its parameters; every 250 steps (`classes`: 25) a round of
  removals and one of additions on the last 512 images. Prices are over a window of one task's images; their factor and
  the number of rounds were chosen on seeds 100 to 102 (`classes`: to 104). In
  `classes` it gets outputs for new classes when they come (`Grower.add_outputs`);
- `random growth`: changes when and where senn did, by as many units, with random weights; units go whose weights have
  the smallest product of norms.

Hypothesis before the run: at the last task senn is as accurate as at the tenth, and above continual backprop.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from continual_arms import Backprop, Fixed, Grown, Random, net, parameters
from criteria_tasks import read_mnist
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

ARMS = ("fixed", "fixed, 1.5 x", "continual backprop", "senn", "random growth")
IMAGES, BATCH, LR = 4000, 8, 1e-3
"""Images of one permutation, of one minibatch, and the learning rate."""

MEMORY, STEPS, NEW = 10, 200, 32
"""Of `classes`: images of each former class that are kept, steps of a task, new images of a step."""


def mnist(part: str) -> tuple[Tensor, Tensor]:
    """Images (n, 196) of 14 x 14 pixels, standardized, with their classes."""
    x, y = read_mnist(f"{part}-images-idx3"), read_mnist(f"{part}-labels-idx1")
    return F.avg_pool2d(x.view(-1, 1, 28, 28), 2).flatten(1), y


def learner(
    arm: str,
    inputs: int,
    hidden: tuple[int, ...],
    outputs: int,
    like: list[dict[str, Any]],
    **grown: Any,
) -> Fixed:
    """Build a learner; `like` has senn's changes, which random growth repeats."""
    most = int(1.5 * parameters(net(inputs, hidden, 10)))
    if arm == "senn":
        return Grown(model=net(inputs, hidden, outputs), lr=LR, most=most, **grown)
    if arm == "random growth":
        return Random(model=net(inputs, hidden, outputs), lr=LR, like=like)
    if arm == "fixed, 1.5 x":
        wide = max(
            (tuple(round(width * part / 100) for width in hidden) for part in range(100, 160)),
            key=lambda sizes: (parameters(net(inputs, sizes, 10)) <= most, sizes),
        )
        return Fixed(model=net(inputs, wide, 10), lr=LR)
    kind = Backprop if arm == "continual backprop" else Fixed
    return kind(model=net(inputs, hidden, 10), lr=LR)


def permuted(arm: str, seed: int, tasks: int, like: list[dict[str, Any]]) -> dict[str, Any]:
    """Run one learner over the stream; accuracies are those of before learning."""
    torch.manual_seed(seed)
    x, y = mnist("train")
    generator = torch.Generator().manual_seed(seed)
    one = learner(arm, 196, (64, 64), 10, like, every=250, window=IMAGES)
    began, scores = time.perf_counter(), []
    for _ in range(tasks):
        pixels = torch.randperm(196, generator=generator)
        rows = torch.randint(len(x), (IMAGES,), generator=generator)
        right = 0
        for some in rows.split(BATCH):
            right += int((one.learn(x[some][:, pixels], y[some]).argmax(1) == y[some]).sum())
        scores.append(right / IMAGES)
    return {"scores": scores, **about(one, began)}


def classes(arm: str, seed: int, name: str, like: list[dict[str, Any]]) -> dict[str, Any]:
    """Run one learner over five tasks of two classes; the score is the accuracy on all ten at the end."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    x, y, test_x, test_y = class_rows(name, generator)
    order = torch.randperm(10, generator=generator)
    number = torch.empty(10, dtype=torch.long)
    number[order] = torch.arange(10)  # classes are numbered as they come
    y, test_y = number[y], number[test_y]
    grows = arm in ("senn", "random growth")
    one = learner(arm, x.shape[1], (32,), 2 if grows else 10, like, every=25, window=len(x) // 5)
    kept = torch.empty(0, dtype=torch.long)
    began, scores = time.perf_counter(), []
    for task in range(5):
        if task:
            one.more_classes(2, x[kept], y[kept])
        new = ((y == 2 * task) | (y == 2 * task + 1)).nonzero().flatten()
        for _ in range(STEPS):
            some = new[torch.randint(len(new), (NEW,), generator=generator)]
            if len(kept):
                again = torch.randint(len(kept), (NEW // 2,), generator=generator)
                some = torch.cat([some, kept[again]])
            one.learn(x[some], y[some])
        for label in (2 * task, 2 * task + 1):
            kept = torch.cat([kept, (y == label).nonzero().flatten()[:MEMORY]])
        known = test_y < 2 * task + 2
        with torch.no_grad():
            guess = one.model(test_x[known]).argmax(1)
        scores.append(float((guess == test_y[known]).float().mean()))
    return {"scores": scores, **about(one, began)}


def class_rows(name: str, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training and test images with their classes."""
    if name == "digits":
        digits = load_digits()
        x = torch.tensor(digits.data, dtype=torch.float32) / 16
        y = torch.tensor(digits.target)
        rows = torch.randperm(len(x), generator=generator)
        return x[rows[360:]], y[rows[360:]], x[rows[:360]], y[rows[:360]]
    x, y = mnist("train")
    rows = torch.randperm(len(x), generator=generator)[:4000]
    return x[rows], y[rows], *mnist("t10k")


def about(one: Fixed, began: float) -> dict[str, Any]:
    """What a run leaves beside its scores."""
    return {
        "parameters": parameters(one.model),
        "widths": [
            layer.out_features for layer in one.model.modules() if isinstance(layer, nn.Linear)
        ],
        "seconds": round(time.perf_counter() - began, 1),
        "changes": one.changes if isinstance(one, Grown) else [],
    }


def summary(runs: dict[str, dict[str, Any]]) -> list[str]:
    """Means and standard deviations over seeds, of the tenth and the last task."""
    lines = []
    for arm in ARMS:
        found = [one for key, one in runs.items() if key.rpartition("/")[0] == arm]
        if not found:
            continue
        parts = []
        for what, at in (("task 10", 9), ("last", -1)):
            values = [one["scores"][at] for one in found if len(one["scores"]) > max(at, 0)]
            if values:
                spread = statistics.stdev(values) if len(values) > 1 else 0.0
                parts.append(f"{what} {100 * statistics.fmean(values):.1f} +- {100 * spread:.1f}")
        size = statistics.fmean(one["parameters"] for one in found)
        seconds = statistics.fmean(one["seconds"] for one in found)
        lines.append(
            f"{arm:20} {', '.join(parts)} %, {size:,.0f} parameters, {seconds:.0f} s, {len(found)} seeds"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kind", choices=("permuted", "classes"))
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--tasks", type=int, default=60)
    parser.add_argument("--arms", nargs="*", default=ARMS)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    names = ("permuted",) if options.kind == "permuted" else ("digits", "mnist")
    results: dict[str, dict[str, Any]] = {}
    if options.out and options.out.exists():
        results = json.loads(options.out.read_text())
    for seed in options.seeds:
        for name in names:
            runs = results.setdefault(name, {})
            for arm in options.arms:
                if f"{arm}/{seed}" in runs:
                    continue
                like = runs.get(f"senn/{seed}", {}).get("changes", [])
                runs[f"{arm}/{seed}"] = (
                    permuted(arm, seed, options.tasks, like)
                    if name == "permuted"
                    else classes(arm, seed, name, like)
                )
                if options.out:
                    options.out.write_text(json.dumps(results, indent=1) + "\n")
    for name in names:
        print(name, *summary(results[name]), sep="\n", flush=True)


if __name__ == "__main__":
    main()
