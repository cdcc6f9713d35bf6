"""Training on images in memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from senn import _deprecated
from senn.errors import SennError
from senn.nn import ConvNet
from senn.policies import PricePolicy
from senn.training.augment import ChannelStats, augment
from senn.training.batches import Inputs, partition
from senn.training.callbacks import Callback
from senn.training.loop import fit_model
from senn.training.policy_defaults import PRICE, policy_defaults
from senn.training.run_state import Checkpointer
from senn.training.train_config import TrainConfig
from senn.training.train_result import TrainResult

__all__ = [
    "build_conv_net",
    "image_config",
    "start_widths",
    "train_images",
]

if not TYPE_CHECKING:
    __getattr__ = _deprecated.old_names(__name__)


# Scored on 1,024 images, expected decreases are noisy. They are taken as they are (confidence 0) at a low price, and
# pruning rounds take back what was luck: to stay, a unit must then be worth 1.67 times its price.
PRICES = PricePolicy(kappa=0.02, confidence=0.0, retention_factor=1.67, max_places_per_round=3)
"""Policy of a conv net, unless the configuration has another."""

START = 16
"""Width of every convolution at the start."""

# The last maps are 7 to 13 pixels wide: half of that leaves little to convolve, double makes four times the cost.
_SMALLEST_MAP = 7
"""Smallest side of a feature map that is halved again."""


def image_config(**choices: Any) -> TrainConfig:
    """Build the configuration that suits conv nets on images.

    Only widths grow, of up to three layers in each of many rounds in the first steps. A round scores candidates on few
    images, which makes expected decreases noisy; no standard error is taken off them, since pruning rounds follow.

    Args:
        choices: fields of `TrainConfig` that shall differ. With `hidden` left empty, `train_images` starts from as many
            narrow convolutions as the size of the images suggests. `shortcut` and `activation` have no effect on a conv
            net.

    Raises:
        SennError: a choice is out of range; the sentence names it.

    Example:
        >>> from senn.training.image_training import image_config
        >>> config = image_config(lr=0.02, max_params=50_000)
        >>> config.schedule, config.moves
        ('cosine', ('width', 'prune'))
    """
    optimizer = str(choices.get("optimizer", "adamw")).lower()
    defaults: dict[str, Any] = {
        "hidden": (),
        "optimizer": "adamw",
        # Ten times torch's own default, which batch norms allow.
        "lr": 1e-2 if optimizer in ("adam", "adamw") else None,
        "steps": 4000,
        "min_epochs": 15,
        "max_epochs": 40,
        "batch_size": 128,
        "schedule": "cosine",
        # A cosine is at its best at its end: stopping before would waste it.
        "patience": math.inf,
        "policy": PRICES,
        "growth_steps": 4000,
        "addition_rounds": (0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.06, 0.08),
        "pruning_rounds": (0.4, 0.5),
        "candidates_per_layer": 32,
        "max_scoring_samples": 1024,
        # The depth is that of the stages.
        "moves": ("width", "prune"),
    }
    # Rounds of the paper's policy follow from it.
    if policy_defaults(choices.get("policy")) is not PRICE:
        del defaults["addition_rounds"], defaults["pruning_rounds"]
    return TrainConfig(**{**defaults, **choices})


def start_widths(side: int) -> tuple[int, ...]:
    """Return the widths of the convolutions that training starts from: one in the first stage, two in each further one.

    Args:
        side: side of the images, in pixels.
    """
    stages = _stage_count(side)
    return (START,) * (2 * stages - 1 if stages > 1 else 2)


def build_conv_net(channels: int, side: int, classes: int, hidden: Sequence[int]) -> ConvNet:
    """Build a fresh network for square images, with as many stages as their side suggests.

    Args:
        channels: channels of the images.
        side: side of the images, in pixels.
        classes: number of outputs.
        hidden: widths of the convolutions; where they can't be dealt out evenly, later stages have one more.

    Raises:
        SennError: there are fewer widths than stages.
    """
    count = _stage_count(side)
    if len(hidden) < count:
        raise SennError(
            f"images of side {side} need at least {count} hidden layers, not {len(hidden)}"
        )
    # One more in each of the last stages, where maps are small and a convolution is cheap.
    base, more = divmod(len(hidden), count)
    stages: list[tuple[int, ...]] = []
    dealt = 0
    for stage in range(count):
        size = base + (stage >= count - more)
        stages.append(tuple(hidden[dealt : dealt + size]))
        dealt += size
    return ConvNet(channels, stages, classes)


def _stage_count(side: int) -> int:
    halvings = int(math.log2(max(side, 1) / _SMALLEST_MAP))
    return 1 + max(0, halvings)


@_deprecated.keywords
def train_images(
    pixels: Tensor,
    labels: Tensor,
    *,
    classes: int,
    standard: ChannelStats | None = None,
    shift: int | None = None,
    flip: bool = True,
    recipe: TrainConfig | None = None,
    validation: tuple[Tensor, Tensor] | None = None,
    callbacks: Sequence[Callback] = (),
    checkpointer: Checkpointer | None = None,
    device: torch.device | str | None = None,
    model: ConvNet | None = None,
) -> TrainResult:
    """Train a conv net that finds its own widths on images held in memory.

    As with `train` for tables, the global random state is left as it was, and an interruption keeps the best network so
    far. The network takes standardized images, as `standard` makes them.

    Args:
        pixels: (n, C, side, side) uint8.
        labels: (n,) long, from 0 to classes - 1.
        classes: number of classes.
        standard: turns bytes into numbers; None for the mean and the deviation of `pixels`.
        shift: most pixels by which training images are shifted; None for an eighth of the side.
        flip: True to mirror half of the training images.
        recipe: all other choices; None for `image_config()`.
        validation: pixels and labels to validate on; None to hold out `recipe.validation_fraction` of the images,
            classes in proportion.
        callbacks: listeners to the records.
        checkpointer: saves the state of the run, and has the state to resume from, if any; None to save nothing.
        device: where to train; None for a GPU if there is one. The network that is returned is on the CPU.
        model: a network that goes on, with `classes` outputs; its widths replace those of the recipe. None for a fresh
            one.

    Returns:
        The best network, and the history of the run.

    Raises:
        SennError: data or a choice is out of range; the sentence names it.
    """
    recipe = recipe or image_config()
    _check(pixels, labels, classes)
    side = pixels.shape[-1]
    hidden = model.hidden if model is not None else recipe.hidden or start_widths(side)
    recipe = replace(recipe, hidden=hidden)
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    most = side // 8 if shift is None else shift
    inputs = Inputs(
        standard or ChannelStats.of(pixels),
        lambda x, generator: augment(x, generator, shift=most, flip=flip),
    )
    with (
        torch.random.fork_rng(devices=[place] if place.type == "cuda" else []),
        torch.enable_grad(),
    ):
        torch.manual_seed(recipe.seed)
        generator = torch.Generator().manual_seed(recipe.seed)
        if validation is not None:
            validation = validation[0].to(place), validation[1].to(place)
        rows, held_out = partition(
            pixels.to(place), labels.to(place), recipe, validation=validation, generator=generator
        )
        # Built on the CPU, so that all devices draw the same weights.
        begun = model or build_conv_net(pixels.shape[1], side, classes, hidden)
        run = fit_model(
            begun.to(place),
            rows,
            held_out,
            task="classification",
            recipe=recipe,
            generator=generator,
            callbacks=callbacks,
            inputs=inputs,
            checkpointer=checkpointer,
        )
    # As with tables: what is saved or predicted with doesn't depend on where it was trained.
    run.model.to("cpu")
    return run


def _check(pixels: Tensor, labels: Tensor, classes: int) -> None:
    is_square = pixels.dim() == 4 and pixels.shape[2] == pixels.shape[3]
    if not is_square or pixels.dtype != torch.uint8 or not pixels.numel():
        raise SennError(
            f"pixels must be bytes of square images (n, C, side, side), not {tuple(pixels.shape)} {pixels.dtype}"
        )
    if (
        labels.shape != (len(pixels),)
        or labels.dtype != torch.long
        or labels.min() < 0
        or labels.max() >= classes
    ):
        raise SennError(
            f"labels must be {len(pixels):,} class numbers from 0 to {classes - 1} as torch.long"
        )
