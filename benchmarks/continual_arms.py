"""Learners for `continual.py`: nets of a fixed size, continual backpropagation, growth by senn and growth at random."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import senn
from senn.errors import SennError
from senn.graph.named_tensors import get_tensor
from senn.surgery import Prune, Widen, transaction

Sizes = tuple[int, ...]


def net(inputs: int, hidden: Sizes, outputs: int) -> nn.Sequential:
    """ReLU net of ordinary layers."""
    layers: list[nn.Module] = []
    for before, after in zip((inputs, *hidden), hidden, strict=False):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(hidden[-1], outputs))


def parameters(model: nn.Module) -> int:
    """Number of parameters."""
    return sum(one.numel() for one in model.parameters())


@dataclass(kw_only=True)
class Fixed:
    """A net of a fixed size; the base of all others."""

    model: nn.Sequential
    lr: float
    changes: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=self.lr)
        self.steps = 0

    def learn(self, x: Tensor, y: Tensor) -> Tensor:
        """Take one step and return the outputs of before it."""
        self.optimizer.zero_grad()
        out: Tensor = self.model(x)
        F.cross_entropy(out, y).backward()
        self.optimizer.step()
        self.steps += 1
        return out.detach()

    def more_classes(self, number: int, x: Tensor, y: Tensor) -> None:
        """Nothing: it has outputs for all classes from the start."""


@dataclass(kw_only=True)
class Backprop(Fixed):
    """Continual backpropagation (Dohare et al., Nature 632, 2024): units of low utility begin anew.

    Utility is the running mean of |h| sum |w_out|, corrected for its start; units younger than `maturity` steps are
    safe; of the others a share `rate` begins anew at each step, with fresh incoming weights and none going out. What
    its mean activation gave goes into the next bias.
    """

    rate: float = 1e-4
    maturity: int = 100
    decay: float = 0.99

    def __post_init__(self) -> None:
        super().__post_init__()
        self._maps = [one for one in self.model if isinstance(one, nn.Linear)]
        widths = [one.out_features for one in self._maps[:-1]]
        self._utility = [torch.zeros(width) for width in widths]
        self._mean = [torch.zeros(width) for width in widths]
        self._age = [torch.zeros(width) for width in widths]
        self._due = [0.0 for _ in widths]
        self._seen: list[Tensor] = []
        for one in self.model:
            if isinstance(one, nn.ReLU):
                one.register_forward_hook(lambda _module, _inputs, out: self._seen.append(out))

    def learn(self, x: Tensor, y: Tensor) -> Tensor:
        """Take one step, then replace what is due."""
        self._seen.clear()
        out = super().learn(x, y)
        with torch.no_grad():
            for layer, seen in enumerate(self._seen):
                self._replace(layer, seen.detach())
        return out

    def _replace(self, layer: int, seen: Tensor) -> None:
        reads, makes = self._maps[layer + 1], self._maps[layer]
        self._age[layer] += 1
        self._utility[layer].lerp_(seen.abs().mean(0) * reads.weight.abs().sum(0), 1 - self.decay)
        self._mean[layer].lerp_(seen.mean(0), 1 - self.decay)
        old = self._age[layer] > self.maturity
        self._due[layer] += self.rate * int(old.sum())
        while self._due[layer] >= 1 and bool(old.any()):
            self._due[layer] -= 1
            started = 1 - self.decay ** self._age[layer]
            worth = torch.where(old, self._utility[layer] / started, math.inf)
            unit = int(worth.argmin())
            mean = self._mean[layer][unit] / started[unit]
            reads.bias += reads.weight[:, unit] * mean
            reads.weight[:, unit] = 0
            bound = 1 / math.sqrt(makes.in_features)
            makes.weight[unit].uniform_(-bound, bound)
            makes.bias[unit] = 0
            self._forget(makes.weight, 0, unit)
            self._forget(makes.bias, 0, unit)
            self._forget(reads.weight, 1, unit)
            for record in (self._utility, self._mean, self._age):
                record[layer][unit] = 0
            old = self._age[layer] > self.maturity

    def _forget(self, parameter: nn.Parameter, dim: int, unit: int) -> None:
        for value in self.optimizer.state[parameter].values():
            if value.dim():
                value.select(dim, unit).zero_()


@dataclass(kw_only=True)
class Grown(Fixed):
    """A net that senn grows and prunes by what the last samples say; prices are over a window of samples."""

    every: int
    window: int
    most: int
    kappa: float = 0.003
    scored: int = 512

    def __post_init__(self) -> None:
        super().__post_init__()
        policy = senn.PricePolicy(kappa=self.kappa, window=self.window, max_places_per_round=None)
        self.grower = senn.Grower(
            self.model,
            self.optimizer,
            policy=policy,
            samples=self.window,
            max_params=self.most,
            moves=("width", "prune"),
        )
        self._recent: list[tuple[Tensor, Tensor]] = []

    def learn(self, x: Tensor, y: Tensor) -> Tensor:
        """Take one step, and now and then a round of removals and one of additions."""
        out = super().learn(x, y)
        self._recent.append((x, y))
        self._recent = self._recent[-max(1, self.scored // len(x)) :]
        if self.steps % self.every == 0:
            batch = self._batch()
            self._round(("prune",), batch)
            self._round(("width",), batch)
        return out

    def more_classes(self, number: int, x: Tensor, y: Tensor) -> None:
        """Give the net outputs for new classes; what it has seen so far has the old ones."""
        if number:
            self.grower.add_outputs(number, batch=(x, y))
            self._recent = []

    def _batch(self) -> tuple[Tensor, Tensor]:
        return torch.cat([x for x, _ in self._recent]), torch.cat([y for _, y in self._recent])

    def _round(self, moves: Sequence[str], batch: tuple[Tensor, Tensor]) -> None:
        try:
            events = self.grower.grow([batch], moves)
        except SennError:
            return
        for event in events:
            change = {"step": self.steps, "kind": event.kind, "place": event.place}
            self.changes.append({**change, "units": event.units})


@dataclass(kw_only=True)
class Random(Fixed):
    """A net that changes when and where another one did: random weights come, those of the smallest norms go."""

    like: list[dict[str, Any]]

    def __post_init__(self) -> None:
        super().__post_init__()
        self._left = [*self.like]
        self._graph: Any = None

    def learn(self, x: Tensor, y: Tensor) -> Tensor:
        """Take one step, and the changes that the other net made after it."""
        out = super().learn(x, y)
        while self._left and self._left[0]["step"] <= self.steps:
            self._change(self._left.pop(0), x)
        return out

    def more_classes(self, number: int, x: Tensor, y: Tensor) -> None:
        """Give the net outputs for new classes as the other one got them."""
        if number:
            senn.add_outputs(self.model, number, x, optimizer=self.optimizer)
            self._graph = None

    def _change(self, one: dict[str, Any], x: Tensor) -> None:
        graph = self._graph if self._graph is not None else senn.analyze(self.model, x)
        group, units = graph.group(one["place"]), int(one["units"])
        if one["kind"] == "prune":
            norms = [
                get_tensor(self.model, place.name)
                .detach()
                .movedim(place.dim, 0)
                .flatten(1)
                .norm(dim=1)
                for place in group.dims
                if place.tensor == "weight"
            ]
            least = torch.stack(norms).prod(0).argsort()[: min(units, group.width - 1)]
            move: Any = Prune(group.name, tuple(sorted(least.tolist())))
        else:
            layer = self.model.get_submodule(one["place"])
            fresh = nn.Linear(int(layer.in_features), units)
            rows = {"weight": fresh.weight.detach(), "bias": fresh.bias.detach()}
            move = Widen(group.name, units, {f"{group.name}.{name}": rows[name] for name in rows})
        self._graph = transaction(self.model, [move], graph, optimizer=self.optimizer).graph
        self.changes.append(one)
