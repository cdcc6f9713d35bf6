"""Tasks of `equal_flops.py`: rows for training and for the test, nets of any size, and the library's own recipe.

Rows are those of `criteria_tasks.py`; what is held out there is the test here. Validation rows are drawn from the
training rows by the library's own split, another one for each seed. Public data are read from the folder that SENN_DATA
names.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import criteria_tasks
import torch
from criteria_tasks import CharacterModel
from torch import Tensor, nn
from torch.nn import functional as F

from senn.nn import MLP
from senn.training import Task, TrainConfig
from senn.training.augment import augment
from senn.training.batches import Inputs, Rows, partition
from senn.training.builders import build_model
from senn.training.image_training import build_conv_net, image_config, start_widths

Size = tuple[int, ...]
AS_THEY_ARE = Inputs()


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A task with the nets that are compared on it.

    Attributes:
        name: of the task.
        train: rows that are split into those of training and of validation.
        test: rows that are looked at once for each record.
        kind: classification or regression.
        build: makes a fresh net of a size.
        start: size from which the library grows.
        grid: sizes of fixed nets.
        recipe: the library's own, with some choices changed.
        inputs: how nets read rows.
    """

    name: str
    train: Rows
    test: Rows
    kind: Task
    build: Callable[[Size], nn.Module]
    start: Size
    grid: tuple[Size, ...]
    recipe: Callable[..., TrainConfig] = TrainConfig
    inputs: Inputs = AS_THEY_ARE

    def split(self, seed: int, recipe: TrainConfig) -> tuple[Rows, Rows, torch.Generator]:
        """Training and validation rows of a seed, and the generator that drew them, for what is drawn next."""
        generator = torch.Generator().manual_seed(seed)
        y = self.train.y
        # the library's split takes one target a row, by whose classes it draws
        if y.dim() > 1 and not y.is_floating_point():
            y = torch.zeros(len(y))
        numbers = torch.arange(len(y))
        rows, held_out = partition(numbers, y, recipe, generator=generator)
        assert held_out is not None
        return self.train.take(rows.x), self.train.take(held_out.x), generator

    def fresh(self, size: Size, seed: int) -> nn.Module:
        """A net with the first weights of a seed."""
        torch.manual_seed(seed)
        return self.build(size)


TABLE_GRID = ((32, 32), (64, 64), (128, 128), (256, 256), (512, 512))


def table(name: str, parts: tuple[Tensor, ...]) -> Problem:
    """Rows of numbers, as `senn fit` trains on a table: from two layers of 64 units and a shortcut."""
    x, y, test_x, test_y = parts
    kind: Task = "regression" if y.is_floating_point() else "classification"
    outputs = y.shape[1] if kind == "regression" else int(y.max()) + 1

    def build(size: Size) -> nn.Module:
        return build_model(x.shape[1], outputs, TrainConfig(hidden=size))

    return Problem(
        name=name,
        train=Rows(x=x, y=y),
        test=Rows(x=test_x, y=test_y),
        kind=kind,
        build=build,
        start=(64, 64),
        grid=TABLE_GRID,
    )


def mnist(rows: int) -> Problem:
    """The first rows of MNIST's training images, as numbers; the test images are the test."""
    read = criteria_tasks.read_mnist
    x, y = read("train-images-idx3"), read("train-labels-idx1")
    test = read("t10k-images-idx3"), read("t10k-labels-idx1")
    name = "mnist" if rows == len(x) else f"mnist-{rows // 1000}k"
    return table(name, (x[:rows], y[:rows], *test))


def shifted(x: Tensor, generator: torch.Generator) -> Tensor:
    """Images shifted by up to an eighth of their side and mirrored, as `train_images` does."""
    # Contiguous: on images whose channels come last, the backward pass of narrow convolutions writes past its buffers
    # on a CPU (PyTorch 2.13).
    return augment(x, generator, shift=2).contiguous()


class Block(nn.Module):
    """Two convolutions with norms, beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.first_norm = nn.BatchNorm2d(outputs)
        self.second = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.second_norm = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if inputs != outputs:
            convolution = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut = nn.Sequential(convolution, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Maps (n, outputs, side / stride, side / stride)."""
        inner = F.relu(self.first_norm(self.first(x)))
        return F.relu(self.second_norm(self.second(inner)) + self.shortcut(x))


