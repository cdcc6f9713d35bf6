"""How long an analysis takes, and the structure after growth; and whether 300 growths in a row leave anything behind.

python benchmarks/analysis.py
"""

from __future__ import annotations

import gc
import resource
import sys
import time
from pathlib import Path

import torch
from torch import nn

from senn import analyze
from senn.surgery import Prune, transaction

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "helpers"))

from zoo.convolutional import Basic, ResNet
from zoo.transformer import Block, ViT
from zoo_cases import widening


def resnet(blocks: int) -> nn.Module:
    """ResNet-(6 n + 2) for images of 32 x 32."""
    widths = [16] * blocks + [32] * blocks + [64] * blocks
    parts, before = [], 16
    for place, width in enumerate(widths):
        parts.append(Basic(before, width, width, 2 if width != before and place else 1))
        before = width
    return ResNet(parts, 16, before)


def vit(depth: int) -> nn.Module:
    """A ViT of width 192 with three heads."""
    model = ViT(192, 3)
    model.blocks = nn.ModuleList([Block(192, 3, 384) for _ in range(depth)])
    return model


def timed(name: str, model: nn.Module, inputs: torch.Tensor) -> None:
    """One line: seconds for the analysis, and for the structure after growth beside the growth itself."""
    start = time.perf_counter()
    graph = analyze(model, inputs)
    first = time.perf_counter() - start
    moves = widening(model, graph)
    start = time.perf_counter()
    receipt = transaction(model, moves, graph)
    second = time.perf_counter() - start
    assert receipt.graph is not None
    print(
        f"{name:12s} analysis {first:6.2f} s, {len(graph.groups)} spaces, {len(graph.refusals)} refused; "
        f"growth of all spaces with the structure after it {second:.3f} s"
    )


def many(count: int = 300) -> None:
    """Widen and prune one model again and again: memory, objects and step time at equal size."""
    torch.manual_seed(0)
    model, inputs = resnet(1), torch.randn(16, 3, 16, 16)
    optimizer = torch.optim.Adam(model.parameters())
    graph = analyze(model, inputs[:2])

    def step() -> float:
        start = time.perf_counter()
        for _ in range(5):
            optimizer.zero_grad()
            model(inputs).square().mean().backward()
            optimizer.step()
        return (time.perf_counter() - start) / 5

    for number in range(count + 1):
        if number % 100 == 0:
            gc.collect()
            tensors = sum(isinstance(thing, torch.Tensor) for thing in gc.get_objects())
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            print(
                f"after {number:3d} growths: {tensors} tensors, peak {memory:.0f} MiB, step {1000 * step():.1f} ms"
            )
        for moves in (widening(model, graph), None):
            chosen = moves or [Prune(group.name, (0,)) for group in graph.groups]
            receipt = transaction(model, chosen, graph, optimizer=optimizer, probe=inputs[:2])
            assert receipt.graph is not None
            graph = receipt.graph


if __name__ == "__main__":
    torch.set_num_threads(2)
    timed("ResNet-8", resnet(1), torch.randn(2, 3, 32, 32))
    timed("ResNet-32", resnet(5), torch.randn(2, 3, 32, 32))
    timed("ViT-12", vit(12), torch.randn(2, 3, 16, 16))
    many()
