"""Models, optimizers and growers, built from a training configuration."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from senn._text import did_you_mean
from senn.candidates.candidate_config import CandidateConfig
from senn.errors import SennError, UnsupportedError
from senn.flops import forward_flops, known_flops
from senn.grower import Grower
from senn.nn import MLP, Ensemble
from senn.optim import NaturalGradient
from senn.policies import Budget, Policy
from senn.training.policy_defaults import policy_defaults
from senn.training.train_config import Task, TrainConfig
from senn.training.train_result import count_parameters

# Learning rates that suit small networks on standardized tables, by optimizer; others keep torch's own default.
_LR = {"adam": 5e-3, "adamw": 4e-3, "nadam": 5e-3, "radam": 5e-3, "rmsprop": 2e-3, "sgd": 0.1}
_ADAMW_WEIGHT_DECAY = 0.15
_BETAS = (0.9, 0.99)
"""Of the Adam family. Runs have about 1,500 steps: torch's 0.999 would average over most of them."""

# These need a closure, sparse gradients or matrices only.
_UNSUITED = {"lbfgs", "sparseadam", "muon"}
NATURAL_GRADIENT = "natural-gradient"
ELEMENTWISE = frozenset(
    [
        "adadelta",
        "adagrad",
        "adam",
        "adamax",
        "adamw",
        "asgd",
        "nadam",
        "radam",
        "rmsprop",
        "rprop",
        "sgd",
    ]
)
"""Optimizers that treat each number by itself, so that several networks may lie in one tensor."""


def check_budget(model: nn.Module, recipe: TrainConfig, row: Tensor) -> None:
    """Refuse a limit that a network exceeds before training, or that can't be kept to.

    Args:
        model: network before training.
        recipe: training configuration.
        row: (1, ...) inputs of one row, as the network reads them.

    Raises:
        SennError: naming the limit and the network's own number.
        UnsupportedError: the network has operations whose work isn't known.
    """
    if not recipe.grow:
        return
    parameters = count_parameters(model)
    if recipe.max_params is not None and parameters > recipe.max_params:
        raise SennError(
            f"max_params is {recipe.max_params}, but the net starts with {parameters} parameters"
        )
    if recipe.max_flops is not None:
        flops = known_flops(model, row)
        if flops > recipe.max_flops:
            raise SennError(
                f"max_flops is {recipe.max_flops}, but the net starts with {flops} operations a row"
            )


def loss_function(task: Task) -> Callable[..., Tensor]:
    """Return the loss of a task, a function of `torch.nn.functional`: mean over samples, `reduction` as a keyword."""
    return F.cross_entropy if task == "classification" else F.mse_loss


def mean_loss(
    loss: Callable[..., Tensor], output: Tensor, target: Tensor, weight: Tensor | None = None
) -> Tensor:
    """Compute the mean loss of rows.

    Args:
        loss: as of `loss_function`.
        output: (rows, outputs).
        target: (rows,) classes, or (rows, outputs) numbers.
        weight: (rows,) with mean 1; None for equal weights.

    Returns:
        A scalar.
    """
    if weight is None:
        return loss(output, target)
    # Weights have mean 1, so the mean of weighted losses is that of repeated rows. A squared error has one number for
    # each output, a cross-entropy one for each row.
    losses = loss(output, target, reduction="none")
    per_row = losses.flatten(1).mean(1) if losses.dim() > 1 else losses
    return (per_row * weight).mean()


