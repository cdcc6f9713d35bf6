"""Training on images in memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from senn import _deprecated
from senn.errors import SennError
from senn.nn import ConvNet
from senn.policies import PricePolicy
from senn.training.augment import ChannelStats, augment
from senn.training.batches import Inputs, partition
from senn.training.callbacks import Callback
from senn.training.loop import fit_model
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


PRICES = PricePolicy(kappa=0.02, confidence=0.0, retention_factor=1.67, max_places_per_round=3)
"""What a conv net pays for its units, and asks of them, unless said otherwise."""

START = 16
"""Width of every convolution at the start."""

_SMALLEST_MAP = 7
"""Maps are halved as long as they stay this large."""


def image_config(**choices: Any) -> TrainConfig:
    """Choices that suit conv nets on images; any field of `TrainConfig` may be said otherwise.

    `hidden` is empty unless said: `train_images` then starts from as many narrow convolutions as the size of the images
    asks for. `shortcut` and `activation` say nothing of a conv net. Only widths grow, of up to three layers in each of
    many rounds in the first steps. A look takes few images, on which promises are noisy: they are taken as they come,
    since rounds of removals follow.
    """
    named = str(choices.get("optimizer", "adamw")).lower()
    defaults: dict[str, Any] = {
        "hidden": (),
        "optimizer": "adamw",
        "lr": 1e-2 if named in ("adam", "adamw") else None,
        "steps": 4000,
        "min_epochs": 15,
        "max_epochs": 40,
        "batch_size": 128,
        "schedule": "cosine",
        "patience": math.inf,
        "policy": PRICES,
        "growth_steps": 4000,
        "addition_rounds": (0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.06, 0.08),
        "pruning_rounds": (0.4, 0.5),
        "candidates_per_layer": 32,
        "max_scoring_samples": 1024,
        "moves": ("width", "prune"),
    }
    return TrainConfig(**{**defaults, **choices})


def start_widths(side: int) -> tuple[int, ...]:
    """Widths of the convolutions that training starts from, for images of a side: one in the first stage, then two."""
    stages = _stage_count(side)
    return (START,) * (2 * stages - 1 if stages > 1 else 2)


def build_conv_net(channels: int, side: int, classes: int, hidden: Sequence[int]) -> ConvNet:
    """A fresh net for square images: as many stages as their side asks for, the widths dealt out from the last one.

    Raises:
        SennError: there are fewer widths than stages.
    """
    count = _stage_count(side)
    if len(hidden) < count:
        raise SennError(f"Images of side {side} need at least {count} hidden layers, not {len(hidden)}.")
    base, more = divmod(len(hidden), count)
    sizes = [base + (stage >= count - more) for stage in range(count)]
    ends = [sum(sizes[: stage + 1]) for stage in range(count)]
    stages = [tuple(hidden[end - size : end]) for size, end in zip(sizes, ends, strict=True)]
    return ConvNet(channels, stages, classes)


def _stage_count(side: int) -> int:
    return 1 + max(0, int(math.log2(max(side, 1) / _SMALLEST_MAP)))


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
    keeper: Checkpointer | None = None,
    device: torch.device | str | None = None,
) -> TrainResult:
    """Train a conv net that finds its own widths on images held in memory.

    As `train` does for tables: the global random state is left as it was, an interruption keeps the best net so far.
    The net takes standardised images, as `standard` makes them.

    Args:
        pixels: (n, C, side, side) uint8.
        labels: (n,) long, from 0 to classes - 1.
        classes: how many there are.
        standard: how bytes become numbers; None: by mean and deviation of `pixels`.
        shift: training images are shifted by up to so many pixels; None for an eighth of the side.
        flip: whether training images are mirrored at random.
        recipe: all other choices; None for `image_config()`.
        validation: pixels and labels to validate on; None: `recipe.validation_fraction` of the images, classes in
            proportion.
        callbacks: told of every event.
        keeper: keeps the run's state, and has one that is to be gone on with.
        device: where to train; None for a GPU if there is one. The net that comes back is on the CPU.

    Raises:
        SennError: for data or choices that make no sense, by name.
    """
    recipe = recipe or image_config()
    _check(pixels, labels, classes)
    side = pixels.shape[-1]
    recipe = recipe if recipe.hidden else replace(recipe, hidden=start_widths(side))
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    most = side // 8 if shift is None else shift
    inputs = Inputs(
        standard or ChannelStats.of(pixels),
        lambda x, generator: augment(x, generator, shift=most, flip=flip),
    )
    with torch.random.fork_rng(devices=[place] if place.type == "cuda" else []), torch.enable_grad():
        torch.manual_seed(recipe.seed)
        generator = torch.Generator().manual_seed(recipe.seed)
        given = None if validation is None else (validation[0].to(place), validation[1].to(place))
        rows, held_out = partition(pixels.to(place), labels.to(place), recipe, validation=given, generator=generator)
        model: nn.Module = build_conv_net(pixels.shape[1], side, classes, recipe.hidden).to(place)
        run = fit_model(
            model, rows, held_out, task="classification", recipe=recipe, generator=generator, callbacks=callbacks,
            inputs=inputs, keeper=keeper,
        )  # fmt: skip
    run.model.to("cpu")
    return run


def _check(pixels: Tensor, labels: Tensor, classes: int) -> None:
    if pixels.dim() != 4 or pixels.dtype != torch.uint8 or pixels.shape[2] != pixels.shape[3] or not pixels.numel():
        raise SennError(
            f"pixels must be bytes of square images (n, C, side, side), not {tuple(pixels.shape)} {pixels.dtype}."
        )
    if labels.shape != (len(pixels),) or labels.dtype != torch.long or labels.min() < 0 or labels.max() >= classes:
        raise SennError(f"labels must be {len(pixels):,} class numbers from 0 to {classes - 1} as torch.long.")
