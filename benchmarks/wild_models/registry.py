"""What an entry of the list is, and how one is made from the name of a class and its settings."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

Batch = Callable[[int], Any]
Build = Callable[[], nn.Module]


@dataclass(frozen=True, kw_only=True)
class Wild:
    """A model of a public package.

    Attributes:
        package: distribution that it comes from.
        model: makes the model.
        batch: makes inputs of n samples.
        dtype: float32 where the model's own code asks for it.
    """

    package: str
    model: Build
    batch: Batch
    dtype: torch.dtype = torch.float64


Models = dict[str, Wild]


def made(target: str, *args: Any, **settings: Any) -> Build:
    """Return what makes a model by a call.

    Args:
        target: module and name of what is called: "package.module:Class".
        args: positional arguments of the call.
        settings: arguments by name.
    """

    def build() -> nn.Module:
        model: nn.Module = load(target)(*args, **settings)
        return model

    return build


def load(target: str) -> Any:
    """Import an object by "package.module:name"."""
    module, _, name = target.partition(":")
    if find_spec("torchvision") is not None:  # most packages import it where it is installed
        _torchvision()
    return functools.reduce(getattr, name.split("."), importlib.import_module(module))


@functools.cache
def _torchvision() -> Any:
    """Import torchvision beside a CPU build of torch, whose wheel's own operations can't be loaded there."""
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    # what is cached is kept: the operations go when the library does
    return library, importlib.import_module("torchvision")


def images(size: int, channels: int = 3) -> Batch:
    """Random images."""
    return vectors(channels, size, size)


def tokens(vocabulary: int, length: int) -> Batch:
    """Random tokens."""
    return lambda n: torch.randint(vocabulary, (n, length))


def vectors(*shape: int) -> Batch:
    """Random vectors or sequences of vectors."""
    return lambda n: torch.randn(n, *shape)


def named(**batches: Batch) -> Batch:
    """Inputs by name."""
    return lambda n: {name: batch(n) for name, batch in batches.items()}


def several(*batches: Batch) -> Batch:
    """Inputs by position."""
    return lambda n: tuple(batch(n) for batch in batches)


class First(nn.Module):
    """Keeps the first of several outputs.

    Args:
        model: what returns several.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *args: Tensor) -> Tensor:
        """Return the first output."""
        first: Tensor = self.model(*args)[0]
        return first