class SmallResNet(nn.Module):
    """ResNet-8: blocks of once, twice and four times a width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem, self.norm = (
            nn.Conv2d(3, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
        )
        self.blocks = nn.Sequential(
            Block(width, width, 1), Block(width, 2 * width, 2), Block(2 * width, 4 * width, 2)
        )
        self.head = nn.Linear(4 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (n, 10)."""
        maps: Tensor = self.blocks(F.relu(self.norm(self.stem(x))))
        logits: Tensor = self.head(maps.mean((2, 3)))
        return logits


def cifar(net: str) -> Problem:
    """4,000 images of CIFAR-10 at 16 x 16 pixels by the recipe of `train_images`."""
    x, y, test_x, test_y = criteria_tasks.cifar().rows
    is_conv = net == "conv"
    start = start_widths(16)
    return Problem(
        name=f"cifar-{net}",
        train=Rows(x=x, y=y),
        test=Rows(x=test_x, y=test_y),
        kind="classification",
        build=partial(build_conv_net, 3, 16, 10) if is_conv else lambda size: SmallResNet(*size),
        start=start if is_conv else (4,),
        grid=tuple((width,) * len(start) for width in (8, 16, 24, 32, 48, 64))
        if is_conv
        else ((4,), (6,), (8,), (12,), (16,), (24,)),
        recipe=image_config,
        inputs=Inputs(None, shifted),
    )


def text(rows: int = 8000) -> Problem:
    """Characters of plays, by a transformer of two blocks whose feed-forward layers start with 64 units."""
    x, y, test_x, test_y = criteria_tasks.text().rows
    characters = int(y.max()) + 1

    def build(size: Size) -> nn.Module:
        return CharacterModel(characters, {f"blocks.{i}.up": size[i] for i in range(2)})

    return Problem(
        name="text",
        train=Rows(x=x[:rows], y=y[:rows]),
        test=Rows(x=test_x, y=test_y),
        kind="classification",
        build=build,
        start=(64, 64),
        grid=tuple((width, width) for width in (16, 32, 64, 128, 256, 512)),
    )


def shortened(problem: Problem) -> Problem:
    """The same task in seconds: few rows, epochs, rounds and candidates, two sizes in the grid."""
    rows = Rows(x=problem.train.x[:400], y=problem.train.y[:400])
    own = problem.recipe

    def recipe(**choices: Any) -> TrainConfig:
        short = {"epochs": 5, "batch_size": 32, "max_scoring_samples": 64}
        rounds = {"addition_rounds": (0.1, 0.3), "pruning_rounds": (0.6,)}
        return own(**{**short, **rounds, "candidates_per_layer": 8, **choices})

    test = Rows(x=problem.test.x[:100], y=problem.test.y[:100])
    return replace(problem, train=rows, test=test, grid=problem.grid[:2], recipe=recipe)


def reset(model: nn.Module) -> nn.Module:
    """Give a net new first weights, as its layers draw them; returns it.

    Raises:
        TypeError: a parameter belongs to a module that can't draw it.
    """
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
        elif [*module.parameters(recurse=False)]:
            raise TypeError(f"{type(module).__name__} can't draw its parameters anew")
    if isinstance(model, MLP):  # a fixed net of the library starts from the mean prediction
        last = model.body[-1]
        zeros = [last.weight, last.bias]
        if model.shortcut is not None:
            zeros.append(model.shortcut.weight)
        for tensor in zeros:
            nn.init.zeros_(tensor)
    return model


TASKS: dict[str, Callable[[], Problem]] = {
    "digits": lambda: table("digits", criteria_tasks.digits().rows),
    "bike": lambda: table("bike", criteria_tasks.bike().rows),
    "letter": lambda: table("letter", criteria_tasks.letter().rows),
    "california": lambda: table("california", criteria_tasks.california().rows),
    "mnist-12k": lambda: mnist(12_000),
    "mnist": lambda: mnist(60_000),
    "cifar-conv": lambda: cifar("conv"),
    "cifar-resnet": lambda: cifar("resnet"),
    "text": text,
}
