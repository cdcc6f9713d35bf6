"""Every choice that a training run makes, with defaults that need no tuning."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from senn import _deprecated
from senn._validate import (
    Rule,
    a_seed,
    check_fields,
    each,
    flag,
    fraction,
    instance_of,
    number,
    one_of,
    positive,
    text,
    whole,
)
from senn.nn.activations import activation_or_factory
from senn.policies import Policy, policy_rule

Task = Literal["classification", "regression"]


RANGES: Mapping[str, Rule] = {
    "hidden": each(whole(low=1)),
    "shortcut": flag(),
    "activation": activation_or_factory(),
    "optimizer": text(),
    "lr": positive().or_none(),
    "weight_decay": number(low=0).or_none(),
    "optimizer_options": instance_of(Mapping, called="a mapping of keyword arguments"),
    "epochs": whole(low=1).or_none(),
    "steps": whole(low=1),
    "min_epochs": whole(low=1),
    "max_epochs": whole(low=1),
    "batch_size": whole(low=1).or_none(),
    "schedule": one_of("tail", "cosine", "constant"),
    "tail": fraction(),
    "validation_fraction": fraction(high=0.9),
    "min_validation": whole(low=0),
    "patience": number(low=0, open_low=True, infinite=True).or_none(),
    "monitor": one_of("loss", "score", None),
    "average": one_of("ema", "swa", None),
    "average_decay": fraction(),
    "grow": flag(),
    "policy": policy_rule(named=True).or_none(),
    "growth_steps": whole(low=1),
    "addition_rounds": each(fraction(), kind=tuple),
    "pruning_rounds": each(fraction(), kind=tuple),
    "candidates_per_layer": whole(low=1).or_none(),
    "max_scoring_samples": whole(low=1),
    "max_params": whole(low=1).or_none(),
    "max_width": whole(low=1).or_none(),
    "round_to": whole(low=1),
    "moves": each(one_of("width", "depth", "prune")),
    "seed": a_seed(),
}
"""Of the fields of a `TrainConfig`."""


@_deprecated.aliased
@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How to train a net; the defaults are for tables.

    Attributes:
        hidden: widths of the hidden layers at the start.
        shortcut: whether the inputs also reach the outputs through one linear map.
        activation: name of the activation (`relu`, `tanh`, `rational`, ...) or a module class.
        optimizer: a `torch.optim` class by name in any case (`adam`, `sgd`, ...) or `natural-gradient`.
        lr: peak learning rate; None for the optimizer's own default here.
        weight_decay: passed to the optimizer; None for its own default.
        optimizer_options: further keyword arguments of the optimizer.
        epochs: passes over the training rows at most; None: so many that about `steps` steps are made, between
            `min_epochs` and `max_epochs`.
        steps: steps aimed at when `epochs` is None.
        min_epochs: fewest epochs when `epochs` is None.
        max_epochs: most epochs when `epochs` is None.
        batch_size: rows per step; None: `max(64, rows / 512)`, at most 512.
        schedule: `tail` (constant, then linearly to zero over the last `tail` of the steps), `cosine` or `constant`.
        tail: fraction of the steps over which the learning rate falls, and over which `swa` averages.
        validation_fraction: share of the rows held out for stopping; 0 for none.
        min_validation: below so many validation rows none are held out, and the last epoch is kept.
        patience: epochs without a better validation figure until the run is cut short, never while the net may still
            grow: the `tail` of the learning rate starts then, or, with other schedules, the run ends. None for a fifth
            of the epochs, 10 at least; `math.inf` for never.
        monitor: what makes an epoch the best: the validation `loss`, or the `score` (accuracy, among equals the loss;
            for regression both are the same). None: the score if there are at least 1,000 validation rows.
        average: `ema` (every step), `swa` (every epoch of the tail) or None: average the weights.
        average_decay: of the exponential moving average.
        grow: False for a fixed net.
        policy: object or name (`price`, `paper`) of what decides on growth; None for the price policy.
        growth_steps: growth takes place in the first so many steps, or in the whole run if that is shorter.
        addition_rounds: considerations of additions, as fractions of these steps.
        pruning_rounds: rounds in which units can only go, as fractions of these steps; where both fall on one step, the
            round of additions takes place.
        candidates_per_layer: candidate units that a round draws for each layer; None for as many as `CandidateConfig`
            draws by itself.
        max_scoring_samples: training rows that a round looks at, at most.
        max_params: budget of parameters that growth keeps to.
        max_width: most units of a layer.
        round_to: grown widths are multiples of this.
        moves: which moves growth may make (`width`, `depth`, `prune`).
        seed: of everything drawn at random.
    """

    hidden: tuple[int, ...] = (2,)
    shortcut: bool = True
    activation: Any = "relu"
    optimizer: str = "adamw"
    lr: float | None = None
    weight_decay: float | None = None
    optimizer_options: Mapping[str, Any] = field(default_factory=dict)
    epochs: int | None = None
    steps: int = 1500
    min_epochs: int = 15
    max_epochs: int = 120
    batch_size: int | None = None
    schedule: Literal["tail", "cosine", "constant"] = "tail"
    tail: float = 1 / 3
    validation_fraction: float = 0.1
    min_validation: int = 10
    patience: float | None = None
    monitor: Literal["loss", "score"] | None = None
    average: Literal["ema", "swa"] | None = None
    average_decay: float = 0.99
    grow: bool = True
    policy: Policy | str | None = None
    growth_steps: int = 2000
    addition_rounds: tuple[float, ...] = (0.005, 0.01, 0.02, 0.04, 0.08, 0.16)
    pruning_rounds: tuple[float, ...] = (0.4,)
    candidates_per_layer: int | None = None
    max_scoring_samples: int = 4096
    max_params: int | None = None
    max_width: int | None = None
    round_to: int = 1
    moves: tuple[str, ...] = ("width", "depth", "prune")
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self, RANGES)

    def plan(self, rows: int) -> ResolvedConfig:
        """The numbers that follow from how many training rows there are."""
        batch_size = self.batch_size or min(512, max(64, rows // 512))
        batches = max(1, round(rows / batch_size))
        epochs = self.epochs or max(self.min_epochs, min(self.max_epochs, round(self.steps / batches)))
        steps = epochs * batches
        patience = max(10, epochs // 5) if self.patience is None else self.patience
        last = max((*self.addition_rounds, *self.pruning_rounds), default=0.0)
        growth_end = round(last * min(steps, self.growth_steps))
        return ResolvedConfig(epochs=epochs, batches=batches, steps=steps, patience=patience, growth_end=growth_end)

    def lr_factor(self, progress: float) -> float:
        """Learning rate as a fraction of its peak when a fraction `progress` of the steps has been made."""
        if self.schedule == "constant":
            return 1.0
        if self.schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * progress))
        return min(1.0, (1 - progress) / self.tail) if self.tail > 0 else 1.0


@dataclass(frozen=True, kw_only=True)
class ResolvedConfig:
    """What a recipe comes to for a number of rows.

    Attributes:
        epochs: passes over the data at most.
        batches: steps per epoch.
        steps: steps at most.
        patience: epochs without improvement before the run is cut short.
        growth_end: step up to which the net may grow and stopping early is out of the question (for a fixed net
            too, so that both stop by one rule).
    """

    epochs: int
    batches: int
    steps: int
    patience: float
    growth_end: int
