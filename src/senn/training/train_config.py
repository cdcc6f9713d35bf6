"""Training configuration, and what it resolves to for a number of rows."""

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
from senn.policies import MOVES, BirthKind, Policy, policy_rule
from senn.training.metric import Metric
from senn.training.policy_defaults import BY_NAME, PRICE, DefaultRounds, policy_defaults

Task = Literal["classification", "regression"]


_LARGEST_SHARE = 0.25
"""Share of validation rows up to which small tables have `min_validation` of them."""

RANGES: Mapping[str, Rule] = {
    "hidden": each(whole(low=1)).or_none(),
    "shortcut": flag().or_none(),
    "activation": activation_or_factory().or_none(),
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
    "monitor": Rule(
        expected="'loss', 'score', a senn.training.Metric or None",
        allows=lambda value: (
            isinstance(value, Metric) or one_of("loss", "score", None).allows(value)
        ),
    ),
    "average": one_of("ema", "swa", None),
    "average_decay": fraction(),
    "grow": flag(),
    "policy": policy_rule(named=True).or_none(),
    "birth": one_of("stepped", "silent", "plain", "best", None),
    "growth_steps": whole(low=1),
    "addition_rounds": each(fraction(), kind=tuple),
    "pruning_rounds": each(fraction(), kind=tuple),
    "candidates_per_layer": whole(low=1).or_none(),
    "ascent_steps": whole(low=0).or_none(),
    "max_scoring_samples": whole(low=1),
    "max_params": whole(low=1).or_none(),
    "max_flops": whole(low=1).or_none(),
    "max_width": whole(low=1).or_none(),
    "round_to": whole(low=1),
    "moves": each(one_of("width", "depth", "prune")).or_none(),
    "max_seconds": positive().or_none(),
    "threads": whole(low=1).or_none(),
    "members": whole(low=1).or_none(),
    "linear": flag(),
    "target_transform": one_of("arcsinh", "none", None),
    "frontier": flag(),
    "calibrate": flag(),
    "seed": a_seed(),
}
"""Ranges of the fields of a `TrainConfig`."""