def start_widths(features: int, outputs: int, recipe: TrainConfig) -> tuple[int, ...]:
    """Return the widths that a table's network starts with.

    Args:
        features: number of inputs.
        outputs: number of outputs.
        recipe: its widths; without any those of the policy, halved until they keep to `max_width`, `max_params` and
            `max_flops`.

    Raises:
        SennError: the activation is unknown.

    Example:
        >>> from senn.training.train_config import TrainConfig
        >>> from senn.training.builders import start_widths
        >>> start_widths(10, 2, TrainConfig()), start_widths(10, 2, TrainConfig(max_params=1000))
        ((64, 64), (16, 16))
    """
    widths: tuple[int, ...] = recipe.start("hidden")
    if recipe.hidden is not None:
        return widths
    while max(widths) > 1 and not _fits(features, outputs, widths, recipe):
        widths = tuple(max(1, width // 2) for width in widths)
    return widths


def _fits(features: int, outputs: int, widths: tuple[int, ...], recipe: TrainConfig) -> bool:
    if recipe.max_width is not None and max(widths) > recipe.max_width:
        return False
    if recipe.max_params is None and recipe.max_flops is None:
        return True
    limits = Budget(max_params=recipe.max_params, max_flops=recipe.max_flops)
    with torch.device("meta"):
        model = _mlp(features, widths, outputs, recipe)
        flops = None if recipe.max_flops is None else forward_flops(model, torch.empty(1, features))
    return limits.allows_size(count_parameters(model), flops)


def _mlp(features: int, widths: tuple[int, ...], outputs: int, recipe: TrainConfig) -> MLP:
    activation, shortcut = recipe.start("activation"), recipe.start("shortcut")
    return MLP(features, widths, outputs, activation=activation, shortcut=shortcut)


def most_inputs(recipe: TrainConfig) -> int | None:
    """Return how many inputs leave room for hidden units within the limits of a network's size; None for any number.

    Args:
        recipe: the limits; each input is given sixteen weights of them.
    """
    limits = []
    if recipe.max_params is not None:
        limits.append(recipe.max_params // 16)
    if recipe.max_flops is not None:
        limits.append(recipe.max_flops // 32)  # two operations a weight
    return min(limits, default=None)


def build_model(features: int, outputs: int, recipe: TrainConfig) -> MLP:
    """Build a fresh network that predicts the mean.

    Args:
        features: number of inputs.
        outputs: number of outputs.
        recipe: widths, activation and shortcut.

    Raises:
        SennError: the activation is unknown.
    """
    model = _mlp(features, start_widths(features, outputs, recipe), outputs, recipe)
    linear = [module for module in model.body.modules() if isinstance(module, nn.Linear)]
    # Output weights of zero, as those of units that grow: with standardized targets the start is the mean prediction,
    # and fixed networks start from the same loss (docs/criteria.md).
    nn.init.zeros_(linear[-1].weight)
    nn.init.zeros_(linear[-1].bias)
    return model


def check_optimizer(name: str) -> None:
    """Refuse the name of an optimizer that can't be built, without building one.

    Args:
        name: as in `TrainConfig.optimizer`.

    Raises:
        SennError: no optimizer has that name.
        UnsupportedError: it needs other steps than those of a `TrainStep`.
    """
    known = name.lower().replace("_", "-")
    if known != NATURAL_GRADIENT:
        _optimizer_class(known)


def build_optimizer(
    model: nn.Module, recipe: TrainConfig, loss: Callable[..., Tensor]
) -> torch.optim.Optimizer:
    """Build the optimizer that a configuration names.

    Args:
        model: its parameters are optimized.
        recipe: name and options of the optimizer.
        loss: training loss, for the natural gradient.

    Raises:
        SennError: the optimizer is unknown, or doesn't take the options.
        UnsupportedError: the optimizer needs other steps than those of a `TrainStep`.
    """
    name = recipe.optimizer.lower().replace("_", "-")
    options: dict[str, Any] = dict(recipe.optimizer_options)
    lr = recipe.lr or _LR.get(name)
    if lr is not None:
        options["lr"] = lr
    if recipe.weight_decay is not None:
        options["weight_decay"] = recipe.weight_decay
    try:
        if name == NATURAL_GRADIENT:
            return NaturalGradient(model, loss=loss, **options)
        cls = _optimizer_class(name)
        return cls(model.parameters(), **{**_default_options(name, cls), **options})
    except (TypeError, ValueError) as error:
        # A SennError is a ValueError, too, and says it better.
        if isinstance(error, SennError):
            raise
        raise SennError(f"the optimizer {recipe.optimizer!r} cannot be made: {error}") from error


def _default_options(name: str, cls: type[torch.optim.Optimizer]) -> dict[str, Any]:
    """Choose options, where they differ from torch's, among those that the optimizer takes."""
    # Fused steps, since the overhead of kernels dominates in small networks.
    defaults: dict[str, Any] = {
        "betas": _BETAS,
        "fused": True,
        "momentum": 0.9 if name == "sgd" else 0.0,
    }
    if name == "adamw":
        defaults["weight_decay"] = _ADAMW_WEIGHT_DECAY
    accepted = inspect.signature(cls).parameters
    return {key: value for key, value in defaults.items() if key in accepted}


def _optimizer_class(name: str) -> type[torch.optim.Optimizer]:
    base = torch.optim.Optimizer
    known = {
        key.lower(): value
        for key, value in vars(torch.optim).items()
        if isinstance(value, type) and issubclass(value, base) and value is not base
    }
    if name in _UNSUITED:
        raise UnsupportedError(
            f"the optimizer {name!r} cannot be used here: it needs other steps than this loop makes"
        )
    if name not in known:
        names = ", ".join([*sorted(known.keys() - _UNSUITED), NATURAL_GRADIENT])
        guess = did_you_mean(name, [*known, NATURAL_GRADIENT])
        raise SennError(f"unknown optimizer {name!r}{guess}; known are {names}")
    return known[name]


def build_grower(
    model: nn.Module, optimizer: torch.optim.Optimizer, recipe: TrainConfig, **arguments: Any
) -> Grower:
    """Build the grower that a configuration describes.

    Args:
        model: the model.
        optimizer: holds its parameters.
        recipe: policy, budgets, moves, candidates and seed.
        arguments: further keyword arguments of `Grower`, which don't depend on the configuration.

    Raises:
        SennError: an argument is out of range, or the optimizer doesn't hold the model's parameters.
    """
    return Grower(
        model,
        optimizer,
        policy=resolve_policy(recipe.policy),
        max_params=recipe.max_params,
        max_flops=recipe.max_flops,
        max_width=recipe.max_width,
        round_to=recipe.round_to,
        moves=recipe.moves_of(is_table=isinstance(model, MLP | Ensemble)),
        candidate_config=_candidate_config(model, recipe),
        birth=recipe.birth,
        seed=recipe.seed,
        **arguments,
    )


def resolve_policy(policy: Policy | str | None) -> Policy:
    """Return the policy that a setting means: an object, a name (`price`, `paper`), or None for the price policy.

    Raises:
        SennError: no policy has that name.
    """
    by_name = policy is None or isinstance(policy, str)
    return policy_defaults(policy).policy if by_name else cast(Policy, policy)


def _candidate_config(model: nn.Module, recipe: TrainConfig) -> CandidateConfig:
    """What a round offers: as the policy has it in an MLP, changed by what the recipe says."""
    # Ascent takes plain linear layers, each applied once.
    config = (
        policy_defaults(recipe.policy).candidates if isinstance(model, MLP) else CandidateConfig()
    )
    units, steps = recipe.candidates_per_layer, recipe.ascent_steps
    return replace(
        config,
        units=config.units if units is None else units,
        ascent_steps=config.ascent_steps if steps is None else steps,
        # With an activation of the user's own, new layers have the one that the model uses nearby.
        activation=config.activation if recipe.activation is None else None,
    )
