"""Images on their way into a network: standardized, and in training shifted and flipped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True, kw_only=True)
class ChannelStats:
    """Mean and deviation of each channel, by which bytes become numbers of mean 0 and deviation 1.

    Attributes:
        mean: means of the channels, of pixel values from 0 to 1.
        std: standard deviations of the channels, likewise.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, pixels: Tensor) -> ChannelStats:
        """Compute the statistics of training images.

        Args:
            pixels: (n, C, H, W) uint8.

        Example:
            >>> import torch
            >>> from senn.training.augment import ChannelStats
            >>> pixels = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1)
            >>> ChannelStats.of(pixels)
            ChannelStats(mean=(0.5,), std=(0.5,))
        """
        means, deviations = [], []
        values = torch.arange(256, dtype=torch.float64) / 255
        for channel in pixels.unbind(1):
            # By a histogram: exact in float64, and no copy of all pixels as floats.
            counts = torch.bincount(channel.flatten().int(), minlength=256).double()
            total = counts.sum()
            mean = float(counts @ values / total)
            variance = counts @ (values - mean).square() / total
            deviation = float(variance.sqrt())
            means.append(mean)
            # A channel that doesn't vary keeps its scale instead of dividing by zero.
            deviations.append(deviation if deviation > 1e-6 else 1.0)
        return cls(mean=tuple(means), std=tuple(deviations))

    def __call__(self, pixels: Tensor) -> Tensor:
        """Standardize images (n, C, H, W) from uint8 to float32."""
        # (p / 255 - mean) / std = (p - 255 mean) * 1 / (255 std), in place on the one float copy.
        offset = 255 * _per_channel(self.mean, pixels)
        scale = 1 / (255 * _per_channel(self.std, pixels))
        return pixels.float().sub_(offset).mul_(scale)


def _per_channel(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=like.device).view(1, -1, 1, 1)


def augment(x: Tensor, generator: torch.Generator, *, shift: int, flip: bool = True) -> Tensor:
    """Shift each image at random, with zeros coming in, and mirror half of them.

    Args:
        x: (n, C, H, W) standardized images.
        generator: a CPU generator, so that all devices draw the same.
        shift: most pixels of a shift in each direction.
        flip: True if mirror images look natural.

    Returns:
        Images of the same shape.
    """
    count, _, height, width = x.shape
    down = torch.randint(2 * shift + 1, (count, 1), generator=generator)
    across = torch.randint(2 * shift + 1, (count, 1), generator=generator)
    rows = down + torch.arange(height)
    columns = across + torch.arange(width)
    if flip:
        mirrored = torch.rand(count, 1, generator=generator) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    # One gather for all images: each has rows and columns of its own in the padded batch.
    padded = F.pad(x, (shift,) * 4).permute(0, 2, 3, 1)
    images = torch.arange(count)[:, None, None]
    rows, columns = rows[:, :, None], columns[:, None, :]
    if x.device.type != "cpu":
        images, rows, columns = images.to(x.device), rows.to(x.device), columns.to(x.device)
    # Contiguous: the strides of channels last make torch 2.13 write outside of its memory, on the CPU, in the backward
    # pass of narrow residual nets.
    return padded[images, rows, columns].permute(0, 3, 1, 2).contiguous()