@_deprecated.aliased
@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Training configuration; the defaults suit tables and need no tuning.

    Attributes:
        hidden: widths of the hidden layers at the start; None for (64, 64), with the paper's policy (1,).
        shortcut: True to let the inputs also reach the outputs through one linear map; None for True, with the paper's
            policy False.
        activation: name of the activation (`relu`, `tanh`, `rational`, ...) or a module class; None for `relu`, with
            the paper's policy `rational`.
        optimizer: a `torch.optim` class by name in any case (`adam`, `sgd`, ...) or `natural-gradient`.
        lr: peak learning rate, above 0; None for the default of each optimizer.
        weight_decay: at least 0, passed to the optimizer; None for the default of each optimizer.
        optimizer_options: further keyword arguments of the optimizer.
        epochs: most passes over the training rows; None for as many as make about `steps` steps, between `min_epochs`
            and `max_epochs`.
        steps: optimizer steps aimed at when `epochs` is None.
        min_epochs: fewest epochs when `epochs` is None.
        max_epochs: most epochs when `epochs` is None.
        batch_size: rows per step; None for `max(64, rows / 512)`, at most 512.
        schedule: `tail` (constant, then linearly to zero over the last `tail` of the steps), `cosine` or `constant`.
        tail: fraction of the steps over which the learning rate falls and over which `swa` averages.
        validation_fraction: share of the rows held out for early stopping, 0 to 0.9; 0 for none.
        min_validation: fewest validation rows, up to a quarter of all of them; where that would be fewer, none are held
            out and the last epoch is kept.
        patience: epochs without a better validation figure after which the run is cut short, though never while the
            network may still grow. The `tail` of the learning rate starts then; with other schedules the run ends. None
            for a fifth of the epochs, at least 10; `math.inf` for never.
        monitor: figure that makes an epoch the best: the validation `loss`, or the `score` (accuracy, with the loss to
            break ties; for regression both agree), or a `senn.training.Metric`, a score of scikit-learn's. None for the
            score if there are at least 1,000 validation rows.
        average: average of the weights that is evaluated and kept: `ema` (updated every step), `swa` (every epoch of
            the tail) or None.
        average_decay: decay of the exponential moving average, 0 to 1.
        grow: False to keep the size of `hidden`.
        policy: object, or name (`price`, `paper`), that decides on growth; None for the price policy. By name, the
            paper's has its defaults and prunes what costs less than a hundredth of eta.
        birth: how what is added begins: `stepped`, with a part of its natural step; `silent`, without an effect;
            `plain` or `best`, as of a `Grower`. None leaves it to the policy.
        growth_steps: steps, from the first one on, in which growth takes place; the whole run if that is shorter.
        addition_rounds: rounds of additions, as fractions of these steps. Unless given, they are early for prices, and
            spread over the run for the paper's policy, as are the next.
        pruning_rounds: rounds in which units can only go, as fractions of these steps. Where both fall on one step, the
            round of additions takes place.
        candidates_per_layer: candidate units that a round samples for each layer; None for the default of
            `CandidateConfig`, with the paper's policy 100 where a `senn.nn.MLP` grows.
        ascent_steps: steps of gradient ascent of candidates before they are scored; None for 300 with the paper's
            policy where a `senn.nn.MLP` grows (ascent is for plain linear layers), else 0.
        max_scoring_samples: most training rows that a round scores candidates on.
        max_params: most parameters that growth may reach; None for no limit.
        max_flops: most operations of a forward pass, per row (`senn.flops.forward_flops`), that growth may reach; None
            for no limit.
        max_width: most units of a layer; None for no limit.
        round_to: grown widths are multiples of this.
        moves: moves that growth may make, of `width`, `depth` and `prune`; None for all of them, except that a
            `senn.nn.MLP` keeps its depth by the price policy where `hidden` isn't given: it starts with layers enough.
        max_seconds: most seconds that the run may take, former parts of a resumed run included; None for no limit. With
            less time than its steps need, the run plans fewer: the schedules of the learning rate and of growth are
            those of a shorter run, which ends with its validation and its frontier. Where no time is left for a round,
            it is left out. Reading data and writing results come on top.
        threads: number of threads that compute the steps on a CPU. None to let it follow from the work of a step, but
            to leave alone what OMP_NUM_THREADS, MKL_NUM_THREADS or `torch.set_num_threads` has set.
        calibrate: False to leave the outputs of a classifier as they were trained. Otherwise, at the end of the run,
            those of a `senn.nn.MLP` or `senn.nn.ConvNet` are scaled down where that lowers the loss on the validation
            rows, which makes probabilities honest and changes no prediction.
        members: number of networks of the size that is found whose predictions are averaged. All but the first are
            trained at that size from the start, each with validation rows of its own. None for 8 in tables of at most
            20,000 rows and 4 in those of at most 100,000, but 1 where a limit of size, the paper's policy, an
            average of weights or `grow=False` is given, or `max_seconds` leaves too little time.
        linear: False to keep the network of a table whatever a linear model does on the validation rows. Where its size
            is limited, it is kept in any case.
        target_transform: how numbers to predict are learned: `arcsinh` (by their inverse hyperbolic sine,
            `senn.nn.SinhOutput`), or `none` (as they are); None for the first where they are heavy-tailed.
        frontier: True to measure, once training is over, what the network that is kept would be at smaller sizes
            (`senn.frontier`), on the validation rows. `senn fit` does for tables; for images it costs about what ten
            rounds of removals do.
        seed: seed of everything drawn at random.

    Raises:
        SennError: a field is out of its range; the sentence names it.

    Example:
        >>> from senn.training import TrainConfig
        >>> config = TrainConfig(hidden=(8,), epochs=20, max_params=500)
        >>> resolved = config.plan(rows=1000)
        >>> resolved.batches, resolved.steps
        (16, 320)
        >>> TrainConfig(tail=2)
        Traceback (most recent call last):
        senn.errors.SennError: tail must be a number from 0 to 1, not 2
    """

    hidden: tuple[int, ...] | None = None
    shortcut: bool | None = None
    activation: Any = None
    optimizer: str = "adamw"
    lr: float | None = None
    weight_decay: float | None = None
    optimizer_options: Mapping[str, Any] = field(default_factory=dict)
    epochs: int | None = None
    # Small tables are fitted in so many steps; twice as many take twice the time.
    steps: int = 1500
    min_epochs: int = 15
    max_epochs: int = 120
    batch_size: int | None = None
    schedule: Literal["tail", "cosine", "constant"] = "tail"
    tail: float = 1 / 3
    validation_fraction: float = 0.1
    min_validation: int = 10
    patience: float | None = None
    monitor: Literal["loss", "score"] | Metric | None = None
    average: Literal["ema", "swa"] | None = None
    average_decay: float = 0.99
    grow: bool = True
    policy: Policy | str | None = None
    birth: BirthKind | None = None
    growth_steps: int = 2000
    addition_rounds: tuple[float, ...] = PRICE.addition_rounds
    pruning_rounds: tuple[float, ...] = PRICE.pruning_rounds
    candidates_per_layer: int | None = None
    ascent_steps: int | None = None
    # Covariances of a few hundred columns are well determined by that many; a round's time grows in proportion.
    max_scoring_samples: int = 4096
    max_params: int | None = None
    max_flops: int | None = None
    max_width: int | None = None
    round_to: int = 1
    moves: tuple[str, ...] | None = None
    max_seconds: float | None = None
    threads: int | None = None
    members: int | None = None
    linear: bool = True
    target_transform: Literal["arcsinh", "none"] | None = None
    calibrate: bool = True
    frontier: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self, RANGES)
        # an unknown name is refused where the policy is built
        is_unknown = isinstance(self.policy, str) and self.policy not in BY_NAME
        defaults = policy_defaults(None if is_unknown else self.policy)
        for name in ("addition_rounds", "pruning_rounds"):
            if isinstance(getattr(self, name), DefaultRounds):
                object.__setattr__(self, name, getattr(defaults, name))

    def start(self, name: Literal["hidden", "shortcut", "activation"]) -> Any:
        """Return a setting of a table's network at the start: as it was given, or as it follows from the policy.

        Args:
            name: of the field.

        Raises:
            SennError: no policy has the name that `policy` gives.
        """
        given = getattr(self, name)
        return getattr(policy_defaults(self.policy), name) if given is None else given

    def moves_of(self, *, is_table: bool) -> tuple[str, ...]:
        """Return the moves of a network: as they were given, or as they suit what it starts with.

        Args:
            is_table: True for a `senn.nn.MLP`, as tables have it.
        """
        if self.moves is not None:
            return self.moves
        starts_by_policy = is_table and self.hidden is None
        return policy_defaults(self.policy).moves if starts_by_policy else tuple(MOVES)

    def plan(self, rows: int) -> ResolvedConfig:
        """Resolve the settings that depend on the number of training rows.

        Args:
            rows: number of training rows, at least 1.
        """
        # About 512 steps an epoch, with 64 to 512 rows in each: rounds of growth are scheduled by steps, so even one
        # epoch of a large table has time for them.
        batch_size = self.batch_size or min(512, max(64, rows // 512))
        batches = max(1, round(rows / batch_size))
        epochs = self.epochs
        if epochs is None:
            wanted = round(self.steps / batches)
            epochs = max(self.min_epochs, min(self.max_epochs, wanted))
        steps = epochs * batches
        # A fifth of the run: less stops at chance fluctuations of small validation sets.
        patience = max(10, epochs // 5) if self.patience is None else self.patience
        last_round = max((*self.addition_rounds, *self.pruning_rounds), default=0.0)
        return ResolvedConfig(
            epochs=epochs,
            batches=batches,
            steps=steps,
            patience=patience,
            growth_end=round(last_round * min(steps, self.growth_steps)),
        )

    def validation_share(self, rows: int) -> float:
        """Return the share of the rows that is held out for validation; 0 for none.

        Args:
            rows: number of rows to train and to validate on.

        >>> from senn.training import TrainConfig
        >>> [TrainConfig().validation_share(rows) for rows in (1000, 50, 39)]
        [0.1, 0.2, 0.0]
        """
        wanted = self.validation_fraction
        if not wanted or round(wanted * rows) >= max(1, self.min_validation):
            return wanted
        # A few rows more are worth it: without any, no epoch is chosen, nothing calibrated, no linear model compared.
        fewest = max(1, self.min_validation)
        return fewest / rows if fewest <= _LARGEST_SHARE * rows else 0.0

    def lr_factor(self, progress: float) -> float:
        """Return the learning rate as a fraction of its peak.

        Args:
            progress: fraction of the steps that have been made, 0 to 1.
        """
        if self.schedule == "constant":
            return 1.0
        if self.schedule == "cosine":
            # (1 + cos(pi t)) / 2, Loshchilov & Hutter 2017, arXiv 1608.03983, without restarts.
            return 0.5 * (1 + math.cos(math.pi * progress))
        if self.tail == 0:
            return 1.0
        return min(1.0, (1 - progress) / self.tail)


@dataclass(frozen=True, kw_only=True)
class ResolvedConfig:
    """Settings of a run that follow from the number of training rows.

    Attributes:
        epochs: most passes over the data.
        batches: optimizer steps per epoch.
        steps: most optimizer steps.
        patience: epochs without improvement after which the run is cut short.
        growth_end: step up to which the network may grow; no run is cut short before it, that of a fixed network
            included, so that both stop by one rule.
    """

    epochs: int
    batches: int
    steps: int
    patience: float
    growth_end: int
