"""Batches that can't be cut into samples: nodes of a graph with the edges between them; inputs without entries."""

import torch
from torch import nn
from torch.nn import functional as F

import senn

G = torch.Generator().manual_seed(0)
X, EDGES = torch.randn(120, 3, generator=G), torch.randint(0, 120, (2, 300), generator=G)
Y = (X[:, 0] * X[:, 1] > 0).long()
READY = senn.PaperPolicy(tau=1e-3, alpha=1e-6)


class Graph(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, nodes, edges):
        h = self.first(nodes).relu()
        h = h + torch.zeros_like(h).index_add(0, edges[1], h[edges[0]])
        return self.last(h)


def test_a_graph_passes_through_the_model_whole_and_grows():
    torch.manual_seed(0)
    model = Graph()
    grower = senn.Grower(model, None, F.cross_entropy, READY, samples=10_000, moves=["width"])
    before = model(X, EDGES)
    loss = grower.observe((X, EDGES), Y)
    # In their order: nodes that are moved or cut would be joined by other edges.
    torch.testing.assert_close(torch.tensor(loss), F.cross_entropy(before, Y).detach())
    assert list(grower.unreadable_maps) == ["first"]
    assert "can't be told apart by samples" in grower.unreadable_maps["first"]
    assert [event.place for event in grower.grow()] == ["first"]
    torch.testing.assert_close(model(X, EDGES), before, rtol=1e-5, atol=1e-5)


def test_an_input_without_entries_is_no_count_of_samples():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, covariates, x):
            return self.last(self.first(x).relu()) + covariates.sum()

    grower = senn.Grower(Net(), None, F.cross_entropy, READY, samples=10_000)
    assert grower.grow([((torch.zeros(0), X), Y)])
    assert senn.analyze(Net(), (torch.zeros(8, 5, 0), X[:8])).groups[0].width == 4


def test_a_batch_of_another_structure_is_looked_at_too():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x, mask=None):
            h = self.first(x).relu()
            return self.last(h if mask is None else h * mask)

    grower = senn.Grower(Net(), None, F.cross_entropy, samples=10_000)
    grower.observe(X, Y)
    assert [group.name for group in grower.graph.groups] == ["first"]
    grower.observe((X, torch.rand(1, 4)), Y)
    assert grower.graph.groups == ()
    grower.observe(X, Y)
    assert grower.graph.groups == ()
