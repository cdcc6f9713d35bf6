"""State in any nesting, wrapping and several optimizers are carried, or refused at once by name."""

from __future__ import annotations

import copy
from collections import deque
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from surgery_cases import X64 as X
from surgery_cases import Y64 as Y
from surgery_cases import net, train, widen
from torch import Tensor, nn, optim

from senn.errors import UnsupportedError
from senn.graph import analyze
from senn.surgery import Insert, Prune, transaction


@dataclass
class Pair:
    """Averages in a record."""

    fast: Tensor
    slow: Tensor


class Slotted:
    """An average in an object without a dictionary."""

    __slots__ = ("average",)

    def __init__(self, average: Tensor) -> None:
        self.average = average


class Nested(optim.SGD):
    """SGD with averages of gradients in every kind of container."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = super().step(closure)
        for p in self.param_groups[0]["params"]:
            state = self.state[p]
            if "deep" not in state:
                zero = torch.zeros_like
                state["deep"] = {
                    "pair": Pair(zero(p), zero(p)),
                    "tuple": (zero(p), 3),
                    "history": deque([zero(p), zero(p)], maxlen=2),
                    "slots": [Slotted(zero(p))],
                    "size": p.numel(),
                }
            deep = state["deep"]
            deep["pair"].fast.mul_(0.5).add_(p.grad)
            deep["pair"].slow.mul_(0.9).add_(p.grad)
            deep["tuple"][0].add_(p.grad)
            deep["history"].append(p.grad.clone())
            deep["slots"][0].average.add_(p.grad)
            assert deep["size"] == p.numel()
            p.sub_(0.01 * (deep["pair"].fast + deep["tuple"][0] + deep["history"][0]))
        return loss


def leaves(deep: dict[str, Any]) -> list[Tensor]:
    pair, history = deep["pair"], deep["history"]
    return [pair.fast, pair.slow, deep["tuple"][0], *history, deep["slots"][0].average]


def test_state_in_any_nesting_follows_by_position_and_comes_back() -> None:
    model, graph = net()
    optimizer = Nested(model.parameters(), lr=0.01)
    train(model, optimizer, 3)
    before = {p: leaves(copy.deepcopy(optimizer.state[p]["deep"])) for p in model.parameters()}
    objects = {p: leaves(optimizer.state[p]["deep"]) for p in model.parameters()}
    kinds = [type(one) for one in optimizer.state[model[0].weight]["deep"].values()]

    moves = [widen(model, graph, "0", 2), Prune("2", (1,))]
    receipt = transaction(model, moves, graph, optimizer=optimizer)
    deep = optimizer.state[model[2].weight]["deep"]
    for old, new in zip(before[model[2].weight], leaves(deep), strict=True):
        assert torch.equal(new[:, :5], old[[0, 2, 3]])
        assert not new[:, 5:].any()
    assert deep["size"] == 21
    assert deep["history"].maxlen == 2
    assert [type(one) for one in deep.values()] == kinds
    optimizer.state_dict()
    after = copy.deepcopy(model)
    receipt.undo()
    for p, tensors in objects.items():
        found = leaves(optimizer.state[p]["deep"])
        assert all(one is other for one, other in zip(found, tensors, strict=True))
        assert all(map(torch.equal, found, before[p]))
    transaction(model, moves, graph, optimizer=optimizer)
    assert all(map(torch.equal, model.parameters(), after.parameters()))
    train(model, optimizer, 3)


class Factored(optim.Optimizer):
    """Row and column factors, a flattened copy and a preconditioner of the rows."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": 0.01})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        with torch.enable_grad():
            loss = None if closure is None else closure()
        for p in self.param_groups[0]["params"]:
            state = self.state[p]
            if not state:
                state["flat"], state["row"] = p.flatten().clone(), p.new_zeros(len(p))
                state["column"], state["basis"] = p.new_zeros(p[0].numel()), torch.eye(len(p)).to(p)
            state["row"] += p.grad.flatten(1).sum(1) if p.dim() > 1 else p.grad
            state["column"] += p.grad.flatten(1).sum(0) if p.dim() > 1 else p.grad.sum()
            turn = torch.linalg.matrix_exp(0.1 * (len(p) > 1) * torch.randn(len(p), len(p)).to(p))
            state["basis"] = torch.linalg.qr(turn @ state["basis"])[0]
            p.sub_(0.01 * (state["basis"].T @ p.grad) + 0.001 * state["flat"].view_as(p))
        return loss


