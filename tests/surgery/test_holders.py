"""What else in a loop holds parameters: averages, gradient hooks, optimizers that step in the backward pass."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from surgery_cases import X, case, everything, identity_layer, silent, widen
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from senn.errors import SennError, SurgeryError
from senn.nn import Residual
from senn.surgery import Insert, transaction


class Wrapper(nn.Module):
    """An average around its own copy, which may hold the model too, and goes by the names that it saw first."""

    def __init__(self, model: nn.Module, with_model: bool = False) -> None:
        super().__init__()
        self.online = model if with_model else [model]
        self.ema_model = copy.deepcopy(model).requires_grad_(False)
        self.parameter_names = {name for name, _ in model.named_parameters()}
        self.buffer_names = [name for name, one in model.named_buffers() if one.is_floating_point()]
        self.left_out = ("6.bias",)
        self.register_buffer("step", torch.tensor(0))


WRAPPED: dict[str, Callable[[nn.Module], tuple[Any, nn.Module]]] = {
    "AveragedModel": lambda model: ((one := AveragedModel(model)), one.module),
    "a copy": lambda model: ((one := copy.deepcopy(model)), one),
    "a wrapper": lambda model: ((one := Wrapper(model)), one.ema_model),
    "with the model": lambda model: ((one := Wrapper(model, True)), one.ema_model),
    "twice wrapped": lambda model: (
        (one := nn.ModuleDict({"average": Wrapper(model)})),
        one["average"].ema_model,
    ),
    "no module": lambda model: (
        (one := SimpleNamespace(ema=copy.deepcopy(model), decay=0.9)),
        one.ema,
    ),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_the_copy_in_an_average_is_found_and_grows_along(name: str) -> None:
    model, graph = case("batch norm")
    average, inside = WRAPPED[name](model)
    held = everything(inside)
    moves = [widen(model, graph, "0", 2), Insert("6", *identity_layer(4))]
    receipt = transaction(model, moves, graph, averaged=[average], probe=X)
    assert [p.shape for p in inside.parameters()] == [p.shape for p in model.parameters()]
    if isinstance(average, Wrapper):
        assert average.parameter_names == {name for name, _ in model.named_parameters()}
        assert average.buffer_names == [
            name for name, one in model.named_buffers() if one.is_floating_point()
        ]
        assert average.left_out == ("6.2.bias",)
    receipt.undo()
    assert everything(inside) == held
    if isinstance(average, Wrapper):
        assert average.left_out == ("6.bias",)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda model: SimpleNamespace(shadow=[*model.parameters()]),
            "the SimpleNamespace in averaged holds no copy",
        ),
        (lambda model: nn.Linear(3, 5), "the Linear in averaged holds no copy of the model"),
        (
            lambda model: nn.ModuleDict(
                {"fast": copy.deepcopy(model), "slow": copy.deepcopy(model)}
            ),
            r"several copies of the model \('fast', 'slow'\)",
        ),
    ],
)
def test_an_average_without_a_copy_is_refused(make: Any, message: str) -> None:
    model, graph = case("mlp")
    held = everything(model)
    with pytest.raises(SennError, match=message):
        transaction(model, [widen(model, graph, "0", 1)], graph, averaged=[make(model)])
    assert everything(model) == held


# -- hooks


def masked(mask: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda gradient: gradient * mask


def in_place(mask: Tensor) -> Callable[[Tensor], None]:
    def hook(gradient: Tensor) -> None:
        gradient[mask] = 0

    return hook


HOOKS: dict[str, Callable[[nn.Parameter], Callable[[Tensor], Any]]] = {
    "mask": lambda weight: masked(torch.ones_like(weight)),
    "mask of rows": lambda weight: masked(torch.ones(len(weight), 1)),
    "in place": lambda weight: in_place(torch.ones_like(weight, dtype=torch.bool)),
    "buffer": lambda weight: torch.zeros_like(weight).add_,
    "wrong shape": lambda weight: lambda gradient: gradient[:1],
}


@pytest.mark.parametrize("name", HOOKS)
def test_a_gradient_hook_that_fails_on_the_new_shape_is_refused_by_name(name: str) -> None:
    model, graph = case("mlp")
    model[2].weight.register_hook(HOOKS[name](model[2].weight))
    held = everything(model)
    with pytest.raises(
        SurgeryError, match=r"gradient hook of '2.weight' doesn't fit its new shape \(5, 6\)"
    ):
        transaction(
            model, [widen(model, graph, "0", 1), widen(model, graph, "2", 1)], graph, probe=X
        )
    assert everything(model) == held


def test_gradient_hooks_that_follow_the_shape_go_on_in_their_order() -> None:
    model, graph = case("mlp")
    weight, frozen = model[2].weight, 2
    weight.register_hook(lambda gradient: gradient.clone().index_fill_(0, torch.arange(frozen), 0))
    weight.register_hook(lambda gradient: gradient + weight.detach())
    transaction(model, [widen(model, graph, "0", 2)], graph, probe=X)
    model(X).sum().backward()
    assert torch.equal(weight.grad[:frozen], weight.detach()[:frozen])


# -- an optimizer for each parameter, which steps in the backward pass


def step_in_backward(model: nn.Module, make: Callable[[list[nn.Parameter]], Any]) -> dict[Any, Any]:
    optimizers = {p: make([p]) for p in model.parameters()}

    def step(parameter: nn.Parameter) -> None:
        optimizers[parameter].step()
        optimizers[parameter].zero_grad()

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(step)
    return optimizers


def test_optimizers_without_state_go_on_stepping_in_the_backward_pass() -> None:
    model, graph = case("mlp")
    step_in_backward(model, lambda p: torch.optim.SGD(p, 0.1))
    model(X).square().sum().backward()
    # one whose construction has failed, and which is still around, hinders nothing
    unfinished = torch.optim.Adam.__new__(torch.optim.Adam)
    assert not hasattr(unfinished, "state")
    transaction(model, [widen(model, graph, "0", 2)], graph, probe=X)
    before = model[0].weight.detach().clone()
    model(X).square().sum().backward()
    assert not torch.equal(model[0].weight, before)


def test_optimizers_with_state_that_step_in_the_backward_pass_are_asked_for() -> None:
    model, graph = case("mlp")
    step_in_backward(model, lambda p: torch.optim.Adam(p, 0.01))
    model(X).square().sum().backward()
    held = everything(model)
    with pytest.raises(
        SurgeryError, match=r"'0.weight' has a post-accumulate hook.*given \(Adam\)"
    ):
        transaction(model, [widen(model, graph, "0", 2)], graph, probe=X)
    assert everything(model) == held
    with pytest.warns(UserWarning, match="inserted before '4' has no post-accumulate hook"):
        transaction(model, [Insert("4", Residual(silent(4)))], graph, probe=X)
