"""Arms of `lora_ranks.py`: what gives adapters their ranks and their first weights, and what is done between steps."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import peft
import torch
from lora_tasks import LAYERS_ADAPTED, Decoder, Text, loss
from peft.tuners.lora.config import EvaConfig
from peft.tuners.lora.eva import initialize_lora_eva_weights
from rivals import gora
from torch import Tensor, nn

from senn.peft import RankAllocator, find_pairs, uniform_params

SCALING = 2.0
"""Scaling of B A in every arm: alpha is twice the rank."""

LOOK = 64
"""Samples that a method may look at before the first step, or in a round."""

AfterStep = Callable[[int], None]


@dataclass(frozen=True, kw_only=True)
class Adapted:
    """A model with adapters that is ready to train.

    Attributes:
        model: the model.
        optimizer: of its adapters.
        after_step: what a method does after the optimizer's step, with its gradients.
        before_step: what it does before the forward pass of a step, counted from 0.
        penalty: what is added to the loss.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    before_step: AfterStep = field(default=lambda step: None)
    after_step: AfterStep = field(default=lambda step: None)
    penalty: Callable[[], Tensor | float] = field(default=lambda: 0.0)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What an arm gets.

    Attributes:
        weights: of the frozen model.
        text: what it is adapted to.
        rank: sets the budget: as many parameters as this rank everywhere.
        seed: of adapters and batches.
        steps: of the run.
        lr: learning rate.
        options: of the arm.
    """

    weights: Mapping[str, Tensor]
    text: Text
    rank: int
    seed: int
    steps: int
    lr: float
    options: Mapping[str, Any] = field(default_factory=dict)

    def base(self) -> Decoder:
        """The frozen model."""
        model = Decoder()
        model.load_state_dict(self.weights)
        return model

    def samples(self, number: int = LOOK, salt: int = 0) -> tuple[Tensor, Tensor]:
        """Training windows to look at, others than those of the steps."""
        chance = torch.Generator().manual_seed(10_000 + 100 * self.seed + salt)
        return self.text.batch(chance, number)

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """AdamW over the adapters."""
        trained = [one for one in model.parameters() if one.requires_grad]
        return torch.optim.AdamW(trained, lr=self.lr, weight_decay=0.0)

    def lora(self, rank: int, **choices: Any) -> nn.Module:
        """The model with LoRA of one rank, or of a pattern of ranks."""
        pattern = choices.get("rank_pattern", {})
        config = peft.LoraConfig(
            r=rank,
            lora_alpha=SCALING * rank,
            target_modules=LAYERS_ADAPTED,
            alpha_pattern={name: SCALING * one for name, one in pattern.items()},
            **choices,
        )
        torch.manual_seed(self.seed)
        return peft.get_peft_model(self.base(), config)


def uniform(given: Setting) -> Adapted:
    """One rank everywhere."""
    model = given.lora(given.rank)
    return Adapted(model=model, optimizer=given.optimizer(model))


def grown(given: Setting) -> Adapted:
    """Ranks and directions by `RankAllocator`."""
    options = {
        "rounds": (0.0, 0.05, 0.15, 0.3),
        "damping": 1.0,
        "swap_margin": 2.0,
        "staged": False,
    }
    options |= given.options
    model = given.lora(1)
    optimizer = given.optimizer(model)
    budget = uniform_params(model, given.rank)
    allocator = RankAllocator(
        model, optimizer, loss, max_params=budget,
        damping=options["damping"], swap_margin=options["swap_margin"],
    )  # fmt: skip
    due = {round(share * given.steps): number for number, share in enumerate(options["rounds"])}

    def before_step(step: int) -> None:
        if step in due:
            share = (due[step] + 1) / len(due) if options["staged"] else 1.0
            samples = given.samples(options.get("look", LOOK), 1 + due[step])
            most = max(round(share * budget), uniform_params(model, 1))
            allocator.adapt([samples], max_params=most)

    return Adapted(model=model, optimizer=optimizer, before_step=before_step)


def with_pattern(given: Setting, pattern: Mapping[str, int]) -> Adapted:
    """Given ranks, and LoRA's own first weights."""
    model = given.lora(given.rank, rank_pattern=dict(pattern))
    return Adapted(model=model, optimizer=given.optimizer(model))


