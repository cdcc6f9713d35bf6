"""What the experiments on images share: parts of a set on a device, batches, accuracy, the learning rate's cycle."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from senn.data.images import Images, planes
from senn.errors import SennError
from senn.training.augment import ChannelStats
from senn_reproduce.image_sets import load_images


@dataclass(frozen=True, eq=False)
class Part:
    """Labelled images on a device.

    Attributes:
        pixels: (N, C, side, side) uint8.
        labels: (N,) int64.
    """

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.pixels)


@dataclass(frozen=True, eq=False)
class Data:
    """A set of images as an experiment uses it.

    Attributes:
        train: what is learnt from.
        validation: images held out of the training images, for choices and curves.
        test: looked at once, at the end of a run.
        classes: how many.
        standard: of the training images.
    """

    train: Part
    validation: Part
    test: Part
    classes: int
    standard: ChannelStats


def pick_device(device: str | None) -> torch.device:
    """Return the device of that name; for None a GPU where there is one, else the CPU.

    Raises:
        SennError: there is no such device here.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
        return torch.device(device)
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was built for CUDA
        raise SennError(
            f"the device {device!r} can't be used: {str(error).splitlines()[0]}"
        ) from error


def load(
    name: str,
    side: int,
    train: int | None,
    validation: int,
    seed: int,
    data_dir: Path | None = None,
    device: torch.device | str = "cpu",
) -> Data:
    """A set of `senn.data.images`, resized.

    Args:
        name: of the set.
        side: of the images, in pixels.
        train: training images, drawn by the seed; None for all that aren't held out.
        validation: images held out of the training images, drawn by the seed.
        seed: of the draw.
        data_dir: folder of the files, as in `load_images`.
        device: where the tensors go.

    Raises:
        SennError: there aren't that many images, or they can't be read.
    """
    whole = load_images(name, data_dir).hold_out(validation, seed)
    assert whole.validation is not None
    count = len(whole.train) if train is None else train
    if not 0 < count <= len(whole.train):
        raise SennError(
            f"{count:,} training images of {name} are asked for, and there are {len(whole.train):,}"
        )
    chosen = whole.train.take(np.arange(count))  # `hold_out` has shuffled them
    first, held, test = (
        _part(images, side, device) for images in (chosen, whole.validation, whole.test)
    )
    return Data(first, held, test, len(whole.classes), ChannelStats.of(first.pixels))


def _part(images: Images, side: int, device: torch.device | str) -> Part:
    return Part(
        torch.tensor(planes(images, side), device=device),
        torch.tensor(images.labels, device=device),
    )


def batches(part: Part, size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Pixels and labels of one epoch in a random order; what doesn't fill a batch is left out.

    Args:
        part: images.
        size: of a batch; all images where there are fewer.
        generator: a CPU generator, so that all devices draw the same.
    """
    size = min(size, len(part))
    order = torch.randperm(len(part), generator=generator).to(part.labels.device)
    for rows in torch.split(order[: len(part) // size * size], size):
        yield part.pixels[rows], part.labels[rows]


@torch.no_grad()
def accuracy_and_loss(
    model: nn.Module, part: Part, standard: ChannelStats, size: int = 500
) -> dict[str, float]:
    """Compute accuracy and mean cross-entropy in nats in eval mode; the model's mode is restored.

    Args:
        model: the network.
        part: labeled images.
        standard: mean and deviation of each channel.
        size: images at a time.

    Returns:
        `accuracy`, from 0 to 1, and `loss`.
    """
    training = model.training
    model.eval()
    try:
        logits = torch.cat([model(standard(pixels)) for pixels in torch.split(part.pixels, size)])
    finally:
        model.train(training)
    right = (logits.argmax(1) == part.labels).double().mean()
    return {"accuracy": float(right), "loss": float(F.cross_entropy(logits, part.labels))}


def one_cycle(progress: float, rise: float = 0.1) -> float:
    """Return the learning rate over its peak: a cosine up from 1/25, then one down to zero.

    Args:
        progress: of the training, in [0, 1].
        rise: progress at which the peak is reached.

    Returns:
        A factor in [0, 1].
    """
    if progress < rise:
        return 1 / 25 + (1 - 1 / 25) * (0.5 - 0.5 * math.cos(math.pi * progress / rise))
    return 0.5 + 0.5 * math.cos(math.pi * (progress - rise) / (1 - rise))
