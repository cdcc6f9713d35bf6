"""A fault at any line of the surgery leaves everything as it was.

A tracer raises at one line event inside `senn.surgery` after the other. The ordinary run tries a sample, spread over
all that a move does: one line of 16 in the first move that comes to it, one of 240 in the moves and models after.
`SENN_ALL=1 pytest tests/surgery/test_faults.py` tries every event of every move.
"""

from __future__ import annotations

import copy
import functools
import itertools
import linecache
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from exhaustive import EVERYTHING, some
from surgery_cases import everything, silent
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from zoo_cases import widening

import senn.surgery
from senn.errors import SennError
from senn.graph import DependencyGraph, ResidualBlock, analyze
from senn.nn import Residual
from senn.surgery import Append, Insert, Move, Prune, transaction

ROOM = str(Path(senn.surgery.__file__).parent)
FAULTS = (ArithmeticError, torch.OutOfMemoryError, KeyboardInterrupt)
TRIALS = ("blank_optimizer.py", "rehearsal.py", "trials.py")
"""Files that try code of others: what fails there before a change isn't asked to work after it."""


class Attending(nn.Module):
    """Attention in a residual block."""

    def __init__(self) -> None:
        super().__init__()
        self.inp, self.attn = nn.Linear(3, 4), nn.MultiheadAttention(4, 2, batch_first=True)
        self.norm, self.block, self.out = nn.LayerNorm(4), Residual(_branch()), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inp(x)
        y = self.norm(x)
        return self.out(self.block(x + self.attn(y, y, y)[0]).mean(1))


def _branch() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 4))


class Seeing(nn.Module):
    """Convolutions with statistics of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)
        self.block, self.out = (
            Residual(nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4))),
            nn.Linear(4, 2),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.block(self.bn(self.conv(x)).relu()).amax((2, 3)))


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), Residual(_branch()), nn.Linear(4, 2))


def _adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.named_parameters(), 0.01)


def _sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)


MODELS: dict[
    str,
    tuple[Callable[[], nn.Module], Callable[[nn.Module], Any], tuple[int, ...], str, str, str, str],
] = {
    # how to make it, its optimizer, its inputs, a space, a site, a block, what the block's silent copy sets to zero
    "mlp": (_mlp, _adam, (5, 3), "0", "3", "2", "branch.2"),
    "convolutions": (Seeing, _sgd, (5, 1, 6, 6), "conv", "out", "block", "branch.1"),
    "attention": (Attending, _adam, (5, 2, 3), "inp", "out", "block", "branch.2"),
}
OPERATIONS = [(name, kind) for name in MODELS for kind in ("widen", "prune", "insert", "append")]


class Watch:
    """A tracer that lists the line events inside the surgery, and raises at one of them.

    It is asked at each of them, some ten thousand times a move: all that it looks up stands in the file's own tracer.
    """

    def __init__(self, at: int = -1, error: BaseException | None = None) -> None:
        self.at, self.error = at, error
        self.lines: list[tuple[str, int]] = []
        self._visited: set[tuple[FrameType, int]] = set()
        self._tracers: dict[str, Callable[[FrameType, str, Any], Any] | None] = {}

    def __enter__(self) -> Watch:
        sys.settrace(self._call)
        return self

    def __exit__(self, *_: Any) -> None:
        sys.settrace(None)
        self._visited.clear()

    def _call(self, frame: FrameType, event: str, arg: Any) -> Any:
        file = frame.f_code.co_filename
        if file not in self._tracers:
            self._tracers[file] = self._tracer(file) if file.startswith(ROOM) else None
        return self._tracers[file]

    def _tracer(self, file: str) -> Callable[[FrameType, str, Any], Any]:
        late, lines, last = _late(file), self.lines, self.at + 1

        def trace(frame: FrameType, event: str, arg: Any) -> Any:
            if event == "line":
                number = frame.f_lineno
                if number in late and self._is_too_late(frame, late[number]):
                    return trace
                lines.append((file, number))
                if len(lines) == last and self.error is not None:
                    sys.settrace(None)
                    raise self.error
            return trace

        return trace

    def _is_too_late(self, frame: FrameType, text: str) -> bool:
        """Whether a `with` is about to be left, which Python itself doesn't do if interrupted then, or all is done."""
        if text == "return receipt":
            return True
        again = (frame, frame.f_lineno) in self._visited
        self._visited.add((frame, frame.f_lineno))
        return again


