"""Ranks of adapters that grow and shrink under a budget."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

peft = pytest.importorskip("peft")

import torch  # noqa: E402
from lora_cases import Net, batch, lora, trained  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from senn.errors import SennError, UnsupportedError  # noqa: E402
from senn.peft import RankAllocator, find_pairs, uniform_params  # noqa: E402


def factors(model: nn.Module) -> list[tuple[nn.Parameter, nn.Parameter]]:
    return [
        (model.get_submodule(pair.down).weight, model.get_submodule(pair.up).weight)
        for pair in find_pairs(model)
    ]


def numbers() -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and targets of a regression, without noise."""
    x = batch(2000)[0].double()
    return x, x @ torch.randn(6, 5, generator=torch.Generator().manual_seed(2)).double()


def valued(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    """Loss on the half of a batch on which steps are valued."""
    half = len(x) // 2
    with torch.no_grad():
        return float(F.mse_loss(model(x[half:]), y[half:]))


def everything(model: nn.Module, optimizer: Any = None) -> Any:
    state = {} if optimizer is None else optimizer.state_dict()
    ranks = [vars(one).get("r") for one in model.modules()]
    config = model.peft_config["default"].to_dict()
    return copy.deepcopy([model.state_dict(), state, ranks, config, torch.get_rng_state()])


def is_same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(is_same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(is_same, one, other))
    return bool(one == other)


def test_ranks_grow_to_the_budget_and_the_loss_falls() -> None:
    model = lora()
    optimizer = trained(model)
    allocator = RankAllocator(model, optimizer, max_params=uniform_params(model, 3))
    events = allocator.adapt([batch()])
    assert sum(pair.rank * pair.per_rank for pair in find_pairs(model)) <= uniform_params(model, 3)
    assert max(allocator.ranks().values()) > 1
    assert {event.place: event.rank for event in events}.items() <= allocator.ranks().items()
    (found,) = allocator.rounds
    assert found.loss_after < found.loss_before
    assert "rank 1 ->" in str(events[0])


def test_in_a_quadratic_loss_the_expected_decrease_is_the_decrease() -> None:
    x, y = numbers()
    model = lora(lambda: Net(linear=True), target_modules=["last"]).double()
    allocator = RankAllocator(model, None, F.mse_loss, max_params=uniform_params(model, 2))
    ((name, scores),) = allocator.score([(x, y)]).items()
    samples = allocator._samples([(x, y)])
    (one,) = allocator._scored(samples).values()
    ((down, up),) = factors(model)
    before = valued(model, x, y)
    for number, expected in enumerate(scores.decreases):
        with torch.no_grad():
            down.copy_(one.candidates.weight[number : number + 1])
            up.copy_(-(one.candidates.step * one.lengths)[:, number : number + 1])
        decrease = before - valued(model, x, y)
        # curvatures are measured by random signs
        assert decrease == pytest.approx(expected, rel=0.1, abs=1e-3), name


def test_what_leaves_costs_what_its_removal_raises_the_loss_by() -> None:
    x, y = numbers()
    model = lora(lambda: Net(linear=True), target_modules=["last"]).double()
    ((_, up),) = factors(model)
    with torch.no_grad():
        up.normal_(std=0.1)
    allocator = RankAllocator(model, None, F.mse_loss, max_params=uniform_params(model, 2))
    (cost,) = next(iter(allocator.score([(x, y)]).values())).costs
    before = valued(model, x, y)
    with torch.no_grad():
        up.zero_()
    assert valued(model, x, y) - before == pytest.approx(cost, rel=0.2)


def test_silent_births_keep_the_function_and_the_scaling() -> None:
    model, (x, y) = lora(), batch()
    trained(model)
    before, scaling = model(x), [m.scaling for m in model.modules() if hasattr(m, "scaling")]
    RankAllocator(model, max_params=uniform_params(model, 3), birth="silent").adapt([(x, y)])
    torch.testing.assert_close(model(x), before)
    assert [m.scaling for m in model.modules() if hasattr(m, "scaling")] == scaling


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.Adagrad])
def test_the_optimizers_state_of_kept_directions_is_kept(kind: Any) -> None:
    model = lora(r=2)
    optimizer = trained(model, kind=kind)
    pairs = factors(model)
    before = copy.deepcopy([[optimizer.state[one] for one in pair] for pair in pairs])
    allocator = RankAllocator(
        model, optimizer, max_params=uniform_params(model, 4), swap_margin=1e9
    )
    assert allocator.adapt([batch()])
    for (down, up), (old_down, old_up) in zip(pairs, before, strict=True):
        for key, value in old_down.items():
            if value.dim():
                assert torch.equal(optimizer.state[down][key][:2], value)
        for key, value in old_up.items():
            if value.dim():
                assert torch.equal(optimizer.state[up][key][:, :2], value)
                assert optimizer.state[up][key].shape == up.shape
    trained(model, 1)


