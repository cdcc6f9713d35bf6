"""Ranks and widths that are written in layers and configurations follow, unless the forward pass computes with them."""

from __future__ import annotations

import math
import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from surgery_cases import X, everything, widen
from torch import Tensor, nn

from senn.graph import analyze
from senn.surgery import Prune, transaction


class LoRA(nn.Module):
    def __init__(
        self, base: nn.Linear, r: Any = 2, *, key: str = "r", computes: bool = False
    ) -> None:
        super().__init__()
        self.base, self.computes = base.requires_grad_(False), computes
        rank = r["default"] if isinstance(r, dict) else r
        down, up = (
            nn.Linear(base.in_features, rank, bias=False),
            nn.Linear(rank, base.out_features, bias=False),
        )
        wrap = nn.ModuleDict if isinstance(r, dict) else lambda one: one["default"]
        self.lora_A, self.lora_B = wrap({"default": down}), wrap({"default": up})
        setattr(self, key, r)
        self.scaling = {"default": 4.0}

    def forward(self, x: Tensor) -> Tensor:
        down, up = (
            one["default"] if isinstance(one, nn.ModuleDict) else one
            for one in (self.lora_A, self.lora_B)
        )
        scale = 8 / self.r if self.computes else 4.0
        return self.base(x) + scale * up(down(x))


class Net(nn.Module):
    def __init__(self, **settings: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = LoRA(nn.Linear(3, 5), **settings), LoRA(nn.Linear(5, 2), **settings)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x).relu())


def lora(model: nn.Module) -> tuple[Any, str]:
    graph = analyze(model, X)
    return graph, next(group.name for group in graph.groups if group.name.startswith("first.lora"))


@pytest.mark.parametrize("key", ["r", "rank", "lora_rank", "bottleneck_dim", "hidden_dim"])
def test_a_rank_that_nothing_computes_with_follows_growth_pruning_and_undo(key: str) -> None:
    model = Net(key=key)
    graph, name = lora(model)
    held = everything(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        receipt = transaction(model, [widen(model, graph, name, 3)], graph, probe=X)
        assert (getattr(model.first, key), getattr(model.last, key)) == (5, 2)
        cut = transaction(model, [Prune(name, (0, 1))], receipt.graph, probe=X)
    assert getattr(model.first, key) == 3
    cut.undo()
    receipt.undo()
    assert everything(model) == held


def test_a_rank_that_the_forward_pass_computes_with_stays_and_is_named() -> None:
    model = Net(computes=True)
    graph, name = lora(model)
    with pytest.warns(UserWarning, match="'r' of 'first' says a rank that has changed") as caught:
        receipt = transaction(model, [widen(model, graph, name, 1)], graph, probe=X)
    assert [one.filename for one in caught] == [__file__]  # not a line of the library
    assert receipt.output_change < 1e-6
    assert model.first.r == 2


def test_a_rank_of_two_maps_follows_if_both_change_alike() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rank = 2
            self.a, self.b = (nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 4)) for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x) + self.b(x)

    for units, rank in (((1, 1), 3), ((1, 2), 2)):
        model = Pair()
        graph = analyze(model, X)
        moves = [widen(model, graph, f"{one}.0", k) for one, k in zip("ab", units, strict=True)]
        context: Any = (
            pytest.warns(UserWarning, match="'rank' of ''")
            if rank == 2
            else warnings.catch_warnings()
        )
        with context:
            transaction(model, moves, graph, probe=X)
        assert model.rank == rank


@pytest.mark.parametrize("rslora", [False, True])
def test_configurations_of_adapters_can_build_the_grown_model(rslora: bool) -> None:
    model = Net(r={"default": 2})
    config = SimpleNamespace(
        r=2, lora_alpha=8, rank_pattern={"first": 2}, alpha_pattern={}, use_rslora=rslora
    )
    model.peft_config = {"default": config}
    graph, name = lora(model)
    receipt = transaction(model, [widen(model, graph, name, 3)], graph, probe=X)
    assert model.first.r == {"default": 5}
    assert model.last.r == {"default": 2}
    assert config.rank_pattern == {"^first": 5, "first": 2}
    (alpha,) = config.alpha_pattern.values()
    assert alpha / (math.sqrt(5) if rslora else 5) == pytest.approx(4.0)
    receipt.undo()
    assert (config.rank_pattern, config.alpha_pattern) == ({"first": 2}, {})
    assert model.first.r == {"default": 2}


@pytest.mark.parametrize("layers", [(0, 1), (0,)])
def test_the_configuration_of_a_model_follows_where_it_can_say_the_sizes(
    layers, tmp_path, caplog
) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=12,
        image_size=4, patch_size=2, num_labels=3,
    )  # fmt: skip
    torch.manual_seed(0)
    model, x = transformers.ViTForImageClassification(config).eval(), torch.randn(2, 3, 4, 4)
    graph = analyze(model, x)
    names = [group.name for group in graph.groups if group.width == 12]
    moves = [widen(model, graph, names[layer], 4) for layer in layers]
    if len(layers) == 1:
        for _ in range(2):  # said once for each model
            transaction(model, moves, graph, probe=x).undo()
        assert caplog.text.count("can't say its sizes any more") == 1
        assert model.config.intermediate_size == 12
        return
    receipt = transaction(model, moves, graph, probe=x)
    assert model.config.intermediate_size == 16
    model.save_pretrained(tmp_path)
    loaded = transformers.ViTForImageClassification.from_pretrained(tmp_path).eval()
    assert torch.equal(loaded(x).logits, model(x).logits)
    receipt.undo()
    assert model.config.intermediate_size == 12
