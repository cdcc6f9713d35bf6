"""A convolution as a linear map of patches.

Layout: a patch is (in * taps,), input channel by input channel, taps inside in row-major order, so that the map's
matrix is `weight.flatten(1)`; rows are sample-major, one for each output location.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d


def patches(layer: Convolution, x: Tensor) -> Tensor:
    """Rows (samples * locations, in * taps) that an ungrouped convolution reads of x (samples, in, *spatial)."""
    spatial = x.dim() - 2
    x = F.pad(x, layer._reversed_padding_repeated_twice)
    for dim, (size, stride, dilation) in enumerate(zip(layer.kernel_size, layer.stride, layer.dilation, strict=True)):
        x = x.unfold(2 + dim, dilation * (size - 1) + 1, stride)[..., ::dilation]
    # (samples, in, *locations, *taps)
    order = [0, *range(2, 2 + spatial), 1, *range(2 + spatial, 2 + 2 * spatial)]
    taps = x.shape[1] * torch.Size(layer.kernel_size).numel()
    return x.permute(order).reshape(-1, taps)


def rows_in(layer: nn.Module, x: Tensor) -> Tensor:
    """Rows that a linear layer or a convolution reads, of at least float32."""
    rows = patches(layer, x) if isinstance(layer, Convolution) else x.reshape(-1, x.shape[-1])
    return rows.float() if rows.dtype in (torch.float16, torch.bfloat16) else rows


def rows_out(layer: nn.Module, z: Tensor) -> Tensor:
    """Rows of what it gives, or of a gradient there, in the same order."""
    z = z.movedim(1, -1) if isinstance(layer, Convolution) else z
    rows = z.reshape(-1, z.shape[-1])
    return rows.float() if rows.dtype in (torch.float16, torch.bfloat16) else rows


def rows_width(layer: nn.Module, z: Tensor) -> int:
    """Number of outputs at one location."""
    return z.shape[1] if isinstance(layer, Convolution) else z.shape[-1]