@pytest.mark.parametrize("config", [{}, {"use_rslora": True}, {"lora_bias": True, "r": 2}])
def test_peft_loads_what_it_saves_and_merges_it(config: dict[str, Any], tmp_path: Path) -> None:
    model, (x, y) = lora(**config), batch()
    optimizer = trained(model)
    allocator = RankAllocator(model, optimizer, max_params=uniform_params(model, 4))
    assert allocator.adapt([(x, y)])
    model.save_pretrained(tmp_path)
    torch.manual_seed(0)
    loaded = peft.PeftModel.from_pretrained(Net(), tmp_path).eval()
    assert torch.equal(loaded(x), model.eval()(x))
    torch.testing.assert_close(loaded.merge_and_unload()(x), model(x))


def test_ranks_move_where_they_are_worth_more() -> None:
    model = lora(r=3)
    optimizer = trained(model, 1)
    allocator = RankAllocator(
        model, optimizer, max_params=uniform_params(model, 3), swap_margin=1.0
    )
    allocator.adapt([batch()])
    events = allocator.rounds[-1].events
    assert any(event.removed for event in events)
    assert allocator.rounds[-1].loss_after <= allocator.rounds[-1].loss_before
    assert sum(event.parameters for event in events) <= 0


def test_a_smaller_budget_shrinks_them() -> None:
    model = lora(r=4)
    optimizer = trained(model)
    allocator = RankAllocator(model, optimizer, max_params=uniform_params(model, 2))
    allocator.adapt([batch()])
    assert sum(pair.rank * pair.per_rank for pair in find_pairs(model)) <= uniform_params(model, 2)
    trained(model, 1)


def test_looking_and_failing_change_nothing() -> None:
    model, (x, y) = lora(), batch()
    optimizer = trained(model)
    before = everything(model, optimizer)
    calls: list[int] = []
    limit = [10**6]

    def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        if len(calls) > limit[0]:
            raise RuntimeError("the loss has failed")
        return F.cross_entropy(outputs, targets)

    allocator = RankAllocator(model, optimizer, loss, max_params=uniform_params(model, 3))
    allocator.score([(x, y)])
    assert is_same(everything(model, optimizer), before)
    seen = len(calls)
    for limit[0] in (seen // 2, seen + 4, seen + 8):
        calls.clear()
        with pytest.raises(SennError, match="the loss has failed"):
            allocator.adapt([(x, y)])
        assert is_same(everything(model, optimizer), before)


def test_the_same_batches_give_the_same_adapters() -> None:
    found = []
    for _ in range(2):
        model = lora()
        optimizer = trained(model)
        RankAllocator(model, optimizer, max_params=uniform_params(model, 3)).adapt([batch()])
        found.append(model.state_dict())
    assert is_same(*found)


def test_averages_grow_along() -> None:
    model = lora()
    optimizer = trained(model)
    average = torch.optim.swa_utils.AveragedModel(model)
    allocator = RankAllocator(
        model, optimizer, max_params=uniform_params(model, 3), averaged=[average]
    )
    allocator.adapt([batch()])
    average.update_parameters(model)
    shapes = [one.shape for one in model.parameters()]
    assert [one.shape for one in average.module.parameters()] == shapes


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (
            {"use_dora": True},
            "'base_model.model.first' can't change: its variant of LoRA (DoraLinear",
        ),
        ({"target_modules": ["first", "embed"]}, "it adapts an embedding"),
    ],
)
def test_what_has_more_than_two_linear_factors_is_refused_by_name(
    config: dict[str, Any], sentence: str
) -> None:
    class Embedded(Net):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(3, 6)

    with pytest.raises(UnsupportedError) as caught:
        RankAllocator(lora(Embedded, **config), max_params=1000)
    assert sentence in str(caught.value)


def test_other_refusals_name_their_reason() -> None:
    adalora = peft.get_peft_model(Net(), peft.AdaLoraConfig(target_modules=["first"], total_step=9))
    with pytest.raises(UnsupportedError, match="AdaLoRA allocates its ranks itself"):
        find_pairs(adalora)
    model = lora()
    with pytest.raises(SennError, match="max_params is 5, and a rank of 1 everywhere has 27"):
        RankAllocator(model, max_params=5)
    with pytest.raises(SennError, match="no LoRA layers of an adapter 'other'"):
        RankAllocator(model, max_params=100, adapter="other")
    with pytest.raises(SennError, match="no LoRA layers"):
        RankAllocator(Net(), max_params=100)
    model.merge_adapter()
    with pytest.raises(UnsupportedError, match="merged into the weight, so unmerge it first"):
        find_pairs(model)
    with pytest.raises(SennError, match="a batch needs two samples"):
        RankAllocator(lora(), max_params=100).score([batch(1)])


def test_layers_that_are_left_alone_keep_their_rank() -> None:
    model, name = lora(), "base_model.model.first"
    allocator = RankAllocator(model, trained(model), max_params=60, ignore=[name])
    allocator.adapt([batch()])
    assert model.get_submodule(name).r == {"default": 1}
    assert allocator.ranks().keys() == {"base_model.model.last"}


def test_a_second_adapter_stays_as_it_is() -> None:
    model = lora()
    model.add_adapter("other", peft.LoraConfig(r=2, target_modules=["first", "last"]))
    optimizer = trained(model)
    RankAllocator(model, optimizer, max_params=60).adapt([batch()])
    assert {pair.rank for pair in find_pairs(model, "other")} == {2}
    assert max(pair.rank for pair in find_pairs(model, "default")) > 1
