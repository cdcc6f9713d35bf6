"""Small nets for the tests of the graph, and short forms of what it finds."""

import torch
from torch import Tensor, nn

from senn.graph import ChannelGroup, DependencyGraph


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


def coupled_dims(group: ChannelGroup) -> dict[str, tuple[str, int, list[list[int]]]]:
    return {
        coupled.name: (coupled.role, coupled.dim, coupled.index.tolist()) for coupled in group.dims
    }


def reasons(graph: DependencyGraph) -> dict[str, str]:
    return {refusal.place: refusal.reason for refusal in graph.refusals}


def names(graph: DependencyGraph) -> list[str]:
    return [group.name for group in graph.groups]


def each(width: int, start: int = 0) -> list[list[int]]:
    """One position per unit."""
    return [[start + unit] for unit in range(width)]


def columns(graph: DependencyGraph, group: str, consumer: str) -> tuple[list[list[int]], bool]:
    """Index and layout of one consumer."""
    (coupled,) = [s for s in graph.group(group).dims_of("consumer") if s.module == consumer]
    return coupled.index.tolist(), coupled.n_segments > 1


def linear_pair(forward, width=4, **more):
    return Net(forward, a=(3, width), b=(width, 2), **more)
