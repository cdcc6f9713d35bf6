"""What `senn.integrations.lightning.SelfExpansion` costs a training step while no round is due.

    python benchmarks/lightning_overhead.py [--repeats 15] [--steps 300] [--threads 1] [--out results.json]

The same module, a net of 784-128-10 on batches of 64 or small convolutions on batches of 32, is fitted by a Lightning
Trainer without the callback (`plain`), with it between rounds (`between`), and with it before a round, when every
batch is kept (`keeping`). The three take turns in one process, each time in another order; a step's cost is the median
CPU time from one batch to the next within a fit, and a ratio is that to the plain fit of the same turn.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import time
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from senn.integrations.lightning import SelfExpansion
from senn.training import TrainConfig

KINDS = ("plain", "between", "keeping")


class Clock(pl.Callback):
    """CPU time at the beginning of every batch, of which there are so many."""

    def __init__(self, most: int) -> None:
        self.times: list[float] = []
        self.most = most

    def on_train_batch_start(self, trainer: pl.Trainer, *others: Any) -> None:
        """Note the time; the last batch ends the fit."""
        self.times.append(time.process_time())
        trainer.should_stop = len(self.times) >= self.most


class Classifier(pl.LightningModule):
    """A net with cross-entropy and AdamW."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits."""
        return self.net(x)

    def training_step(
        self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int
    ) -> torch.Tensor:
        """Loss."""
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW."""
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def mlp() -> tuple[nn.Module, tuple[int, ...], int]:
    return nn.Sequential(nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10)), (784,), 64


def convolutions() -> tuple[nn.Module, tuple[int, ...], int]:
    layers = [
        nn.Conv2d(3, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
    ]
    return (
        nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)),
        (3, 16, 16),
        32,
    )


NETS = {"784-128-10": mlp, "convolutions": convolutions}


def expansion(kind: str, steps: int) -> list[pl.Callback]:
    """The only round comes later than the fit ends."""
    if kind == "plain":
        return []
    probe = 1 if kind == "between" else 10**9
    return [
        SelfExpansion(
            TrainConfig(
                addition_rounds=(1.0,),
                pruning_rounds=(),
                growth_steps=2 * steps,
                max_scoring_samples=probe,
            )
        )
    ]


def step(name: str, kind: str, steps: int) -> float:
    """Seconds of CPU of a step."""
    torch.manual_seed(0)
    net, shape, rows = NETS[name]()
    data = TensorDataset(torch.randn(rows * 32, *shape), torch.randint(10, (rows * 32,)))
    clock = Clock(steps)
    trainer = pl.Trainer(
        max_steps=2 * steps, max_epochs=-1, callbacks=[clock, *expansion(kind, steps)], accelerator="cpu", logger=False,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
    )  # fmt: skip
    trainer.fit(Classifier(net), DataLoader(data, batch_size=rows))
    times = clock.times[30:]
    return statistics.median(b - a for a, b in pairwise(times))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    results: dict[str, Any] = {
        "repeats": args.repeats,
        "steps": args.steps,
        "threads": args.threads,
        "nets": {},
    }
    for name in NETS:
        times: dict[str, list[float]] = {kind: [] for kind in KINDS}
        for repeat in range(args.repeats):
            for kind in (*KINDS[repeat % 3 :], *KINDS[: repeat % 3]):
                times[kind].append(step(name, kind, args.steps))
        figures: dict[str, Any] = {"plain_microseconds": 1e6 * statistics.median(times["plain"])}
        for kind in KINDS[1:]:
            ratios = sorted(
                one / plain for one, plain in zip(times[kind], times["plain"], strict=True)
            )
            low, middle, high = statistics.quantiles(ratios, n=4)
            figures[kind] = {"ratio": middle, "quartiles": [low, high]}
            print(f"{name}, {kind}: {middle:.4f} of a plain step of {figures['plain_microseconds']:.0f} us "
                  f"(quartiles {low:.4f} to {high:.4f})")  # fmt: skip
        results["nets"][name] = figures
    if args.out:
        args.out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
