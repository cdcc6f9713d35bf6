"""All or nothing: rollback at any stage, undo, refusals by name, nothing left behind."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from surgery_cases import X, case, everything, identity_layer, mlp, widen
from torch import Tensor, nn

from senn.errors import SennError, SurgeryError, UnsupportedError
from senn.graph import ChannelGroup, DependencyGraph, InsertionPoint, LinearMap, analyze
from senn.nn import Residual
from senn.surgery import Insert, Prune, Widen, apply_moves, transaction


def test_undo_restores_everything_in_reverse_order() -> None:
    model, _ = case("batch norm")
    model[1].eval()
    optimizer = torch.optim.Adam(model.named_parameters())
    model(X).sum().backward()
    optimizer.step()
    states, receipts = [], []
    for _ in range(3):
        now = analyze(model, X)
        states.append(everything(model, optimizer))
        moves = [
            widen(model, now, "0", 1),
            Prune("3", (0,)) if len(states) < 3 else Insert("6", *identity_layer(2)),
        ]
        receipts.append(transaction(model, moves, now, optimizer=optimizer, probe=X))
    with pytest.raises(SurgeryError, match="changed again since"):
        receipts[0].undo()
    while receipts:
        receipt = receipts.pop()
        receipt.undo()
        assert everything(model, optimizer) == states.pop()
        with pytest.raises(SurgeryError, match="has been undone already"):
            receipt.undo()


@pytest.mark.parametrize("edit", ["data", "buffer"])
def test_undo_sees_changes_that_no_optimizer_made(edit: str) -> None:
    model, graph = case("batch norm")
    receipt = transaction(model, [widen(model, graph, "0", 1)], graph, probe=X)
    if edit == "data":
        model[6].weight.data[0, 0] += 1e-6
    else:
        model(X)  # in train mode: running statistics move
    with pytest.raises(SurgeryError, match="trained since"):
        receipt.undo()


def nan(values: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**values, "0.bias": values["0.bias"] * float("nan")}


BAD: dict[str, tuple[Callable[[Widen], Any], str]] = {
    "nan": (lambda w: Widen("0", 2, nan(dict(w.values))), "new entries of '0.bias' are not finite"),
    "shape": (
        lambda w: Widen("0", 3, w.values),
        r"new entries of '0.weight' must have shape \(3, 3\), not \(2, 3\)",
    ),
    "missing": (
        lambda w: Widen("0", 2, {"0.weight": w.values["0.weight"]}),
        "need values for '0.bias'",
    ),
    "unknown": (
        lambda w: Widen("0", 2, {**w.values, "3.weight": torch.ones(1)}),
        "'3.weight', which takes none",
    ),
    "no units": (lambda w: Widen("0", 0, w.values), "widens by multiples of 1, not by 0"),
    "space": (
        lambda w: Widen("9", 2, w.values),
        "there is no channel group '9' to resize; groups: '0', '3'",
    ),
    "unit": (lambda w: Prune("0", (5,)), "'0' has no unit 5"),
    "twice": (lambda w: Prune("0", (1, 1)), "'0' has no unit 1 to prune"),
    "all": (lambda w: Prune("0", (0, 1, 2, 3, 4)), "'0' loses between 1 and 4 units"),
    "coefficients": (
        lambda w: Prune("0", (0,), {"3": torch.ones(1, 4)}),
        r"shape \(1, 5\), not \(1, 4\)",
    ),
    "consumer": (
        lambda w: Prune("0", (0,), {"6": torch.ones(1, 5)}),
        "'6', which is no consumer of '0'",
    ),
    "site": (lambda w: Insert("1", nn.Identity()), "there is no insertion point '1' for a layer"),
    "right": (
        lambda w: Insert("3", nn.Identity(), torch.eye(4)),
        r"folded into '3' must have shape \(5, 5\)",
    ),
    "empty": (lambda w: Insert("3", nn.Sequential()), "the layer to insert before '3' is empty"),
    "wide": (lambda w: Insert("3", nn.Linear(4, 4)), "'3' was rolled back: RuntimeError"),
    "wrong": (lambda w: Insert("3", nn.Tanh()), "'3' was rolled back: it changed the outputs"),
    "infinite": (
        lambda w: Widen("0", 2, {**w.values, "0.weight": w.values["0.weight"] * 3e38}),
        "not finite",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_moves_leave_everything_as_it_was(name: str) -> None:
    model, graph = case("batch norm")
    optimizer = torch.optim.Adam(model.named_parameters())
    averaged = torch.optim.swa_utils.AveragedModel(model)
    model(X).sum().backward()
    optimizer.step()
    move, message = BAD[name]
    good = widen(model, graph, "3", 1)
    held = everything(model, optimizer) + everything(averaged)
    with pytest.raises(SennError, match=message):
        transaction(
            model,
            [good, move(widen(model, graph, "0", 2))],
            graph,
            optimizer=optimizer,
            averaged=[averaged],
            probe=X,
        )
    assert everything(model, optimizer) + everything(averaged) == held


@pytest.mark.parametrize(
    ("stage", "error"),
    [
        *((stage, RuntimeError) for stage in range(6)),
        *((stage, KeyboardInterrupt) for stage in range(8)),
    ],
)
def test_a_failure_at_any_stage_rolls_back_whole(stage: int, error: type[BaseException]) -> None:
    """The n-th event (forward passes of model and average, two losses, the optimizer's blank step) fails."""
    model, graph = case("batch norm")
    events: list[str] = []

    def event(name: str) -> None:
        events.append(name)
        if len(events) == stage + 1:
            raise error(name)

    class Watched(torch.optim.Adam):
        def step(self, closure: Any = None) -> Any:
            # An optimizer's own error in a trial says that the trial can't be made, and is no failure.
            if model[0].out_features == 7 and error is KeyboardInterrupt:
                event("optimizer")
            return super().step(closure)

    optimizer = Watched(model.parameters())
    model(X).sum().backward()
    optimizer.step()
    averaged = torch.optim.swa_utils.AveragedModel(model)
    for name, one in (("model", model), ("average", averaged.module)):
        # Not in copies, to which hooks go along: on these a change is tried before it begins.
        one[6].register_forward_hook(
            lambda layer, *_, name=name, own=one[6]: event(name) if layer is own else None
        )

    def loss() -> float:
        event("loss")
        return 0.0

    moves = [widen(model, graph, "0", 2), Insert("6", *identity_layer(4))]
    held = everything(model, optimizer) + everything(averaged)
    state = torch.get_rng_state()
    with pytest.raises(SennError if error is RuntimeError else error):
        transaction(
            model, moves, graph, optimizer=optimizer, averaged=[averaged], probe=X, loss=loss
        )
    assert len(events) == stage + 1
    assert everything(model, optimizer) + everything(averaged) == held
    assert torch.equal(torch.get_rng_state(), state)


def test_a_function_that_depends_on_the_width_is_rolled_back() -> None:
    class Sly(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.sly = nn.Linear(3, 4), nn.Linear(4, 2), False

        def forward(self, x: Tensor) -> Tensor:
            h = self.a(x).relu()
            return self.b(h) / (h.shape[1] if self.sly else 4)

    model = Sly()
    graph = analyze(model, X)
    model.sly = True
    held = everything(model)
    with pytest.raises(
        SurgeryError,
        match=r"the change of 'a' was rolled back: it changed the outputs by 0\.\d+ of their",
    ):
        transaction(model, [widen(model, graph, "a", 1)], graph, probe=X)
    assert everything(model) == held
    transaction(model, [widen(model, graph, "a", 1)], graph, probe=X, tolerance=0.5)


def test_an_inserted_layer_must_be_run_by_the_forward_pass() -> None:
    class Listed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)
            self.plain = [self.a, self.b]

        def forward(self, x: Tensor) -> Tensor:
            return self.plain[1](self.plain[0](x).relu())

    model = Listed()
    held = everything(model)
    with pytest.raises(
        SurgeryError, match="the forward pass doesn't run the layer inserted before 'b'"
    ):
        transaction(
            model,
            [Insert("b", Residual(nn.Sequential(nn.Linear(4, 4))))],
            analyze(model, X),
            probe=X,
        )
    assert everything(model) == held


def test_insertion_points_that_cannot_take_a_layer_are_refused_by_name() -> None:
    alone = nn.Linear(3, 2)
    with pytest.raises(UnsupportedError, match="before '': it is the model itself"):
        apply_moves(
            alone,
            [Insert("", nn.Identity())],
            DependencyGraph(
                linear_maps=(LinearMap(name="", weight="weight", bias="bias"),),
                groups=(),
                insertion_points=(InsertionPoint(module="", features=3, activation="ReLU"),),
            ),
        )
    model, graph = case("mlp")
    model.extra = model[2]
    with pytest.raises(UnsupportedError, match="before '2': it is held under 2 names"):
        apply_moves(model, [Insert("2", nn.Identity())], graph)
    model, graph = case("mlp")
    both = [widen(model, graph, "0", 1), Insert("2", nn.Identity())]
    with pytest.raises(SennError, match="a layer before '2' and a change of its inputs"):
        apply_moves(model, both, graph)
    with pytest.raises(SennError, match="two layers before '2'"):
        apply_moves(model, [Insert("2", nn.Identity()), Insert("2", nn.Identity())], graph)
    model, graph = case("no bias")
    with pytest.raises(
        SennError, match="'2' has no bias that could take the inserted layer's shift"
    ):
        apply_moves(model, [Insert("2", nn.Identity(), None, torch.ones(4))], graph)
    with pytest.raises(SennError, match="'2' has no bias, so the last column"):
        apply_moves(model, [Prune("0", (0,), {"2": torch.ones(1, 4)})], graph)


def test_quanta_and_copies_of_another_shape_are_refused() -> None:
    model, graph = case("mlp")
    old = graph.group("0")
    pairs = DependencyGraph(
        linear_maps=graph.linear_maps,
        groups=(
            ChannelGroup(
                name="0", width=5, dims=old.dims, attributes=old.attributes, granularity=2
            ),
        ),
        insertion_points=graph.insertion_points,
    )
    with pytest.raises(SennError, match="'0' widens by multiples of 2, not by 1"):
        apply_moves(model, [widen(model, pairs, "0", 1)], pairs)
    with pytest.raises(SennError, match="in multiples of 2, not 1"):
        apply_moves(model, [Prune("0", (0,))], pairs)
    other, _ = case("mlp")
    apply_moves(other, [widen(other, graph, "0", 1)], graph)
    held = everything(model)
    with pytest.raises(
        SennError,
        match=r"'0.weight' has shape \(6, 3\) in one copy of the model, \(5, 3\) in another",
    ):
        transaction(model, [widen(model, graph, "0", 1)], graph, averaged=[other])
    assert everything(model) == held
    with pytest.raises(
        SennError,
        match=r"'4.weight' has shape \(2, 4\), which doesn't fit the graph|no unit|has shape",
    ):
        apply_moves(mlp([3, 4, 2]), [widen(model, graph, "0", 1)], graph)


def test_looking_leaves_modes_and_random_state_alone() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.ReLU(), nn.Linear(4, 2))
    model[1].eval()
    graph = analyze(model, X)
    moves = [widen(model, graph, "0", 2), Insert("0", *identity_layer(3))]
    state = torch.get_rng_state()
    transaction(model, moves, graph, probe=X)
    assert torch.equal(torch.get_rng_state(), state)
    assert [m.training for m in model] == [True, False, True, True]
    assert model[0][0].training


def test_many_growths_leave_nothing_behind() -> None:
    model, graph = case("mlp")
    optimizer = torch.optim.Adam(model.parameters())
    model(X).sum().backward()
    optimizer.step()

    def live() -> int:
        gc.collect()
        return sum(type(found) in (Tensor, nn.Parameter) for found in gc.get_objects())

    counts = []
    for round_ in range(12):
        move = widen(model, graph, "0", 1)
        transaction(model, [move], graph, optimizer=optimizer, probe=X)
        graph = analyze(model, X)
        if round_ in (5, 11):
            counts.append(live())
    assert counts[0] == counts[1]
    assert model[0].out_features == 17
