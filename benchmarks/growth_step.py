"""Cost of one full consideration over a plain forward and backward pass of the same samples, gromo beside it.

    python benchmarks/growth_step.py [--repeats 9] [--threads 1] [--out results.json]

The net is 784-256-256-10 with ReLU; a consideration scores width, depth and pruning at every place. All contenders run
in turn in one process, so that drift of the machine hits all; figures are medians of CPU time. `first` is a Grower's
first consideration, analysis of the model included; `again` a later one of the same Grower. gromo (an optional package:
pip install gromo==0.1.0 torchmetrics deprecated) does its own growth step on all layers: statistics, optimal updates,
choice, change.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

import senn

Batches = list[tuple[torch.Tensor, torch.Tensor]]


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)
    )  # fmt: skip


def data(samples: int) -> Batches:
    """Images with strokes' statistics: smooth, mostly empty, ten classes."""
    g = torch.Generator().manual_seed(1)
    centres = F.avg_pool2d(torch.randn(10, 1, 32, 32, generator=g), 5, 1).reshape(10, 784)
    y = torch.randint(0, 10, (samples,), generator=g)
    x = (2 * centres[y] + 0.5 * torch.randn(samples, 784, generator=g)).clamp_min(0)
    return list(zip(x.split(1024), y.split(1024), strict=True))


def trained(batches: Batches) -> nn.Sequential:
    """A net after the same dozen steps whatever the number of samples, where considerations happen."""
    model = net()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for x, y in batches * (12 // len(batches)):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model


def forward_backward(model: nn.Module, batches: Batches) -> None:
    for x, y in batches:
        model.zero_grad()
        F.cross_entropy(model(x), y).backward()


def gromo_step(batches: Batches) -> Callable[[], None] | None:
    """The growth step of gromo in its own order, or None where it is not installed."""
    try:
        from gromo.containers.growing_mlp import GrowingMLP
        from gromo.utils.training_utils import compute_statistics
    except ImportError:
        return None
    start = GrowingMLP(784, 10, 256, 2, activation=nn.ReLU(), device=torch.device("cpu"))

    def step() -> None:
        model = copy.deepcopy(start)
        model.set_growing_layers(scheduling_method="all")
        loss = nn.CrossEntropyLoss(reduction="sum")
        compute_statistics(model, batches, loss_function=loss, device=torch.device("cpu"))
        model.compute_optimal_updates()
        model.reset_computation()
        model.select_best_update()
        model.set_scaling_factor(0.5)
        model.apply_change()

    return step


def measure(samples: int, repeats: int) -> dict[str, float]:
    """Median CPU seconds of each contender, and ratios over forward and backward."""
    batches = data(samples)
    model = trained(batches)
    warm = senn.Grower(model, loss=F.cross_entropy, samples=samples)
    contenders: dict[str, Callable[[], object]] = {
        "forward+backward": lambda: forward_backward(model, batches),
        "senn, again": lambda: forget(warm).consider(batches),
        "senn, first": lambda: senn.Grower(model, loss=F.cross_entropy, samples=samples).consider(batches),
    }
    rival = gromo_step(batches)
    if rival is not None:
        contenders["gromo"] = rival
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for repeat in range(repeats + 1):
        for name, run in contenders.items():
            start = time.process_time()
            run()
            if repeat:
                seconds[name].append(time.process_time() - start)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        **{f"{name}, ms": 1e3 * value for name, value in median.items()},
        **{f"{name}, ratio": value / median["forward+backward"] for name, value in median.items()},
    }


def forget(grower: senn.Grower) -> senn.Grower:
    """Start a new consideration."""
    grower.reset()
    return grower


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    results = {str(samples): measure(samples, args.repeats) for samples in (1024, 4096)}
    names = [key.removesuffix(", ratio") for key in results["1024"] if key.endswith("ratio")]
    print(f"{'':18s}" + "".join(f"{n + ' samples':>26s}" for n in results))
    for name in names:
        row = [f"{r[f'{name}, ms']:.0f} ms = {r[f'{name}, ratio']:.2f} x" for r in results.values()]
        print(f"{name:18s}" + "".join(f"{cell:>26s}" for cell in row))
    if args.out:
        args.out.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
