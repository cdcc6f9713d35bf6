"""Grow a network in a loop of your own with accelerate.

`Accelerator.prepare` wraps the optimizer, the schedule and the loader. The grower takes the prepared model and
optimizer as they are, and only two lines of the loop are new. Data: scikit-learn's handwritten digits.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from accelerate import Accelerator
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import senn
from senn.training import GrowthSchedule, TrainConfig


def digits() -> tuple[TensorDataset, TensorDataset]:
    """Load images (n, 1, 8, 8) to train on, and a fifth that is held out."""
    x, y = load_digits(return_X_y=True)
    x, x_test, y, y_test = map(
        torch.as_tensor, train_test_split(x / 16, y, test_size=0.2, stratify=y, random_state=0)
    )
    return TensorDataset(x.float().view(-1, 1, 8, 8), y), TensorDataset(
        x_test.float().view(-1, 1, 8, 8), y_test
    )


def conv_net() -> nn.Module:
    """Build a network of two convolutions with four channels."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(4, 10),
    )  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """Print each change of size, and the held-out accuracy."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=15)
    arguments = parser.parse_args(argv)
    torch.manual_seed(0)
    train, test = digits()
    accelerator = Accelerator(cpu=True)
    model, loader = conv_net(), DataLoader(train, batch_size=64, shuffle=True)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
    steps = arguments.epochs * len(loader)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-2, total_steps=steps)
    model, optimizer, loader, schedule = accelerator.prepare(model, optimizer, loader, schedule)

    rounds, step = GrowthSchedule(TrainConfig(), steps), 0
    grower = senn.Grower(
        accelerator.unwrap_model(model), optimizer, samples=len(train), max_params=10_000
    )
    for _ in range(arguments.epochs):
        for x, y in loader:
            optimizer.zero_grad()
            accelerator.backward(F.cross_entropy(model(x), y))
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            step += 1
            if moves := rounds.due(step):
                for event in grower.grow([train[:512]], moves):
                    print(f"step {step}: {event}")
    model.eval()
    with torch.no_grad():
        x, y = test.tensors
        accuracy = float((model(x).argmax(1) == y).float().mean())
    print(
        f"{sum(p.numel() for p in model.parameters()):,} parameters, held-out accuracy {accuracy:.4f}"
    )


if __name__ == "__main__":
    main()
