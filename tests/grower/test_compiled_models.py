"""Growth of compiled models: nothing falls back to eager mode, nothing crashes, and names have no prefix."""

import pytest
import torch
from growth_cases import FEW, Take, X, Y
from torch import nn
from torch.nn import functional as F

import senn
from senn.surgery import Widen, transaction

LIMIT = (
    2  # compilations of one function, after which Dynamo gives up; 8 unless it is told otherwise
)
CHANGES = LIMIT + 1


class Net(nn.Module):
    """Two layers, of which the first may be compiled on its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(64, 2), nn.Linear(2, 10)

    def forward(self, x):
        return self.last(torch.relu(self.first(x)))


class Compiler:
    """A backend that counts the graphs it compiles."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph, _):
        self.graphs += 1
        return graph.forward


@pytest.fixture(autouse=True)
def _forget():
    with torch._dynamo.config.patch(recompile_limit=LIMIT):
        yield
    torch.compiler.reset()


def outside(model, backend):
    return torch.compile(model, backend=backend, fullgraph=True)


def in_place(model, backend):
    model.compile(backend=backend, fullgraph=True)
    return model


def part(model, backend):
    model.first = torch.compile(model.first, backend=backend)
    return model


@pytest.mark.parametrize("compiled", [outside, in_place, part])
def test_every_size_is_compiled_once(compiled):
    backend = Compiler()
    torch.manual_seed(0)
    model = Net()
    run = compiled(model, backend)
    optimizer = torch.optim.Adam(model.parameters())
    grower = senn.Grower(
        run, optimizer, F.cross_entropy, Take("widen"), moves=["width"], candidate_config=FEW
    )
    for change in range(CHANGES):
        for _ in range(2):
            optimizer.zero_grad()
            F.cross_entropy(run(X), Y).backward()
            optimizer.step()
        assert backend.graphs == change + 1
        assert len(grower.grow([(X[:200], Y[:200])])) == 1
    assert grower.recompiles == CHANGES
    assert grower.model is model
    torch.testing.assert_close(run(X), model.last(torch.relu(model.first(X))))


def test_names_are_those_of_the_module_inside():
    model = Net()
    graph = senn.analyze(torch.compile(model, backend="eager"), X[:4])
    assert [group.name for group in graph.groups] == ["first"]


def test_surgery_and_undo_drop_what_was_compiled():
    backend = Compiler()
    model = Net()
    run = torch.compile(model, backend=backend, fullgraph=True)
    values = {"first.weight": torch.ones(1, 64), "first.bias": torch.ones(1)}
    run(X)
    receipt = transaction(run, [Widen("first", 1, values)], senn.analyze(run, X[:4]), probe=X[:4])
    assert receipt.recompiles
    run(X)
    receipt.undo()
    run(X)
    assert backend.graphs == 3
    assert model.first.out_features == 2


def test_nothing_is_dropped_where_nothing_was_compiled():
    torch.compiler.reset()
    grower = senn.Grower(Net(), None, policy=Take("widen"), moves=["width"], candidate_config=FEW)
    assert grower.grow([(X[:200], Y[:200])])
    assert grower.recompiles == 0
