"""What is known about a model of the zoo."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Entry:
    """A model of the zoo.

    Attributes:
        build: makes it, with fresh weights.
        inputs: makes inputs for a number of samples.
        spaces: widths of its hidden spaces in units, by a producer's name.
        refused: of further hidden spaces that can't change, a pattern of the true reason, by place.
        never: places that are no hidden space at all (outputs, unused parts), by place.
        output: finds the tensor to train on.
        blocks: names of the residual blocks that can be repeated.
    """

    build: Callable[[], nn.Module]
    inputs: Callable[[int], Any]
    groups: Mapping[str, int]
    refused: Mapping[str, str] = field(default_factory=dict)
    never: Mapping[str, str] = field(default_factory=dict)
    output: Callable[[Any], Tensor] | None = None
    blocks: Sequence[str] = ()


def image(channels: int, size: int) -> Callable[[int], Tensor]:
    """Inputs that are images."""
    return lambda count: torch.randn(count, channels, size, size)


def vectors(*shape: int) -> Callable[[int], Tensor]:
    """Inputs of any other shape."""
    return lambda count: torch.randn(count, *shape)


def words(vocabulary: int, length: int) -> Callable[[int], Tensor]:
    """Inputs that are token numbers."""
    return lambda count: torch.randint(0, vocabulary, (count, length))


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random norms, running statistics, scales and biases: nothing is hidden by ones and zeros."""
    generator = torch.Generator().manual_seed(seed)

    def draw(tensor: Tensor) -> Tensor:
        return torch.randn(tensor.shape, generator=generator).to(tensor)

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() <= 1 or not parameter.any():
                parameter += 0.3 * draw(parameter)
            elif name.endswith("weight") and parameter.dim() > 1:
                parameter += 0.02 * draw(parameter)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(0.3 * draw(buffer))
            elif name.endswith("running_var"):
                buffer.copy_(0.5 + draw(buffer).abs())
    return model
