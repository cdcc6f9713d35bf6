"""Grow a vision transformer of the transformers library, unmodified.

A small `ViTForImageClassification` from its configuration is trained on scikit-learn's digits (8 x 8 pixels) as it
is, and once more with a `Grower` next to its optimizer and its learning rate schedule; nothing is downloaded. This is
a short run; `--seeds 2 --epochs 30 --rounds 5` is a fuller one.

A line such as `widen PLACE: 2 -> 3` is a change of size: the expected decrease of the loss, the parameters, and the
price, which is the least expected decrease at which it would have been made. Expected decreases are summed over units
and come from a quadratic model of the loss around one layer.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import transformers
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional as F

import senn

BATCH, SCORED = 64, 512  # images of a step, and of a round of growth
BUDGET = 10_000  # most parameters


@dataclass
class Digits:
    """Images (n, 1, 8, 8) and their digits (n,), to train on and held out."""

    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor


def digits(seed: int) -> Digits:
    """Load the images, and hold out a fifth of them."""
    images, labels = load_digits(return_X_y=True)
    split = train_test_split(images / 16, labels, test_size=0.2, stratify=labels, random_state=seed)
    x, x_test, y, y_test = map(torch.as_tensor, split)
    return Digits(x.float().view(-1, 1, 8, 8), y, x_test.float().view(-1, 1, 8, 8), y_test)


def vit() -> nn.Module:
    """Build a model of two layers of width 16, with two heads, on patches of 2 x 2."""
    config = transformers.ViTConfig(
        image_size=8, patch_size=2, num_channels=1, num_labels=10, hidden_size=16, num_hidden_layers=2,
        num_attention_heads=2, intermediate_size=4,
    )  # fmt: skip
    return transformers.ViTForImageClassification(config)


def train(model: nn.Module, data: Digits, seed: int, epochs: int, rounds: int) -> float:
    """Train in an ordinary loop, with rounds of growth, if any, in its first half; return the held-out accuracy."""
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
    steps = epochs * (len(data.x) // BATCH)
    due = {steps * number // (2 * rounds) for number in range(1, rounds + 1)}
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=5e-3, total_steps=steps)
    grower = senn.Grower(model, optimizer, samples=len(data.x), max_params=BUDGET, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    model.train()
    for step in range(1, steps + 1):
        rows = torch.randint(len(data.x), (BATCH,), generator=generator)
        optimizer.zero_grad()
        F.cross_entropy(model(data.x[rows]).logits, data.y[rows]).backward()
        optimizer.step()
        schedule.step()
        if step in due:
            rows = torch.randperm(len(data.x), generator=generator)[:SCORED]
            for event in grower.grow([(data.x[rows], data.y[rows])]):
                print(f"  step {step}: {event}")
    model.eval()
    with torch.no_grad():
        return float((model(data.x_test).logits.argmax(1) == data.y_test).float().mean())


def main(argv: Sequence[str] | None = None) -> None:
    """Print each change of size, and the held-out accuracy of the grown and of the fixed model."""
    parser = argparse.ArgumentParser(
        description="Grow a vision transformer while it learns digits."
    )
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3, help="rounds of growth")
    arguments = parser.parse_args(argv)
    accuracy: dict[bool, list[float]] = {False: [], True: []}
    for seed in range(arguments.seeds):
        data = digits(seed)
        for grow in (False, True):
            torch.manual_seed(seed)
            model = vit()
            accuracy[grow].append(
                train(model, data, seed, arguments.epochs, arguments.rounds if grow else 0)
            )
            parameters = sum(p.numel() for p in model.parameters())
            kind = "grown" if grow else "ungrown"
            print(
                f"seed {seed}, {kind}: {parameters:,} parameters, held-out accuracy {accuracy[grow][-1]:.4f}"
            )
    means = {grow: statistics.fmean(values) for grow, values in accuracy.items()}
    print(f"mean held-out accuracy: ungrown {means[False]:.4f}, grown {means[True]:.4f}")


if __name__ == "__main__":
    main()
