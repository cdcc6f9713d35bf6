"""Everything that analysis and surgery promise, over the models of the zoo.

What is found in each model and that it grows is tested of all of them, all else of one in six or of each with one
optimizer; `SENN_ALL=1 pytest tests/graph/test_zoo.py` tests everything of all.
"""

from __future__ import annotations

import copy
import math
import pickle
import re

import pytest
import torch
from exhaustive import EVERYTHING, some
from surgery_cases import everything
from torch import nn
from zoo import ZOO, randomised
from zoo_cases import LARGEST, in_training, prepared, widening

import senn
from senn import pytree
from senn.graph import DependencyGraph, analyze
from senn.surgery import Prune, transaction
from senn.surgery.outputs import output_change, outputs

UNSCORED = {"tied autoencoder": "no linear map whose inputs could be read"}
FEW = senn.CandidateConfig(units=8, residual_units=4, identity_bases=1)
IN_FLOAT32 = ("mobilenet", "hf bert")


@pytest.mark.parametrize("name", ZOO)
def test_every_hidden_group_is_found_or_refused_with_the_true_reason(name: str) -> None:
    entry = ZOO[name]
    _, _, graph = prepared(name)
    assert {group.name: group.width for group in graph.groups} == dict(entry.groups)
    assert [block.module for block in graph.residual_blocks] == list(entry.blocks)
    expected = {**entry.refused, **entry.never}
    found = {refusal.place: refusal.reason for refusal in graph.refusals}
    assert set(found) == set(expected)
    for place, pattern in expected.items():
        assert re.search(pattern, found[place]), (place, found[place])
    named = {coupled.name for group in graph.groups for coupled in group.dims}
    for one in (
        graph.linear_maps if not entry.refused else ()
    ):  # none is silent: a map has units of a group, or is named
        assert one.weight in named or any(
            place in (one.name, f"{one.weight}:0") for place in found
        ), one.name


def test_few_groups_of_the_zoo_are_refused() -> None:
    refused = sum(len(entry.refused) for entry in ZOO.values())
    assert refused <= 0.05 * (refused + sum(len(entry.groups) for entry in ZOO.values()))


# float64 shows that it is exact; a few models that float32, as used, rounds no worse
@pytest.mark.parametrize(
    ("name", "dtype"),
    [*((name, torch.float64) for name in ZOO), *((name, torch.float32) for name in IN_FLOAT32)],
)
def test_growth_keeps_the_function_and_the_graph_follows(name: str, dtype: torch.dtype) -> None:
    model, inputs, graph = prepared(name, dtype)
    classes = [type(module) for module in model.modules()]
    trained = in_training(model, inputs)
    receipt = transaction(model, widening(model, graph), graph, probe=inputs)
    assert receipt.output_change is not None
    # its norms compute in float32 in any model
    largest = max(LARGEST[dtype], 1e-6) if name == "hf llama" else LARGEST[dtype]
    assert receipt.output_change <= largest
    assert output_change(trained, in_training(model, inputs)) <= 10 * largest
    assert [type(module) for module in model.modules()] == classes
    again = analyze(model, inputs)
    assert receipt.graph is not None
    for group, fresh in zip(receipt.graph.groups, again.groups, strict=True):
        assert (group.name, group.width, group.attributes) == (
            fresh.name,
            fresh.width,
            fresh.attributes,
        )
        ours = [(coupled.name, coupled.dim, coupled.index.tolist()) for coupled in group.dims]
        assert ours == [
            (coupled.name, coupled.dim, coupled.index.tolist()) for coupled in fresh.dims
        ]
    assert receipt.graph.scored_maps == again.scored_maps
    assert repr(receipt.graph.insertion_points) == repr(again.insertion_points)


@pytest.mark.parametrize("name", some(ZOO, 6))
def test_new_units_can_be_taken_back_or_pruned_again_and_old_ones_too(name: str) -> None:
    model, inputs, graph = prepared(name, torch.float64)
    before, held = outputs(model, inputs), everything(model)
    transaction(model, widening(model, graph, 2), graph, probe=inputs).undo()
    assert everything(model) == held
    receipt = transaction(model, widening(model, graph, 2), graph, probe=inputs)
    assert receipt.graph is not None
    gone = [Prune(group.name, (group.width - 2, group.width - 1)) for group in receipt.graph.groups]
    receipt = transaction(model, gone, receipt.graph, probe=inputs)
    assert output_change(before, outputs(model, inputs)) <= 1e-10
    assert receipt.graph is not None
    some = [Prune(group.name, (0,)) for group in receipt.graph.groups if group.width > 2]
    receipt = transaction(model, some, receipt.graph, probe=inputs)
    again = analyze(model, inputs)
    assert receipt.graph is not None
    assert [group.width for group in again.groups] == [
        group.width for group in receipt.graph.groups
    ]


def _optimizers(model: nn.Module) -> dict[str, torch.optim.Optimizer]:
    matrices = [p for p in model.parameters() if p.dim() == 2]
    found: dict[str, torch.optim.Optimizer] = {
        "sgd": torch.optim.SGD(model.parameters(), 0.01, momentum=0.9),
        "adam": torch.optim.Adam(model.parameters(), 0.01),
        "adamw": torch.optim.AdamW(model.parameters(), 0.01),
    }
    return {**found, "muon": torch.optim.Muon(matrices, 0.01)} if matrices else found