def square() -> tuple[nn.Sequential, Any]:
    """A net whose sizes are all the same, so that nothing can be told by them."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2))
    return model.double(), analyze(model, X)


def test_factors_flattened_copies_and_bases_follow_their_dimension() -> None:
    model, graph = square()
    optimizer = Factored(model.parameters())
    train(model, optimizer, 2)
    weight = model[2].weight
    old = copy.deepcopy(optimizer.state[weight])
    transaction(model, [widen(model, graph, "0", 2)], graph, optimizer=optimizer)
    new = optimizer.state[weight]
    assert torch.equal(new["row"], old["row"])
    assert torch.equal(new["basis"], old["basis"])
    assert torch.equal(new["column"][:3], old["column"])
    assert not new["column"][3:].any()
    assert torch.equal(new["flat"].view(3, 5)[:, :3], old["flat"].view(3, 3))
    assert torch.equal(new["flat"].view(3, 5)[:, 3:], weight.detach()[:, 3:])
    basis = optimizer.state[model[0].weight]["basis"]
    assert basis.shape == (5, 5)
    torch.testing.assert_close(basis @ basis.T, torch.eye(5).to(basis))
    assert not basis[3:, :3].any()
    train(model, optimizer, 2)


def test_a_basis_of_the_shape_of_a_square_matrix_follows_its_rows() -> None:
    model, graph = square()
    optimizer = Factored(model.parameters())
    train(model, optimizer, 2)
    old = optimizer.state[model[2].weight]["basis"].clone()
    for p in model.parameters():
        optimizer.state[p] = {"basis": optimizer.state[p]["basis"]}
    transaction(model, [widen(model, graph, "0", 2)], graph, optimizer=optimizer)
    assert torch.equal(optimizer.state[model[2].weight]["basis"], old)
    assert optimizer.state[model[0].weight]["basis"].shape == (5, 5)


def test_a_basis_without_some_of_its_units_is_refused_or_started_anew() -> None:
    model, graph = square()
    optimizer = Factored(model.parameters())
    train(model, optimizer, 2)
    states = {p: dict(state) for p, state in optimizer.state.items()}
    move = Prune("0", (1,))
    with pytest.raises(UnsupportedError, match="'basis' in the state of Factored relates units"):
        transaction(model, [move], graph, optimizer=optimizer)
    assert {p: dict(state) for p, state in optimizer.state.items()} == states
    receipt = transaction(model, [move], graph, optimizer=optimizer, on_uncarried_state="restart")
    assert model[0].weight not in optimizer.state
    assert optimizer.state[model[4].weight] == states[model[4].weight]
    receipt.undo()
    assert {p: dict(state) for p, state in optimizer.state.items()} == states


class Lookahead:
    """Slow weights in a wrapper that is no optimizer."""

    def __init__(self, optimizer: optim.Optimizer, keyed: str = "objects") -> None:
        self.optimizer, self.count = optimizer, 0
        params = [p for group in optimizer.param_groups for p in group["params"]]
        slow = [p.detach().clone() for p in params]
        self.slow: Any = {
            "objects": dict(zip(params, slow, strict=True)),
            "ids": dict(zip(map(id, params), slow, strict=True)),
            "list": slow,
            "numbers": dict(enumerate(slow)),
            "groups": [slow],
        }[keyed]

    def zero_grad(self) -> None:
        self.optimizer.zero_grad()

    def tensors(self) -> list[Tensor]:
        slow = self.slow[0] if isinstance(self.slow, list) and len(self.slow) == 1 else self.slow
        return [*(slow.values() if isinstance(slow, dict) else slow)]

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = self.optimizer.step(closure)
        params = self.optimizer.param_groups[0]["params"]
        for p, slow in zip(params, self.tensors(), strict=True):
            slow.lerp_(p, 0.5)
            p.copy_(slow)
        return loss


@pytest.mark.parametrize("keyed", ["objects", "ids", "list", "numbers", "groups"])
def test_slow_weights_of_a_wrapper_start_at_the_new_weights(keyed: str) -> None:
    model, graph = net()
    optimizer = Lookahead(optim.Adam(model.parameters(), 0.01), keyed)
    train(model, optimizer, 3)
    old = [slow.clone() for slow in optimizer.tensors()]
    receipt = transaction(model, [widen(model, graph, "0", 2)], graph, optimizer=optimizer, probe=X)
    for p, slow, before in zip(model.parameters(), optimizer.tensors(), old, strict=True):
        corner = tuple(slice(0, size) for size in before.shape)
        assert torch.equal(slow[corner], before)
        new = torch.ones_like(slow, dtype=torch.bool)
        new[corner] = False
        assert torch.equal(slow[new], p.detach()[new])
    copied = copy.deepcopy(optimizer.optimizer.state_dict())
    receipt.undo()
    assert all(map(torch.equal, optimizer.tensors(), old))
    transaction(model, [widen(model, graph, "0", 2)], graph, optimizer=optimizer, probe=X)
    assert len(copied["state"]) == 6
    train(model, optimizer, 3)


def test_a_tensor_that_belongs_to_nobody_is_refused_by_name() -> None:
    model, graph = net()
    optimizer = Lookahead(optim.Adam(model.parameters(), 0.01))
    optimizer.extra = torch.zeros(model[2].weight.shape)
    with pytest.raises(UnsupportedError, match="'extra' in Lookahead has the former shape"):
        transaction(model, [widen(model, graph, "0", 1)], graph, optimizer=optimizer)
    optimizer.extra = torch.zeros(sum(p.numel() for p in model.parameters()))
    with pytest.raises(UnsupportedError, match="'extra' in Lookahead has an entry for each of the"):
        transaction(model, [widen(model, graph, "0", 1)], graph, optimizer=optimizer)
    optimizer.extra = torch.zeros(7, 7)
    transaction(model, [widen(model, graph, "0", 1)], graph, optimizer=optimizer)


def test_a_single_number_is_no_bias_of_a_single_unit() -> None:
    """Prodigy and D-Adaptation keep their estimate of a step size in a tensor of one entry."""
    model = nn.Sequential(nn.Linear(3, 1), nn.Tanh(), nn.Linear(1, 2)).double()
    optimizer = Lookahead(optim.Adam(model.parameters(), 0.01))
    optimizer.extra = torch.ones(1)
    graph = analyze(model, X)
    transaction(model, [widen(model, graph, "0", 2)], graph, optimizer=optimizer, probe=X)
    assert model[0].bias.shape == (3,)
    assert optimizer.extra.tolist() == [1.0]


class Moded(optim.SGD):
    """Steps in training mode only, and keeps a view of each parameter by its address."""

    training = False

    def train(self) -> None:
        self.training = True

    def step(self, closure: Any = None) -> Any:
        assert self.training
        params = self.param_groups[0]["params"]
        self.views = {p: [p.data.view(-1)] for p in params}
        self.addresses = {(p.data_ptr(), p.numel()): (p, 0) for p in params}
        return super().step(closure)


def test_an_optimizer_in_eval_mode_is_tried_in_training_mode() -> None:
    model, graph = net()
    optimizer = Moded(model.parameters(), lr=0.1, momentum=0.9)
    optimizer.train()
    train(model, optimizer, 2)
    optimizer.training = False
    transaction(model, [widen(model, graph, "0", 2)], graph, optimizer=optimizer, probe=X)
    assert optimizer.training is False
    assert model[0].weight not in optimizer.views  # a view of former memory
    optimizer.train()
    train(model, optimizer, 2)


def test_empty_entries_keep_their_keys() -> None:
    model, graph = net()
    optimizer = optim.Adam(model.parameters(), 0.01)
    assert not any(optimizer.state[p].get("exp_avg") for p in model.parameters())
    transaction(model, [widen(model, graph, "0", 2)], graph, optimizer=optimizer, probe=X)
    assert set(optimizer.state) == set(model.parameters())
    optimizer.load_state_dict(optimizer.state_dict())


def split(model: nn.Module) -> list[optim.Optimizer]:
    matrices = [p for p in model.parameters() if p.dim() == 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    return [optim.Muon(matrices, lr=0.01), optim.AdamW(vectors, lr=0.01)]


@pytest.mark.parametrize("kind", [list, tuple])
def test_several_optimizers_change_together(kind: type) -> None:
    model, graph = net()
    muon, adamw = split(model)
    layer = nn.Sequential(nn.Linear(5, 5), nn.PReLU(5, init=1.0)).double()
    nn.init.eye_(layer[0].weight)
    nn.init.zeros_(layer[0].bias)

    def step() -> float:
        for one in (muon, adamw):
            one.zero_grad()
        loss = (model(X) - Y).square().mean()
        loss.backward()
        for one in (muon, adamw):
            one.step()
        return float(loss.detach())

    before = step()
    moves = [widen(model, graph, "2", 2), Insert("2", layer)]
    receipt = transaction(model, moves, graph, optimizer=kind([muon, adamw]), probe=X)
    held = [*muon.param_groups[0]["params"], *adamw.param_groups[0]["params"]]
    assert {*held} == {*model.parameters()}
    assert len(held) == len({*held}) == 9
    assert all(p.dim() == 2 for p in muon.param_groups[0]["params"])
    assert muon.state[model[2][2].weight]["momentum_buffer"].shape == (6, 5)
    start = [p.detach().clone() for p in model.parameters()]
    assert max(step() for _ in range(3)) < 2 * before
    assert all((p != q).any() for p, q in zip(model.parameters(), start, strict=True))
    with pytest.raises(Exception, match="trained since"):
        receipt.undo()


class Chain(optim.Optimizer):
    """Two optimizers whose groups are shared by a third."""

    def __init__(self, first: optim.Optimizer, second: optim.Optimizer) -> None:
        self.first, self.second = first, second
        super().__init__([*first.param_groups, *second.param_groups], {})

    def step(self, closure: Any = None) -> Any:
        with torch.enable_grad():
            loss = closure()
        self.first.step()
        self.second.step()
        return loss


def test_chained_optimizers_share_groups_and_keep_their_own_state() -> None:
    model, graph = net()
    chain = Chain(*split(model))
    train(model, chain, 2)
    old = chain.first.state[model[2].weight]["momentum_buffer"].clone()
    transaction(model, [widen(model, graph, "0", 2)], graph, optimizer=chain, probe=X)
    assert torch.equal(chain.first.state[model[2].weight]["momentum_buffer"][:, :5], old)
    for one in (chain, chain.first, chain.second):
        one.state_dict()
    train(model, chain, 2)


class Broken(optim.SGD):
    """A step that remembers sizes where nobody can see them."""

    def step(self, closure: Any = None) -> Any:
        sizes = [p.numel() for p in self.param_groups[0]["params"]]
        held = vars(self).setdefault("check", lambda: tuple(sizes))
        if held() != tuple(sizes):
            raise RuntimeError("other sizes than before")
        return super().step(closure)


def test_a_step_that_would_fail_after_the_change_is_found_in_a_dry_one() -> None:
    model, graph = net()
    optimizer = Broken(model.parameters(), lr=0.1)
    train(model, optimizer, 2)
    with pytest.raises(
        UnsupportedError, match="Broken can't train the changed model: RuntimeError"
    ):
        transaction(model, [widen(model, graph, "0", 2)], graph, optimizer=optimizer, probe=X)
    assert model[0].out_features == 5
    train(model, optimizer, 1)


def test_the_next_step_of_old_entries_under_adam_is_as_long_as_it_would_have_been() -> None:
    model, graph = net()
    optimizer = optim.Adam(model.parameters(), lr=1e-3)
    train(model, optimizer, 300)
    twin, state = copy.deepcopy(model), copy.deepcopy(optimizer.state_dict())
    other = optim.Adam(twin.parameters(), lr=1e-3)
    other.load_state_dict(state)
    start = [p.detach().clone() for p in twin.parameters()]
    transaction(model, [widen(model, graph, "0", 2)], graph, optimizer=optimizer, probe=X)
    train(model, optimizer, 1)
    train(twin, other, 1)
    for p, q, was in zip(model.parameters(), twin.parameters(), start, strict=True):
        now = p[tuple(slice(0, size) for size in q.shape)] - was
        assert (now - (q - was)).norm() < 0.05 * (q - was).norm()
