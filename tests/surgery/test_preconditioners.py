"""Optimizers that keep views of parameters, packed factors, and start with no gradient of zero."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from surgery_cases import X64 as X
from surgery_cases import evaluate, net, train, widen
from torch import Tensor, nn, optim

import senn
from senn.errors import UnsupportedError
from senn.surgery import Insert, Prune, transaction
from senn.surgery.state_check import check_state_follows


class Whitening(optim.Optimizer):
    """A triangular factor of the rows in one line, at the gradient's scale, kept by number of a view of the parameter.

    So does heavyball: views are made without detaching them, a gradient of zero is refused at first, and counts change
    their shape after the first step.
    """

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": 0.01})
        self.views: dict[nn.Parameter, list[Tensor]] = {}

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = evaluate(closure)
        for p in self.param_groups[0]["params"]:
            (view,) = self.views[p] = [p.reshape(len(p), -1)]
            gradient = p.grad.reshape(view.shape)
            state = self.state[p].setdefault(0, {})
            rows, columns = torch.triu_indices(len(p), len(p))
            if not state:
                scale = gradient.square().mean() ** -0.25
                if not torch.isfinite(scale):
                    raise ValueError("the gradient is zero")
                state["size"] = [1, len(p)]
                state["factor"] = (scale * torch.eye(len(p)).to(p))[None, rows, columns]
                state["average"] = torch.zeros_like(view)[None]
                state["steps"] = torch.zeros(())
            state["steps"] = (state["steps"] + 1).reshape(1)
            factor = p.new_zeros(len(p), len(p))
            factor[rows, columns] = state["factor"][0]
            state["average"].lerp_(gradient[None], 0.1)
            factor += 0.01 * (factor @ gradient @ gradient.T).triu()
            state["factor"] = factor[None, rows, columns]
            assert state["size"] == [1, len(p)]
            view -= 0.001 * factor.T @ factor @ state["average"][0]
        return loss

    def tensors(self, p: nn.Parameter) -> Iterator[Tensor]:
        return (one for one in self.state[p][0].values() if isinstance(one, Tensor))


def square(line: Tensor, size: int) -> Tensor:
    matrix = line.new_zeros(size, size)
    matrix[tuple(torch.triu_indices(size, size))] = line[0]
    return matrix


def test_a_packed_factor_grows_by_a_diagonal_block_of_its_scale() -> None:
    model, graph = net()
    optimizer = Whitening(model.parameters())
    train(model, optimizer, 3)
    weight = model[0].weight
    old = copy.deepcopy(optimizer.state[weight][0])
    kept = optimizer.views[model[4].bias]
    receipt = transaction(model, [widen(model, graph, "0", 2)], graph, optimizer=optimizer, probe=X)
    new = optimizer.state[weight][0]
    before, after = square(old["factor"], 5), square(new["factor"], 7)
    assert torch.equal(after[:5, :5], before)
    assert not after[:5, 5:].any()
    added = after[5:, 5:]
    assert torch.equal(added, torch.diag(added.diagonal()))
    # the scale of the old block, not that of the gradients that a trial makes up
    torch.testing.assert_close(added.diagonal(), (before.norm() / 5**0.5).expand(2))
    assert torch.equal(new["average"][:, :5], old["average"])
    assert not new["average"][:, 5:].any()
    assert new["size"] == [1, 7]
    assert torch.equal(new["steps"], old["steps"])
    # a view of former memory is forgotten, and one of a parameter that stays isn't
    assert weight not in optimizer.views
    assert optimizer.views[model[4].bias] is kept
    receipt.undo()
    assert all(
        map(
            torch.equal, optimizer.tensors(weight), (old[k] for k in ("factor", "average", "steps"))
        )
    )
    transaction(model, [widen(model, graph, "0", 2)], graph, optimizer=optimizer, probe=X)
    start = weight.detach().clone()
    train(model, optimizer, 30)
    assert (weight != start).all()
    assert optimizer.views[weight][0].data_ptr() == weight.data_ptr()


def test_it_starts_a_new_layer_whose_first_gradient_is_zero() -> None:
    model, graph = net()
    optimizer = Whitening(model.parameters())
    train(model, optimizer, 3)
    layer = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 5)).double()
    for p in layer[2].parameters():
        nn.init.zeros_(p)

    class Added(nn.Module):
        """Adds nothing at first."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = layer

        def forward(self, x: Tensor) -> Tensor:
            return x + self.inner(x)

    transaction(model, [Insert("2", Added())], graph, optimizer=optimizer, probe=X)
    first = model[2][0].inner[0].weight
    state = optimizer.state[first][0]
    # nothing of the gradients that the trial has made up but their scale
    assert not state["average"].any()
    assert square(state["factor"], 4).diagonal().all()
    train(model, optimizer, 3)
    assert optimizer.state[first][0]["steps"] == 4