def _step(model: nn.Module, optimizer: torch.optim.Optimizer, name: str) -> None:
    torch.manual_seed(2)
    result = pytree.call(model, ZOO[name].inputs(6))
    loss = sum(
        (x * torch.randn_like(x)).mean()
        for x in pytree.tensor_leaves(result)
        if x.is_floating_point()
    )
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


KINDS = ("sgd", "adam", "adamw", "muon")
PAIRS = [
    (name, kind)
    for at, name in enumerate(ZOO)
    for place, kind in enumerate(KINDS)
    if EVERYTHING or at % len(KINDS) == place
]


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_optimizers_go_on(name: str, kind: str) -> None:
    model, inputs, graph = prepared(name)
    model.train()
    if kind not in _optimizers(model):
        pytest.skip("the model has no matrices for Muon")
    optimizer = _optimizers(model)[kind]
    _step(model, optimizer, name)
    flat = {
        full for full, p in model.named_parameters() if p.grad is None or p.grad.abs().max() < 1e-6
    }
    old = {parameter: dict(state) for parameter, state in optimizer.state.items()}
    names = {parameter: full for full, parameter in model.named_parameters()}
    shapes = {parameter: parameter.shape for parameter in names}
    transaction(model, widening(model, graph), graph, optimizer=optimizer, probe=inputs)
    kept = _kept(graph)
    for parameter, state in old.items():
        new = model.get_parameter(names[parameter])
        for key, value in state.items():
            now = optimizer.state[new][key]
            if isinstance(value, torch.Tensor) and value.shape == shapes[parameter]:
                for dim, places in kept(names[parameter], now.shape, value.shape).items():
                    now = now.index_select(dim, places)
            assert torch.equal(torch.as_tensor(now), torch.as_tensor(value)), (
                names[parameter],
                key,
            )
    held = {p for group in optimizer.param_groups for p in group["params"]}
    before = {full: p.detach().clone() for full, p in model.named_parameters() if p in held}
    _step(model, optimizer, name)
    still = [
        full for full, p in model.named_parameters() if p in held and torch.equal(p, before[full])
    ]
    assert (
        set(still) <= flat
    )  # a bias before a normalisation and one of keys have no gradient at any size


def _kept(graph: DependencyGraph):
    """Where the old positions of a tensor stand after every group has gained one unit."""

    def places(name: str, new: torch.Size, old: torch.Size) -> dict[int, torch.Tensor]:
        found = {}
        for dim, size in enumerate(old):
            if new[dim] != size:
                coupled_dims = [
                    s
                    for group in graph.groups
                    for s in group.dims
                    if (s.name, s.dim) == (name, dim)
                ]
                after = torch.cat(
                    [
                        s.index[-1]
                        .view(s.n_segments, -1)[:, -1:]
                        .repeat(1, s.index.shape[1] // s.n_segments)
                        .flatten()
                        for s in coupled_dims
                    ]
                )
                shift = torch.bincount(after + 1, minlength=size + 1)[:size].cumsum(0)
                found[dim] = torch.arange(size) + shift
        return found

    return places


@pytest.mark.parametrize("name", some(ZOO, 6, first=1))
def test_a_grown_model_is_saved_into_a_fresh_one_pickled_and_copied(name: str, tmp_path) -> None:
    model, inputs, graph = prepared(name)
    transaction(model, widening(model, graph), graph, probe=inputs)
    expected = outputs(model, inputs)
    senn.save(tmp_path / "run", model)
    fresh = senn.load(tmp_path / "run", into=ZOO[name].build())
    for twin in (fresh, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert all(map(torch.equal, outputs(twin, inputs), expected))


@pytest.mark.parametrize("name", sorted({*some(ZOO, 6, first=2), *UNSCORED}))
def test_the_grower_looks_at_a_model_and_changes_it_as_decided(name: str) -> None:
    """Whatever it grows keeps the function; a model that it can't score is refused by name, and nothing is touched."""
    torch.manual_seed(0)
    model, inputs = randomised(ZOO[name].build()), ZOO[name].inputs(12)
    output = ZOO[name].output or (lambda result: pytree.prediction(result).flatten(1))
    with torch.no_grad():
        targets = torch.randn_like(output(pytree.call(model.eval(), pytree.clone(inputs))))
    optimizer, policy = torch.optim.Adam(model.parameters()), senn.PricePolicy(kappa=1e-6)
    grower = senn.Grower(
        model,
        optimizer,
        nn.functional.mse_loss,
        policy,
        output=output,
        max_width=40,
        candidate_config=FEW,
    )
    state = copy.deepcopy(model.state_dict())
    if name in UNSCORED:
        with pytest.raises(senn.UnsupportedError, match=UNSCORED[name]):
            grower.score_candidates([(inputs, targets)])
        assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
        return
    found = grower.score_candidates([(inputs, targets)])
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert all(
        math.isfinite(figure)
        for c in found
        for figure in (c.gain, c.gain_lower_bound, c.held_out_gain, c.held_out_stderr)
    )
    for event in grower.grow():
        assert event.kind == "prune" or event.output_change <= 1e-5
