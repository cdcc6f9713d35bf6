"""Small nets for the tests of the structure room, and short forms of what it finds."""

import torch
from torch import Tensor, nn

from senn.structure import Space, Structure


class Net(nn.Module):
    """Modules by name (a pair of sizes is a linear map) and a forward written as a function of net and inputs."""

    def __init__(self, forward, **modules):
        super().__init__()
        for name, module in modules.items():
            setattr(self, name, nn.Linear(*module) if isinstance(module, tuple) else module)
        self.function = forward

    def forward(self, *inputs):
        return self.function(self, *inputs)


def batch(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def slots(space: Space) -> dict[str, tuple[str, int, list[list[int]]]]:
    return {slot.name: (slot.role, slot.dim, slot.index.tolist()) for slot in space.slots}


def reasons(structure: Structure) -> dict[str, str]:
    return {refusal.place: refusal.reason for refusal in structure.refused}


def names(structure: Structure) -> list[str]:
    return [space.name for space in structure.spaces]


def each(width: int, start: int = 0) -> list[list[int]]:
    """One position per unit."""
    return [[start + unit] for unit in range(width)]


def columns(structure: Structure, space: str, consumer: str) -> tuple[list[list[int]], bool]:
    """Index and layout of one consumer."""
    (slot,) = [s for s in structure.space(space).of("consumer") if s.module == consumer]
    return slot.index.tolist(), slot.runs > 1


def linear_pair(forward, width=4, **more):
    return Net(forward, a=(3, width), b=(width, 2), **more)
