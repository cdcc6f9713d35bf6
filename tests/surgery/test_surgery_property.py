"""Random networks under random sequences of moves, training steps and undoing."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from surgery_cases import everything, identity_layer, silent, widen
from torch import Tensor, nn

from senn.graph import DependencyGraph, analyze
from senn.nn import Rational, Residual
from senn.surgery import Insert, Prune, Receipt, new_parameters, transaction

X = torch.randn(12, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
ACTIVATIONS = (
    lambda n: nn.Tanh(),
    lambda n: nn.PReLU(n),
    lambda n: Rational.identity(n),
    lambda n: nn.BatchNorm1d(n),
)


class Random(nn.Module):
    """A chain of blocks, each replacing, adding to, or standing beside what it reads."""

    def __init__(self, blocks: list[tuple[str, int, int, bool]]) -> None:
        super().__init__()
        self.kinds, self.blocks, size = [kind for kind, *_ in blocks], nn.ModuleList(), 3
        for kind, width, activation, bias in blocks:
            out = size if kind == "add" else width
            inner = nn.Linear(size, width, bias=bias)
            back = [nn.Linear(width, size)] if kind == "add" else []
            self.blocks.append(nn.Sequential(inner, ACTIVATIONS[activation](width), *back))
            size = size + width if kind == "beside" else out
        self.last = nn.Linear(size, 2)

    def forward(self, x: Tensor) -> Tensor:
        for kind, block in zip(self.kinds, self.blocks, strict=True):
            y = block(x)
            x = y if kind == "replace" else x + y if kind == "add" else torch.cat([x, y], 1)
        return self.last(x)


BLOCKS = st.lists(
    st.tuples(
        st.sampled_from(["replace", "add", "beside"]),
        st.integers(1, 4),
        st.integers(0, 3),
        st.booleans(),
    ),
    min_size=1,
    max_size=3,
)
ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(["widen", "widen", "prune", "insert", "undo", "step"]),
        st.integers(0, 100),
        st.integers(1, 2),
    ),
    min_size=1,
    max_size=6,
)


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model(X).square().mean().backward()
    optimizer.step()


def check(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Attributes, gradients, groups and state fit the parameters, and the model trains."""
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert [id(p) for p in held] == [id(p) for p in model.parameters()]
    assert set(optimizer.state) <= set(held)
    for p, state in optimizer.state.items():
        assert all(value.shape in (p.shape, ()) for value in state.values())
    for module in model.modules():
        if isinstance(module, nn.Linear):
            assert module.weight.shape == (module.out_features, module.in_features)
    assert all(p.grad is None or p.grad.shape == p.shape for p in model.parameters())
    assert model.eval()(X).isfinite().all()
    model.train()


@settings(max_examples=12, deadline=None)
@given(blocks=BLOCKS, actions=ACTIONS, seed=st.integers(0, 1000))
def test_any_sequence_of_moves_keeps_model_and_optimizer_together(
    blocks: list[tuple[str, int, int, bool]], actions: list[tuple[str, int, int]], seed: int
) -> None:
    torch.manual_seed(seed)
    model = Random(blocks).double()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    step(model, optimizer)
    receipts: list[tuple[Receipt, list[object], DependencyGraph]] = []
    graph = analyze(model, X)
    for action, which, count in actions:
        if action == "step":
            step(model, optimizer)
            receipts.clear()
        elif action == "undo" and receipts:
            receipt, held, graph = receipts.pop()
            receipt.undo()
            assert everything(model, optimizer) == held
        elif action in ("widen", "prune", "insert"):
            if not graph.groups:
                continue
            group = graph.groups[which % len(graph.groups)]
            insertion_point = graph.insertion_points[which % len(graph.insertion_points)]
            if action == "widen":
                move = widen(model, graph, group.name, count, seed=which)
            elif action == "prune":
                if group.width <= count:
                    continue
                move = Prune(group.name, tuple((which + k) % group.width for k in range(count)))
            elif which % 2 and model.get_submodule(insertion_point.module).bias is not None:
                move = Insert(
                    insertion_point.module, *identity_layer(insertion_point.features, torch.float64)
                )
            else:
                move = Insert(insertion_point.module, Residual(silent(insertion_point.features)))
            held = everything(model, optimizer)
            expected = sum(p.numel() for p in model.parameters()) + new_parameters(
                model, graph, move
            )
            receipt = transaction(model, [move], graph, optimizer=optimizer, probe=X)
            receipts.append((receipt, held, graph))
            graph = receipt.graph or analyze(model, X)
            assert sum(p.numel() for p in model.parameters()) == expected
            assert action == "prune" or receipt.output_change < 1e-10
        check(model, optimizer)