def test_a_packed_factor_loses_no_units_but_is_started_anew() -> None:
    model, graph = net()
    optimizer = Whitening(model.parameters())
    train(model, optimizer, 2)
    with pytest.raises(
        UnsupportedError, match=r"'0\.factor' in the state of Whitening relates units"
    ):
        transaction(model, [Prune("0", (1,))], graph, optimizer=optimizer)
    transaction(model, [Prune("0", (1,))], graph, optimizer=optimizer, on_uncarried_state="restart")
    assert model[0].weight not in optimizer.state
    train(model, optimizer, 2)
    optimizer.load_state_dict(optimizer.state_dict())


class Masked(optim.Optimizer):
    """Averages of the entries that a mask chooses, which the constructor makes."""

    def __init__(self, params: Any, share: float) -> None:
        super().__init__(params, {"lr": 0.01})
        for p in self.param_groups[0]["params"]:
            self.state[p]["mask"] = torch.arange(p.numel()).view_as(p) < share * p.numel()

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = evaluate(closure)
        for p in self.param_groups[0]["params"]:
            state = self.state[p]
            mine = p.grad[state["mask"]]
            state["average"] = state.get("average", torch.zeros_like(mine)) + mine
            p[state["mask"]] -= 0.01 * state["average"]
        return loss


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("restart", [False, True])
def test_state_of_the_constructor_is_refused_before_the_first_step(
    share: float, restart: bool
) -> None:
    model, _ = net()
    optimizer = Masked(model.parameters(), share)
    with pytest.raises(UnsupportedError, match="Masked"):
        senn.Grower(
            model,
            optimizer,
            nn.functional.mse_loss,
            on_uncarried_state="restart" if restart else "refuse",
        )
    assert all({*state} == {"mask"} for state in optimizer.state.values())


class Cached(optim.SGD):
    """Keeps something of each parameter that it makes anew where it is missing."""

    state_made_anew = ("cache",)

    def __init__(self, params: Any) -> None:
        super().__init__(params, lr=0.01)
        self.cache: dict[str, dict[nn.Parameter, Tensor]] = {"inverses": {}}

    def step(self, closure: Any = None) -> Any:
        loss = evaluate(closure)
        for p in self.param_groups[0]["params"]:
            inverse = self.cache["inverses"].setdefault(p, torch.eye(p.numel()).to(p))
            p.grad = (inverse @ p.grad.flatten()).view_as(p)
        super().step()
        return loss


def test_what_an_optimizer_makes_anew_is_dropped_where_its_parameter_has_changed() -> None:
    model, graph = net()
    optimizer = Cached(model.parameters())
    train(model, optimizer, 2)
    assert check_state_follows(optimizer, model) is None
    held = dict(optimizer.cache["inverses"])
    receipt = transaction(model, [widen(model, graph, "0", 2)], graph, optimizer=optimizer, probe=X)
    changed = {model[0].weight, model[0].bias, model[2].weight}
    assert optimizer.cache["inverses"].keys() == held.keys() - changed
    receipt.undo()
    assert optimizer.cache["inverses"] == held
    transaction(model, [widen(model, graph, "0", 2)], graph, optimizer=optimizer, probe=X)
    train(model, optimizer, 2)


def test_without_the_attribute_the_same_is_refused() -> None:
    model, graph = net()
    optimizer = Cached(model.parameters())
    train(model, optimizer, 2)
    optimizer.__class__ = type("Uncached", (Cached,), {"state_made_anew": ()})
    with pytest.raises(UnsupportedError, match=r"'cache\.inverses' in Uncached for '0\.weight'"):
        transaction(model, [widen(model, graph, "0", 2)], graph, optimizer=optimizer)


class Needy(optim.SGD):
    """Runs the model by itself, on data that it keeps."""

    step_takes_data = True

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model.parameters(), lr=0.01, momentum=0.9)
        self.calls: list[torch.Size] = []

    def step(self, x: Tensor, y: Tensor) -> None:  # type: ignore[override]
        self.calls.append(x.shape)
        super().step()