def random_ranks(given: Setting) -> Adapted:
    """Control: ranks drawn at random, within the budget."""
    pairs = find_pairs(given.lora(1))
    chance, found = random.Random(given.seed), {pair.name: 1 for pair in pairs}
    left = (given.rank - 1) * sum(pair.per_rank for pair in pairs)
    while True:
        fitting = [pair for pair in pairs if pair.per_rank <= left]
        if not fitting:
            break
        pair = chance.choice(fitting)
        found[pair.name] += 1
        left -= pair.per_rank
    return with_pattern(given, {_inner(name): rank for name, rank in found.items()})


def found_ranks(given: Setting) -> Adapted:
    """Control: the ranks that a grown run ended with, from LoRA's own first weights."""
    return with_pattern(given, given.options["ranks"])


def adalora(given: Setting) -> Adapted:
    """AdaLoRA, of PEFT: one and a half of the ranks at first, pruned to the budget."""
    start = given.options.get("start", 1.5)
    first = round(start * given.rank)
    config = peft.AdaLoraConfig(
        init_r=first,
        target_r=given.rank,
        lora_alpha=SCALING * first,
        tinit=given.steps // 10,
        tfinal=given.steps // 2,
        deltaT=5,
        total_step=given.steps,
        target_modules=LAYERS_ADAPTED,
    )
    torch.manual_seed(given.seed)
    model = peft.get_peft_model(given.base(), config)

    def penalty() -> Tensor:
        # as AdaLoraModel adds it to a model's own loss
        terms = [
            torch.norm(part @ part.T - torch.eye(len(part)))
            for name, one in model.named_parameters()
            for part in ([one] if "lora_A" in name else [one.T] if "lora_B" in name else [])
        ]
        return given.options.get("orthogonal", 0.5) * torch.stack(terms).mean()

    def allocate(step: int) -> None:
        model.base_model.update_and_allocate(step)

    return Adapted(
        model=model, optimizer=given.optimizer(model), after_step=allocate, penalty=penalty
    )


def eva(given: Setting) -> Adapted:
    """EVA, of PEFT: principal directions of the inputs, ranks by the variance that they explain."""
    model = given.lora(
        given.rank, init_lora_weights="eva", eva_config=EvaConfig(rho=given.options.get("rho", 2.0))
    )
    initialize_lora_eva_weights(
        model,
        [{"x": x} for x in given.samples(2 * LOOK)[0].split(8)],
        forward_fn=lambda inner, inputs: inner(inputs["x"]),
        prepare_model_inputs_fn=None,
        prepare_layer_inputs_fn=lambda inputs, *_: (
            inputs[0].flatten(0, 1) if isinstance(inputs, tuple) else inputs.flatten(0, 1)
        ),
        show_progress_bar=False,
    )
    return Adapted(model=model, optimizer=given.optimizer(model))


def gora_rule(given: Setting) -> Adapted:
    """GoRA's rule."""
    base = given.base()
    names = [
        name for name, module in base.named_modules() if name.rpartition(".")[2] in LAYERS_ADAPTED
    ]
    weights = {name: base.get_submodule(name).weight for name in names}
    x, y = given.samples()
    mean = loss(base(x), y)
    gradients = dict(zip(names, torch.autograd.grad(mean, [*weights.values()]), strict=True))
    weights = {name: weight.detach() for name, weight in weights.items()}
    pattern = gora.ranks(weights, gradients, given.rank)
    adapted = with_pattern(given, pattern)
    for name, layer in adapted.model.get_base_model().named_modules():
        if name in gradients:
            down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
            up.data.copy_(
                gora.second_factor(down.data, gradients[name], given.options.get("scale", 1.0))
            )
    return adapted


def _inner(name: str) -> str:
    return name.removeprefix("base_model.model.")


ARMS: dict[str, Callable[[Setting], Adapted]] = {
    "grown": grown,
    "uniform": uniform,
    "adalora": adalora,
    "eva": eva,
    "gora": gora_rule,
    "random_ranks": random_ranks,
    "found_ranks": found_ranks,
}
