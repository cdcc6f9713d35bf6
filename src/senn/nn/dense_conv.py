"""Convolutional network of the paper: blocks in which every layer reads all earlier ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from senn._validate import Rule, check_arguments, each, flag, whole


class DenseConvNet(nn.Module):
    """Blocks of densely connected 3 x 3 convolutions with swish and without norms.

    Maps (N, in_channels, H, W) to (N, classes). Layer k of a block reads the block's input, concatenated with the
    outputs of the block's earlier layers. The output of the last layer is that of the block, and a 3 x 3 max-pool of
    stride 2 follows. After the last block come global average pooling and a linear map (Mitchell et al. 2023,
    *Self-Expanding Neural Networks*, arXiv 2307.04526, section 4).

    Args:
        in_channels: number of input channels.
        hidden: channels of each layer, block by block: `((8, 8), (16, 16))`.
        classes: size of the output.
        bias: True for biases in the convolutions and the linear map; the paper's have none.

    Raises:
        SennError: an argument is out of range, or a block has no layers.

    >>> DenseConvNet(3, ((8, 8), (16,)), 10).hidden
    ((8, 8), (16,))
    """

    _RANGES: ClassVar[Mapping[str, Rule]] = {
        "in_channels": whole(low=1),
        "hidden": each(each(whole(low=1), nonempty=True), nonempty=True),
        "classes": whole(low=1),
        "bias": flag(),
    }

    def __init__(
        self, in_channels: int, hidden: Sequence[Sequence[int]], classes: int, bias: bool = False
    ) -> None:
        super().__init__()
        check_arguments(self._RANGES, locals())
        self.blocks = nn.ModuleList()
        entering = in_channels
        for block in hidden:
            layers = nn.ModuleList()
            for width in block:
                layers.append(_convolution(entering, width, bias))
                entering += width  # the next layer reads this one's output as well
            self.blocks.append(layers)
            entering = block[-1]
        self.head = nn.Linear(entering, classes, bias)

    @property
    def hidden(self) -> tuple[tuple[int, ...], ...]:
        """Current channels of each layer, block by block."""
        return tuple(
            tuple(_last(layer).weight.shape[0] for layer in _layers(block)) for block in self.blocks
        )

    def forward(self, x: Tensor) -> Tensor:
        """Compute the class scores, (N, classes)."""
        for block in self.blocks:
            features = [x]
            for layer in _layers(block):
                features.append(F.silu(layer(torch.cat(features, 1))))
            # padding=1 halves odd sizes upward, so 1 x 1 stays 1 x 1 however many blocks follow.
            x = F.max_pool2d(features[-1], 3, stride=2, padding=1)
        scores: Tensor = self.head(x.mean((2, 3)))
        return scores


def _convolution(entering: int, leaving: int, bias: bool) -> nn.Conv2d:
    """Create a convolution whose initial weights keep the scale of the signal through swish."""
    layer = nn.Conv2d(entering, leaving, 3, padding=1, bias=bias)
    # PyTorch has no gain for swish; that of ReLU is close enough for a few layers.
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    return layer


def _layers(block: nn.Module) -> list[nn.Module]:
    return list(block.children())


def _last(layer: nn.Module) -> nn.Conv2d:
    """Return the layer's own convolution; layers inserted before it come first."""
    return [module for module in layer.modules() if isinstance(module, nn.Conv2d)][-1]