def test_an_optimizer_that_takes_data_is_never_tried_and_its_new_entries_start_with_zeros() -> None:
    model, graph = net()
    optimizer = Needy(model)
    for _ in range(2):
        model(X).square().mean().backward()
        optimizer.step(X, X)
    assert check_state_follows(optimizer, model) is None
    old = optimizer.state[model[2].weight]["momentum_buffer"].clone()
    transaction(model, [widen(model, graph, "0", 2)], graph, optimizer=optimizer, probe=X)
    new = optimizer.state[model[2].weight]["momentum_buffer"]
    assert torch.equal(new[:, :5], old)
    assert not new[:, 5:].any()
    assert len(optimizer.calls) == 2


class Split(optim.SGD):
    """Steps of matrices in one group and of vectors in another, as optimizers with Muon inside have them."""

    def __init__(self, model: nn.Module) -> None:
        params = [*model.parameters()]
        groups = [
            {"params": [p for p in params if p.dim() == 2], "use_muon": True},
            {"params": [p for p in params if p.dim() < 2], "use_muon": False},
        ]
        super().__init__(groups, lr=0.01)

    def step(self, closure: Any = None) -> Any:
        assert all(p.dim() == 2 for p in self.param_groups[0]["params"])
        return super().step(closure)


def test_vectors_of_a_new_layer_join_the_group_of_vectors_where_groups_have_switches() -> None:
    model, graph = net()
    optimizer = Split(model)
    train(model, optimizer, 1)
    layer = nn.Sequential(nn.Linear(5, 5), nn.PReLU(5, init=1.0)).double()
    nn.init.eye_(layer[0].weight)
    nn.init.zeros_(layer[0].bias)
    transaction(model, [Insert("2", layer)], graph, optimizer=optimizer, probe=X)
    train(model, optimizer, 1)
    matrices, vectors = (group["params"] for group in optimizer.param_groups)
    expected = [*model.parameters()]
    assert all(map(lambda p, q: p is q, matrices, [p for p in expected if p.dim() == 2]))
    assert {*vectors} == {p for p in expected if p.dim() < 2}
    assert len(vectors) == 5


class Delayed(optim.Optimizer):
    """ADOPT: divides by the average of the squares of former gradients, and adds the present one after."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": 0.01})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = evaluate(closure)
        for p in self.param_groups[0]["params"]:
            state = self.state[p]
            if not state:
                state |= {"m": torch.zeros_like(p), "v": p.grad.square()}
                continue
            state["m"].lerp_(p.grad / state["v"].sqrt().clamp(min=1e-8), 0.1)
            p.sub_(state["m"], alpha=self.param_groups[0]["lr"])
            state["v"].lerp_(p.grad.square(), 0.1)
        return loss


def test_new_entries_are_not_divided_by_an_average_of_zero() -> None:
    model, graph = net()
    optimizer = Delayed(model.parameters())
    train(model, optimizer, 10)
    v = optimizer.state[model[0].weight]["v"].clone()
    transaction(model, [widen(model, graph, "0", 2)], graph, optimizer=optimizer, probe=X)
    grown = optimizer.state[model[0].weight]["v"]
    assert torch.equal(grown[:-2], v)
    torch.testing.assert_close(grown[-2:], v.mean(0).expand(2, -1))
    born = [one.detach().clone() for one in model.parameters()]
    train(model, optimizer, 3)
    # divided by zero they would have gone a million times as far
    for one, former in zip(model.parameters(), born, strict=True):
        assert (one.detach() - former).abs().max() < 1


def test_a_new_layer_is_not_divided_by_an_average_of_zero() -> None:
    model, graph = net()
    optimizer = Delayed(model.parameters())
    train(model, optimizer, 8)
    layer = nn.Linear(5, 5).double()
    with torch.no_grad():
        layer.weight.copy_(torch.eye(5))
        layer.bias.zero_()
    transaction(model, [Insert("2", layer)], graph, optimizer=optimizer, probe=X)
    new = model[2][0].weight
    old = optimizer.state[model[2][1].weight]["v"]
    assert optimizer.state[new]["v"].unique().tolist() == pytest.approx([old.mean().item()])
    for step in range(12):
        for p in model.parameters():
            p.grad = torch.full_like(p, 1e-3) * (p is not new or step > 0)
        optimizer.step()
    # divided by zero it would have gone a million times as far
    assert (new.detach() - torch.eye(5)).abs().max() < 5
