"""Moves on models: exact entries, unchanged functions, and everything that hangs on a parameter."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from surgery_cases import CASES, X, case, everything, identity_layer, silent, widen
from torch import nn

from senn.errors import SennError, SurgeryError
from senn.graph import analyze
from senn.nn import Residual
from senn.surgery import (
    Insert,
    Prune,
    Widen,
    apply_moves,
    calibrate_batch_norm,
    new_parameters,
    parameters_per_unit,
    transaction,
)

# -- width


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", CASES)
def test_widening_keeps_the_function_and_the_graph(name: str, dtype: torch.dtype) -> None:
    model, graph = case(name, dtype)
    moves = [widen(model, graph, group.name, n + 1, seed=n) for n, group in enumerate(graph.groups)]
    expected = [parameters_per_unit(model, graph.groups[0]), new_parameters(model, graph, moves[0])]
    size = sum(p.numel() for p in model.parameters())
    receipt = transaction(model, moves, graph, probe=X.to(dtype))
    assert receipt.output_change is not None
    assert (
        receipt.output_change
        <= {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 1e-2}[dtype]
    )
    assert {p.dtype for p in model.parameters()} == {dtype}
    after = analyze(model, X.to(dtype))
    assert [group.width for group in after.groups] == [
        s.width + n + 1 for n, s in enumerate(graph.groups)
    ]
    if len(moves) == 1:
        assert expected == [sum(p.numel() for p in model.parameters()) - size] * 2
    for module in model.modules():
        if isinstance(module, nn.Linear):
            assert (module.out_features, module.in_features) == module.weight.shape
        if isinstance(module, nn.BatchNorm1d | nn.PReLU):
            assert len(module.weight) == getattr(
                module, "num_features", getattr(module, "num_parameters", None)
            )


@pytest.mark.parametrize("name", CASES)
def test_pruning_what_was_widened_gives_the_same_bits(name: str) -> None:
    model, graph = case(name)
    before = copy.deepcopy(model)
    for group in graph.groups:
        apply_moves(model, [widen(model, graph, group.name, 2)], graph)
        wide = analyze(model, X)
        apply_moves(model, [Prune(group.name, (group.width, group.width + 1))], wide)
    assert list(model.state_dict()) == list(before.state_dict())
    assert all(
        torch.equal(a, b)
        for a, b in zip(model.state_dict().values(), before.state_dict().values(), strict=True)
    )
    assert str(model) == str(before)


def test_new_columns_of_a_concat_stand_in_the_middle() -> None:
    model, graph = case("concat")
    old = model.fc.weight.data
    apply_moves(model, [widen(model, graph, "a", 2), widen(model, graph, "b", 1)], graph)
    assert torch.equal(model.fc.weight[:, [0, 1, 2, 3, 6, 7, 8, 9, 10]], old)
    assert not model.fc.weight[:, [4, 5, 11]].any()
    assert model.fc.in_features == 12


@pytest.mark.parametrize(
    ("name", "new"), [("unit-major", [12, 13, 14]), ("interleaved", [4, 9, 14])]
)
def test_new_columns_follow_the_flattened_layout(name: str, new: list[int]) -> None:
    model, graph = case(name)
    old = model.fc.weight.data
    apply_moves(model, [widen(model, graph, "token", 1)], graph)
    rest = [column for column in range(15) if column not in new]
    assert torch.equal(model.fc.weight[:, rest], old)
    assert not model.fc.weight[:, new].any()


def test_moves_of_one_call_are_written_against_the_model_before_it() -> None:
    model, graph = case("mlp")
    first, second, third = (model.get_submodule(name).weight.detach() for name in "024")
    moves = [
        widen(model, graph, "0", 2, seed=1),
        Prune("0", (1,)),
        widen(model, graph, "2", 1, seed=2),
        widen(model, graph, "0", 1, seed=3),
    ]
    apply_moves(model, moves, graph)
    a, b, c = (moves[k].values for k in (0, 2, 3))
    assert torch.equal(
        model[0].weight, torch.cat([first[[0, 2, 3, 4]], a["0.weight"], c["0.weight"]])
    )
    rows = torch.cat([second, b["2.weight"]])[:, [0, 2, 3, 4]]
    assert torch.equal(model[2].weight, torch.cat([rows, torch.zeros(5, 3)], 1))
    assert torch.equal(model[4].weight, torch.cat([third, torch.zeros(2, 1)], 1))
    assert (model[0].out_features, model[2].in_features, model[2].out_features) == (7, 7, 5)


def test_carriers_start_neutral_and_batch_norm_is_calibrated() -> None:
    model, graph = case("batch norm")
    old = model[1].running_mean.data
    move = widen(model, graph, "0", 2)
    trial = copy.deepcopy(model)
    journal = apply_moves(trial, [move], graph)
    assert torch.equal(trial[1].weight[5:], torch.ones(2))
    assert torch.equal(trial[1].running_var[5:], torch.ones(2))
    calibrate_batch_norm(trial, journal, X)
    transaction(model, [move], graph, probe=X)
    z = X @ move.values["0.weight"].T + move.values["0.bias"]
    for norm in (model[1], trial[1]):
        torch.testing.assert_close(norm.running_mean[5:], z.mean(0))
        torch.testing.assert_close(norm.running_var[5:], z.var(0))
        assert torch.equal(norm.running_mean[:5], old)
        assert torch.equal(norm.bias[5:], torch.zeros(2))


def test_carriers_take_the_mean_of_the_units_or_the_values_given() -> None:
    model, graph = case("unit-major")
    with torch.no_grad():
        model.act.weight.copy_(torch.tensor([0.1, 0.2, 0.3, 0.4]))
    move = widen(model, graph, "token", 1)
    trial = copy.deepcopy(model)
    apply_moves(trial, [move], graph)
    assert trial.act.weight[4].item() == pytest.approx(0.25)
    apply_moves(
        model, [Widen("token", 1, {**move.values, "act.weight": torch.tensor([0.7])})], graph
    )
    assert model.act.weight[4].item() == pytest.approx(0.7)


def test_given_running_statistics_are_not_calibrated() -> None:
    model, graph = case("batch norm")
    values = {**widen(model, graph, "0", 1).values, "1.running_mean": torch.tensor([7.0])}
    values["1.running_var"] = torch.tensor([3.0])
    transaction(model, [Widen("0", 1, values)], graph, probe=X)
    assert (float(model[1].running_mean[5]), float(model[1].running_var[5])) == (7.0, 3.0)


# -- pruning


def test_compensation_is_exact_where_a_unit_is_a_mixture_of_others() -> None:
    model, graph = case("mlp", torch.float64)
    model[1] = nn.Identity()
    graph = analyze(model, X.double())
    with torch.no_grad():  # unit 3 = 2 unit 0 - unit 4 + 5
        model[0].weight[3] = 2 * model[0].weight[0] - model[0].weight[4]
        model[0].bias[3] = 2 * model[0].bias[0] - model[0].bias[4] + 5
    before = model(X.double())
    coefficients = torch.tensor([[2.0, 0.0, 0.0, -1.0, 5.0]])
    receipt = transaction(model, [Prune("0", (3,), {"2": coefficients})], graph, probe=X.double())
    torch.testing.assert_close(model(X.double()), before, rtol=1e-12, atol=1e-12)
    assert receipt.output_change < 1e-12


def test_compensation_reaches_new_rows_and_follows_the_order_of_units() -> None:
    model, graph = case("mlp")
    old, bias = model[2].weight.detach().double(), model[2].bias.detach().double()
    coefficients = torch.randn(2, 4)
    row = widen(model, graph, "2", 1)
    apply_moves(model, [Prune("0", (4, 1), {"2": coefficients}), row], graph)
    rows = torch.cat([old, row.values["2.weight"].double()])
    expected = rows[:, [0, 2, 3]] + rows[:, [4, 1]] @ coefficients[:, :-1].double()
    assert torch.equal(model[2].weight, expected.float())
    shifted = (
        torch.cat([bias, row.values["2.bias"].double()])
        + rows[:, [4, 1]] @ coefficients[:, -1].double()
    )
    assert torch.equal(model[2].bias, shifted.float())


def test_pruning_is_held_to_the_loss_limit() -> None:
    model, graph = case("mlp")
    y = model(X).detach()

    def loss() -> float:
        return float((model(X) - y).square().mean().detach())

    held = everything(model)
    with pytest.raises(SurgeryError, match="'0' was rolled back: it raised the loss by"):
        transaction(model, [Prune("0", (0, 1, 2))], graph, probe=X, loss=loss, loss_limit=1e-6)
    assert everything(model) == held
    receipt = transaction(model, [Prune("0", (0,))], graph, probe=X, loss=loss, loss_limit=10.0)
    assert receipt.loss_before == 0.0
    assert receipt.loss_after == loss() > 0


# -- depth


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("insertion_point", ["0", "2", "4"])
def test_identity_layers_keep_the_function_under_the_same_name(
    insertion_point: str, dtype: torch.dtype
) -> None:
    model, graph = case("mlp", dtype)
    width = model.get_submodule(insertion_point).in_features
    layer, right, shift = identity_layer(width)  # float32: follows the weight's dtype
    linear = model.get_submodule(insertion_point)
    move = Insert(insertion_point, layer, right, shift)
    added, size = new_parameters(model, graph, move), sum(p.numel() for p in model.parameters())
    receipt = transaction(model, [move], graph, probe=X.to(dtype))
    stack = model.get_submodule(insertion_point)
    assert [type(module) for module in stack] == [nn.Linear, nn.PReLU, nn.Linear]
    assert stack[2] is linear
    assert stack[0] is not layer[0]
    assert sum(p.numel() for p in model.parameters()) - size == added == width * (width + 2)
    assert receipt.output_change < 1e-5
    assert not [name for name in analyze(model, X.to(dtype)).scored_maps if name == insertion_point]


def test_residual_layers_start_silent_and_nest() -> None:
    model, graph = case("mlp")
    weight, former = model[4].weight, model[4].weight.data
    receipt = transaction(model, [Insert("4", Residual(silent(4)))], graph, probe=X)
    assert receipt.output_change == 0
    assert model[4][1].weight is weight
    layer, right, shift = identity_layer(4)
    transaction(model, [Insert("4.1", layer, right, shift)], analyze(model, X), probe=X)
    assert model.get_submodule("4.1.2").weight is weight
    assert torch.equal(weight.double(), (former.double() @ right).to(weight.dtype).double())
    assert len(analyze(model, X).scored_maps) == 6


def test_a_layer_before_a_map_whose_rows_grow() -> None:
    model, graph = case("mlp")
    old = model[2].weight.data
    layer, right, shift = identity_layer(5)
    moves = [Insert("2", layer, right, shift), widen(model, graph, "2", 2), Prune("2", (0,))]
    apply_moves(model, moves, graph)
    rows = torch.cat([old[1:], moves[1].values["2.weight"]]).double()
    assert torch.equal(model[2][2].weight, (rows @ right).float())


# -- what hangs on a parameter


def test_a_resized_parameter_stays_the_same_object_with_all_that_hangs_on_it() -> None:
    model, graph = case("mlp")
    weight, kept, calls = model[2].weight, [*model.parameters()], []
    weight.note = {"group": "slow"}
    model[0].bias.requires_grad_(False)
    hook = weight.register_hook(lambda grad: calls.append(("grad", tuple(grad.shape))))
    weight.register_post_accumulate_grad_hook(lambda p: calls.append(("after", tuple(p.shape))))
    model[2].register_forward_hook(lambda *_: calls.append(("forward", ())))
    model(X).sum().backward()
    grad, calls[:] = weight.grad, []
    apply_moves(model, [widen(model, graph, "0", 1), Prune("2", (0,))], graph)
    assert [id(p) for p in model.parameters()] == [id(p) for p in kept]
    assert weight.shape == (3, 6)
    assert weight.note == {"group": "slow"}
    assert torch.equal(weight.grad, torch.cat([grad[1:], torch.zeros(3, 1)], 1))
    assert [p.requires_grad for p in model[0].parameters()] == [True, False]
    model(X).sum().backward()
    assert calls == [("forward", ()), ("grad", (3, 6)), ("after", (3, 6))]
    hook.remove()
    calls.clear()
    model(X).sum().backward()
    assert calls == [("forward", ()), ("after", (3, 6))]


def test_former_data_are_never_written_to_and_undo_gives_them_back() -> None:
    model, graph = case("batch norm")
    tensors = [*model.parameters(), *model.buffers()]
    olds = [(t.data, t.detach().clone()) for t in tensors]
    coefficients = torch.randn(1, 4)
    receipt = transaction(
        model, [widen(model, graph, "0", 2), Prune("3", (0,), {"6": coefficients})], graph, probe=X
    )
    assert all(torch.equal(data, value) for data, value in olds)
    receipt.undo()
    now = [*model.parameters(), *model.buffers()]
    assert all(one is other for one, other in zip(now, tensors, strict=True))
    assert all(t.is_set_to(data) for t, (data, _) in zip(now, olds, strict=True))


def test_backward_works_after_growth_between_two_passes() -> None:
    model, graph = case("mlp")
    model(X).sum().backward()
    transaction(model, [widen(model, graph, "0", 2)], graph, probe=X)
    model(X).sum().backward()
    assert all(p.grad.shape == p.shape for p in model.parameters())


def test_the_order_of_strides_stays() -> None:
    model, graph = case("mlp")
    model[2].weight = nn.Parameter(model[2].weight.detach().T.contiguous().T)
    apply_moves(model, [widen(model, graph, "0", 2)], graph)
    assert model[2].weight.stride() == (1, 4)


def test_every_name_of_a_tied_parameter_gets_the_new_one() -> None:
    model, graph = case("mlp")
    model[1].alias = model[2].weight  # another name for it; the forward pass doesn't read it
    apply_moves(model, [widen(model, graph, "0", 2)], graph)
    assert model[1].alias is model[2].weight
    assert model[2].weight.shape == (4, 7)


def test_one_parameter_in_two_roles_is_refused() -> None:
    model, graph = case("mlp")
    model[0].bias = model[2].bias = nn.Parameter(torch.zeros(5))
    held = everything(model)
    rows = Widen("2", 1, {"2.weight": torch.ones(1, 5), "2.bias": torch.ones(1)})
    with pytest.raises(SennError, match=r"'0.bias' and '2.bias' are one tied parameter"):
        apply_moves(model, [widen(model, graph, "0", 1), rows], graph)
    assert everything(model) == held


@pytest.mark.filterwarnings(
    "ignore:.*torch.jit.*", "ignore:Converting a tensor to a Python boolean"
)
@pytest.mark.parametrize("name", CASES)
def test_grown_models_are_ordinary(name: str) -> None:
    model, graph = case(name)
    transaction(
        model, [widen(model, graph, group.name, 2) for group in graph.groups], graph, probe=X
    )
    graph = analyze(model, X)
    insertion_point = graph.insertion_points[-1]
    transaction(
        model,
        [Insert(insertion_point.module, Residual(silent(insertion_point.features)))],
        graph,
        probe=X,
    )
    model.eval()
    out = model(X)
    assert torch.equal(pickle.loads(pickle.dumps(model))(X), out)
    assert torch.equal(copy.deepcopy(model)(X), out)
    twin = copy.deepcopy(model)
    for p in twin.parameters():
        p.data.zero_()
    twin.load_state_dict(model.state_dict())
    assert torch.equal(twin(X), out)
    torch.testing.assert_close(torch.jit.trace(model, X)(X), out)


def test_a_grown_model_exports() -> None:
    model, graph = case("batch norm")
    transaction(
        model, [widen(model, graph, "0", 2), Insert("3", *identity_layer(5))][:1], graph, probe=X
    )
    transaction(model, [Insert("3", *identity_layer(7))], analyze(model, X), probe=X)
    model.eval()
    torch.testing.assert_close(torch.export.export(model, (X,)).module()(X), model(X))
