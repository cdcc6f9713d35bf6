"""Shared by several test files: LARGEST, prepared, widening, in_training."""

from __future__ import annotations

import copy
import functools
import math

import torch
from torch import nn
from zoo import ZOO, randomised

from senn import pytree
from senn.graph import DependencyGraph, analyze, get_tensor
from senn.surgery import Widen

LARGEST = {torch.float32: 1e-5, torch.float64: 1e-10}


def prepared(
    name: str, dtype: torch.dtype = torch.float32
) -> tuple[nn.Module, object, DependencyGraph]:
    """A fresh model of the zoo, inputs, and its graph."""
    return (*_made(name, dtype), _graph(name))


@functools.cache
def _graph(name: str) -> DependencyGraph:
    # holds names and positions only, which no dtype changes, and an analysis costs more than most tests
    return analyze(*_made(name, torch.float32))


def _made(name: str, dtype: torch.dtype) -> tuple[nn.Module, object]:
    torch.manual_seed(0)
    model = randomised(ZOO[name].build()).to(dtype)
    inputs = pytree.map_leaves(
        lambda x: x.to(dtype) if x.is_floating_point() else x, ZOO[name].inputs(3)
    )
    return model, inputs


def widening(model: nn.Module, graph: DependencyGraph, units: int = 1) -> list[Widen]:
    """Random new units for every space."""
    generator = torch.Generator().manual_seed(1)
    moves = []
    for group in graph.groups:
        values = {}
        for coupled in group.dims:
            if coupled.role == "producer" and not coupled.behind_norm:
                old = get_tensor(model, coupled.name)
                shape = list(old.shape)
                shape[coupled.dim] = units * coupled.index.shape[1]
                scale = 1 / math.sqrt(max(old[0].numel(), 1)) if old.dim() > 1 else 0.3
                values[coupled.name] = scale * torch.randn(shape, generator=generator).to(old)
        moves.append(Widen(group.name, units, values))
    return moves


def in_training(model: nn.Module, inputs: object) -> list[torch.Tensor]:
    """Outputs with the statistics of the batch, without dropout."""
    twin = copy.deepcopy(model).train()
    for module in twin.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    torch.manual_seed(0)
    with torch.no_grad():
        return [
            x
            for x in pytree.tensor_leaves(pytree.call(twin, pytree.clone(inputs)))
            if x.is_floating_point()
        ]
