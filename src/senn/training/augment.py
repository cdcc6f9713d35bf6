"""Images on their way into a network: standardised, and in training shifted and flipped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True, kw_only=True)
class ChannelStats:
    """Bytes as numbers of mean 0 and deviation 1 in each channel.

    Attributes:
        mean: of each channel, of pixels from 0 to 1.
        std: likewise.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, pixels: Tensor) -> ChannelStats:
        """From training images (N, C, H, W) uint8; a channel that doesn't vary keeps its scale."""
        mean, std = [], []
        for channel in pixels.unbind(1):
            counts = torch.bincount(channel.flatten().int(), minlength=256).double()
            value = torch.arange(256, dtype=torch.float64) / 255
            center = float(counts @ value / counts.sum())
            spread = float((counts @ (value - center).square() / counts.sum()).sqrt())
            mean.append(center)
            std.append(spread if spread > 1e-6 else 1.0)
        return cls(mean=tuple(mean), std=tuple(std))

    def __call__(self, pixels: Tensor) -> Tensor:
        """(N, C, H, W) uint8 as float32."""
        mean, scale = _column(self.mean, pixels), 1 / (255 * _column(self.std, pixels))
        return pixels.float().sub_(255 * mean).mul_(scale)


def _column(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=like.device).view(1, -1, 1, 1)


def augment(x: Tensor, generator: torch.Generator, *, shift: int, flip: bool = True) -> Tensor:
    """Each image (N, C, H, W) flipped or not, and shifted by up to `shift` pixels either way, zeros coming in.

    Args:
        x: standardised images.
        generator: a CPU generator, so that all devices draw the same.
        shift: most pixels.
        flip: whether mirror images look natural.
    """
    count, _, height, width = x.shape
    down, across = (torch.randint(2 * shift + 1, (count, 1), generator=generator) for _ in range(2))
    rows = down + torch.arange(height)
    columns = across + torch.arange(width)
    if flip:
        mirrored = torch.rand(count, 1, generator=generator) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    padded = F.pad(x, (shift,) * 4).permute(0, 2, 3, 1)
    at = torch.arange(count)[:, None, None]
    rows, columns = rows[:, :, None], columns[:, None, :]
    if x.device.type != "cpu":
        at, rows, columns = at.to(x.device), rows.to(x.device), columns.to(x.device)
    return padded[at, rows, columns].permute(0, 3, 1, 2)
