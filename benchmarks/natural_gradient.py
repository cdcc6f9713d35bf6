"""Natural gradient against Adam: the cost of a step, and the training loss after 100 full-batch steps.

    SENN_DATA=folder python benchmarks/natural_gradient.py --out results.json

`SENN_DATA` is a folder with `mnist/*.gz` in IDX format (`senn.data.images`); without it, synthetic digits
of the same shape are used.
Timings of the two optimizers are interleaved, and medians are given.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from senn.data.images import load_images
from senn.nn import MLP
from senn.optim import NaturalGradient

LEARNING_RATES = (1e-3, 3e-3, 1e-2, 3e-2)


def digits(count: int) -> tuple[Tensor, Tensor, str]:
    if not os.environ.get("SENN_DATA"):
        generator = torch.Generator().manual_seed(0)
        centres = torch.rand(10, 784, generator=generator)
        y = torch.randint(0, 10, (count,), generator=generator)
        return (
            (centres[y] + 0.5 * torch.randn(count, 784, generator=generator)).clamp(0, 1),
            y,
            "synthetic",
        )
    images = load_images("mnist").train
    x = torch.tensor(images.pixels[:count]).flatten(1).float() / 255
    return x, torch.tensor(images.labels[:count]), "mnist"


def network(activation: str) -> MLP:
    torch.manual_seed(0)
    return MLP(784, (256, 256), 10, activation=activation)


def adam_step(x: Tensor, y: Tensor, activation: str, lr: float) -> Callable[[], float]:
    model = network(activation)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)

    def step() -> float:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return loss.item()

    return step


def natural_step(x: Tensor, y: Tensor, activation: str, adapt: bool) -> Callable[[], float]:
    optimizer = NaturalGradient(network(activation), loss=F.cross_entropy, adapt=adapt)
    return lambda: optimizer.step(x, y)


def step_cost(x: Tensor, y: Tensor, activation: str, rounds: int) -> dict[str, float]:
    """Median seconds of a step, over rounds of 20 steps of each optimizer in turn."""
    steps = {
        "adam": adam_step(x[:1024], y[:1024], activation, 1e-3),
        "natural": natural_step(x[:1024], y[:1024], activation, adapt=False),
    }
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(rounds + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            for _ in range(20):
                step()
            if turn:  # the first round warms up
                seconds[name].append((time.perf_counter() - start) / 20)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {**medians, "ratio": medians["natural"] / medians["adam"]}


def full_batch(x: Tensor, y: Tensor, activation: str, count: int) -> dict[str, float]:
    """Training loss after that many full-batch steps."""
    runs = {f"adam {lr:g}": adam_step(x, y, activation, lr) for lr in LEARNING_RATES}
    runs["natural"] = natural_step(x, y, activation, adapt=True)
    losses = {}
    for name, step in runs.items():
        start = time.perf_counter()
        for _ in range(count):
            step()
        seconds = time.perf_counter() - start
        losses[name] = step()
        losses[f"{name}, seconds"] = seconds
    best = min(losses[f"adam {lr:g}"] for lr in LEARNING_RATES)
    return {**losses, "ratio": losses["natural"] / best}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--samples", type=int, default=4096)
    parser.add_argument("--steps", type=int, default=100, help="full-batch steps")
    parser.add_argument("--rounds", type=int, default=7, help="timed rounds of 20 steps")
    parser.add_argument("--activation", nargs="+", default=["tanh", "relu"])
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    x, y, source = digits(arguments.samples)
    results: dict[str, object] = {"data": source, "samples": len(x), "threads": arguments.threads}
    for activation in arguments.activation:
        cost = step_cost(x, y, activation, arguments.rounds)
        loss = full_batch(x, y, activation, arguments.steps)
        results[activation] = {
            "step seconds, batch 1024": cost,
            f"loss after {arguments.steps} steps": loss,
        }
        print(f"784-256-256-10 {activation}, {source}, {arguments.threads} thread(s)")
        print(
            f"  step: Adam {1e3 * cost['adam']:.1f} ms, natural gradient {1e3 * cost['natural']:.1f} ms",
            end="",
        )
        print(f", ratio {cost['ratio']:.2f}")
        for name, value in loss.items():
            print(f"  {name:24} {value:.3g}")
    if arguments.out:
        arguments.out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
