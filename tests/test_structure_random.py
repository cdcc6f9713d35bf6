"""Random models from all kinds of parts, grown, pruned, taken back, saved and loaded in random order.

`SENN_EXAMPLES=5000 pytest tests/test_structure_random.py` tries more.
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
from test_zoo import widening
from torch import Tensor, nn
from zoo import randomised

import senn
from senn.nn import Residual
from senn.structure import Site, Structure, analyse
from senn.surgery import Insert, Move, Prune, operate
from senn.surgery.verify import output_change, outputs

EXAMPLES = int(os.environ.get("SENN_EXAMPLES", "300"))
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
        self.saved: tuple[list[Tensor], Structure] | None = None
        model = built(self.recipe)
        self._begin(model, analyse(model, X))
        assert self.structure.spaces or self.structure.refused

    def _begin(self, model: nn.Module, structure: Structure) -> None:
        self.model, self.structure = model, structure
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
        kind = self.draw.draw(st.sampled_from(("widen", "prune", "insert"))) if name == "undo" else name
        wide = [space for space in self.structure.spaces if space.width > 2]
        if kind == "prune" and wide:
            space = self.draw.draw(st.sampled_from(wide))
            return [Prune(space.name, (self.draw.draw(st.integers(0, space.width - 1)),))]
        if kind == "insert" and self.structure.sites:
            return [inserted(self.draw.draw(st.sampled_from(self.structure.sites)))]
        if kind == "widen" and self.structure.spaces:
            return [
                self.draw.draw(st.sampled_from(widening(self.model, self.structure, self.draw.draw(st.integers(1, 2)))))
            ]
        return []

    def _change(self, moves: Sequence[Move]) -> None:
        before = outputs(self.model, X)
        receipt = operate(self.model, moves, self.structure, optimizer=self.optimizer, probe=X)
        if not isinstance(moves[0], Prune):
            assert output_change(before, outputs(self.model, X)) <= 1e-10
        self.structure = receipt.structure or analyse(self.model, X, proven=self.structure)

    def _there_and_back(self, moves: Sequence[Move]) -> None:
        held, before = copy.deepcopy(self.model.state_dict()), outputs(self.model, X)
        operate(self.model, moves, self.structure, optimizer=self.optimizer, probe=X).undo()
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
        self.saved = outputs(self.model, X), self.structure

    def _load(self) -> None:
        """Go on with what was last saved, in a freshly built model."""
        if self.saved is None:
            self._save()
        assert self.saved is not None
        expected, structure = self.saved
        model = senn.load(self.folder, into=built(self.recipe))
        assert all(map(torch.equal, outputs(model, X), expected))
        self._begin(model, structure)


def inserted(site: Site) -> Insert:
    """A layer before a linear layer or convolution that does nothing yet."""
    if site.spatial:
        return Insert(site.module, nn.PReLU(site.features, init=1.0))
    return Insert(site.module, Residual(silent(site.features)))


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(recipe=RECIPES, steps=st.lists(st.sampled_from(STEPS), min_size=1, max_size=3), data=st.data())
def test_random_models_in_random_orders(recipe: Recipe, steps: list[str], data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        life = Life(recipe, folder, data)
        for step in steps:
            life.step(step)
        names = {space.name: space.width for space in life.structure.spaces}
        again = {space.name: space.width for space in analyse(life.model, X).spaces}
        assert {name: again.get(name, 1) for name in names} == names  # a single unit may be undecidable
