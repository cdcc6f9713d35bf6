"""Random models from all kinds of parts, grown, pruned, taken back, saved and loaded in random order.

`SENN_EXAMPLES=5000 pytest tests/graph/test_graph_random.py` tries more.
"""

from __future__ import annotations

import copy
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_parts import PARTS, Random
from surgery_cases import silent
from torch import Tensor, nn
from zoo import randomised
from zoo_cases import widening

import senn
from senn.graph import DependencyGraph, InsertionPoint, analyze
from senn.nn import Residual
from senn.surgery import Insert, Move, Prune, transaction
from senn.surgery.outputs import output_change, outputs

EXAMPLES = int(os.environ.get("SENN_EXAMPLES", "12"))
STEPS = ("widen", "prune", "insert", "undo", "save", "load")
X = torch.randn(2, 2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

Recipe = tuple[list[tuple[str, int]], int, bool]
RECIPES = st.tuples(
    st.lists(st.tuples(st.sampled_from(PARTS), st.integers(2, 5)), min_size=1, max_size=3),
    st.integers(2, 5),
    st.booleans(),
)


def built(recipe: Recipe) -> nn.Module:
    torch.manual_seed(0)
    return randomised(Random(*recipe)).double()


@dataclass
class Life:
    """A model while it changes, and the file it was last saved to."""

    recipe: Recipe
    folder: str
    draw: st.DataObject

    def __post_init__(self) -> None:
        self.saved: tuple[list[Tensor], DependencyGraph] | None = None
        model = built(self.recipe)
        self._begin(model, analyze(model, X))
        assert self.graph.groups or self.graph.refusals

    def _begin(self, model: nn.Module, graph: DependencyGraph) -> None:
        self.model, self.graph = model, graph
        self.optimizer = torch.optim.Adam(model.parameters())

    def step(self, name: str) -> None:
        if name == "save":
            self._save()
        elif name == "load":
            self._load()
        elif (moves := self._moves(name)) and name == "undo":
            self._there_and_back(moves)
        elif moves:
            self._change(moves)
            self._train()

    def _moves(self, name: str) -> list[Move]:
        """A random move of a kind, or of any kind; none where the model has no place for it."""
        kind = (
            self.draw.draw(st.sampled_from(("widen", "prune", "insert")))
            if name == "undo"
            else name
        )
        wide = [group for group in self.graph.groups if group.width > 2]
        if kind == "prune" and wide:
            group = self.draw.draw(st.sampled_from(wide))
            return [Prune(group.name, (self.draw.draw(st.integers(0, group.width - 1)),))]
        if kind == "insert" and self.graph.insertion_points:
            return [inserted(self.draw.draw(st.sampled_from(self.graph.insertion_points)))]
        if kind == "widen" and self.graph.groups:
            return [
                self.draw.draw(
                    st.sampled_from(
                        widening(self.model, self.graph, self.draw.draw(st.integers(1, 2)))
                    )
                )
            ]
        return []

    def _change(self, moves: Sequence[Move]) -> None:
        before = outputs(self.model, X)
        receipt = transaction(self.model, moves, self.graph, optimizer=self.optimizer, probe=X)
        if not isinstance(moves[0], Prune):
            assert output_change(before, outputs(self.model, X)) <= 1e-10
        self.graph = receipt.graph or analyze(self.model, X, proven=self.graph)

    def _there_and_back(self, moves: Sequence[Move]) -> None:
        held, before = copy.deepcopy(self.model.state_dict()), outputs(self.model, X)
        transaction(self.model, moves, self.graph, optimizer=self.optimizer, probe=X).undo()
        state = self.model.state_dict()
        assert list(state) == list(held)
        assert all(torch.equal(value, held[name]) for name, value in state.items())
        assert all(map(torch.equal, before, outputs(self.model, X)))

    def _train(self) -> None:
        self.model(X).square().sum().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def _save(self) -> None:
        senn.save(self.folder, self.model)
        self.saved = outputs(self.model, X), self.graph

    def _load(self) -> None:
        """Go on with what was last saved, in a freshly built model."""
        if self.saved is None:
            self._save()
        assert self.saved is not None
        expected, graph = self.saved
        model = senn.load(self.folder, into=built(self.recipe))
        assert all(map(torch.equal, outputs(model, X), expected))
        self._begin(model, graph)


def inserted(insertion_point: InsertionPoint) -> Insert:
    """A layer before a linear layer or convolution that does nothing yet."""
    if insertion_point.spatial:
        return Insert(insertion_point.module, nn.PReLU(insertion_point.features, init=1.0))
    return Insert(insertion_point.module, Residual(silent(insertion_point.features)))


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    recipe=RECIPES, steps=st.lists(st.sampled_from(STEPS), min_size=1, max_size=3), data=st.data()
)
def test_random_models_in_random_orders(
    recipe: Recipe, steps: list[str], data: st.DataObject
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        life = Life(recipe, folder, data)
        for step in steps:
            life.step(step)
        names = {group.name: group.width for group in life.graph.groups}
        again = {group.name: group.width for group in analyze(life.model, X).groups}
        assert {
            name: again.get(name, 1) for name in names
        } == names  # a single unit may be undecidable