@functools.cache
def _late(file: str) -> dict[int, str]:
    """The lines of a file that begin a `with`, or with which all is done."""
    found = {number: text.strip() for number, text in enumerate(linecache.getlines(file), 1)}
    return {
        number: text
        for number, text in found.items()
        if text.startswith("with ") or text == "return receipt"
    }


@dataclass
class Work:
    """A trained model with its optimizer and average, and a move to carry out."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    averaged: AveragedModel
    graph: DependencyGraph
    x: Tensor
    move: Move

    def carry_out(self, watch: Watch) -> Watch:
        """With a tracer at it."""
        with watch:
            transaction(
                self.model, [self.move], self.graph, optimizer=self.optimizer, averaged=[self.averaged],
                probe=self.x, loss=lambda: 0.0,
            )  # fmt: skip
        return watch

    def now(self) -> list[object]:
        """All objects and bits that an operation could touch."""
        random_state = torch.get_rng_state().numpy().tobytes()
        held = [*everything(self.model, self.optimizer), *everything(self.averaged)]
        return [*held, torch.is_grad_enabled(), random_state]


def prepared(name: str, kind: str) -> Work:
    """The same work each time: a model with hooks and mixed modes, and one move."""
    build, optimized, shape, group, insertion_point, block, last = MODELS[name]
    torch.manual_seed(0)
    model, x = build(), torch.randn(*shape)
    graph = analyze(model, x)
    optimizer, averaged = optimized(model), AveragedModel(model)
    for _ in range(2):
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()
        averaged.update_parameters(model)
    model.get_submodule(block).eval()
    model.get_submodule(insertion_point).register_forward_pre_hook(lambda module, args: None)
    next(model.parameters()).register_hook(lambda gradient: gradient)
    moves: dict[str, Callable[[], Move]] = {
        "widen": lambda: next(one for one in widening(model, graph) if one.group == group),
        "prune": lambda: Prune(group, (1,)),
        "insert": lambda: Insert(
            insertion_point, Residual(silent(model.get_submodule(insertion_point).in_features))
        ),
        "append": lambda: Append(block, _silenced(model.get_submodule(block), last)),
    }
    graph = replace(
        graph,
        residual_blocks=(
            ResidualBlock(
                module=block, output_params=(f"{block}.{last}.weight", f"{block}.{last}.bias")
            ),
        ),
    )
    return Work(model, optimizer, averaged, graph, x, moves[kind]())


def _silenced(block: nn.Module, last: str) -> nn.Module:
    twin = copy.deepcopy(block)
    for parameter in twin.get_submodule(last).parameters():
        nn.init.zeros_(parameter)
    return twin


@functools.cache
def reached(name: str, kind: str) -> list[tuple[str, int]]:
    """Lines of an operation that nothing interrupts."""
    return prepared(name, kind).carry_out(Watch()).lines


def chosen(lines: list[tuple[str, int]], tried: set[tuple[str, int]]) -> list[int]:
    """Any event of one in 16 of the lines that no earlier operation comes to, and of one in 240 of the others."""
    if EVERYTHING:
        return list(range(len(lines)))
    visits: dict[tuple[str, int], list[int]] = {}
    for number, line in enumerate(lines):
        visits.setdefault(line, []).append(number)
    new = [line for line in visits if line not in tried]
    picked = [*some(new, 16), *some((line for line in visits if line in tried), 240)]
    draw = random.Random(0)
    return [draw.choice(visits[line]) for line in picked]


@pytest.mark.parametrize(("name", "kind"), OPERATIONS, ids=map("-".join, OPERATIONS))
def test_a_fault_at_any_line_leaves_everything_as_it_was(name: str, kind: str) -> None:
    earlier = [] if EVERYTHING else OPERATIONS[: OPERATIONS.index((name, kind))]
    tried = {line for operation in earlier for line in reached(*operation)}
    lines = reached(name, kind)
    work = prepared(name, kind)
    held = work.now()
    faults = itertools.cycle(FAULTS)
    for at in chosen(lines, tried):
        fault = next(faults)
        if Path(lines[at][0]).name in TRIALS:
            fault = KeyboardInterrupt
        with pytest.raises((SennError, fault), match="injected"):
            work.carry_out(Watch(at, fault("injected")))
        assert work.now() == held, (lines[at], fault)
    assert work.carry_out(Watch()).lines == lines
    assert work.now() != held
