"""The paper's convolutional network: blocks in which every layer reads all earlier ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from senn._validate import Rule, check_arguments, each, flag, whole


class DenseConvNet(nn.Module):
    """Blocks of densely connected 3 x 3 convolutions with swish and no norm, (N, in_channels, H, W) to (N, classes).

    Layer k of a block reads the block's input beside the outputs of the block's earlier layers. What the last layer
    gives is the block's output; a 3 x 3 max-pool of stride 2 follows. After the last block come the global average and
    a linear map (Mitchell et al., Self-Expanding Neural Networks, arXiv 2307.04526, section 4).

    Args:
        in_channels: of the images.
        hidden: channels of each layer, block by block: `((8, 8), (16, 16))`.
        classes: size of the output.
        bias: whether the convolutions and the linear map have biases; those of the paper have none.

    Raises:
        SennError: a size isn't positive, or there is a block without layers.

    >>> DenseConvNet(3, ((8, 8), (16,)), 10).hidden
    ((8, 8), (16,))
    """

    _RANGES: ClassVar[Mapping[str, Rule]] = {
        "in_channels": whole(low=1),
        "hidden": each(each(whole(low=1), nonempty=True), nonempty=True),
        "classes": whole(low=1),
        "bias": flag(),
    }

    def __init__(self, in_channels: int, hidden: Sequence[Sequence[int]], classes: int, bias: bool = False) -> None:
        super().__init__()
        check_arguments(self._RANGES, locals())
        self.blocks = nn.ModuleList()
        entering = in_channels
        for block in hidden:
            read = accumulate(block[:-1], initial=entering)
            self.blocks.append(nn.ModuleList(_convolution(i, o, bias) for i, o in zip(read, block, strict=True)))
            entering = block[-1]
        self.head = nn.Linear(entering, classes, bias)

    @property
    def hidden(self) -> tuple[tuple[int, ...], ...]:
        """Channels of each layer as they are now, block by block."""
        return tuple(tuple(_last(layer).weight.shape[0] for layer in _layers(block)) for block in self.blocks)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores (N, classes)."""
        for block in self.blocks:
            seen = [x]
            for layer in _layers(block):
                seen.append(F.silu(layer(torch.cat(seen, 1))))
            x = F.max_pool2d(seen[-1], 3, stride=2, padding=1)
        scores: Tensor = self.head(x.mean((2, 3)))
        return scores


def _convolution(entering: int, leaving: int, bias: bool) -> nn.Conv2d:
    """Weights that keep the signal's size through swish, about as through ReLU."""
    layer = nn.Conv2d(entering, leaving, 3, padding=1, bias=bias)
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    return layer


def _layers(block: nn.Module) -> list[nn.Module]:
    return list(block.children())


def _last(layer: nn.Module) -> nn.Conv2d:
    """The convolution itself, whatever has been inserted before it."""
    return [module for module in layer.modules() if isinstance(module, nn.Conv2d)][-1]
