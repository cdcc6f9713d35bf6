"""A convolutional network of ordinary layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from senn._validate import Rule, check_arguments, each, whole


class ConvNet(nn.Module):
    """Stages of 3 x 3 convolutions with max-pooling between them.

    Maps (N, in_channels, H, W) to (N, out_features). Each hidden layer is a Conv2d without bias, BatchNorm2d and ReLU.
    2 x 2 max-pooling halves the feature maps between stages, and global average pooling follows the last stage. All of
    this is in `body`, an `nn.Sequential`, before the linear `head`. Images may have any size that leaves at least 1 x 1
    after the last halving.

    Args:
        in_channels: number of input channels.
        stages: widths of the convolutions of each stage, in order.
        out_features: size of the output.

    Raises:
        SennError: an argument is out of range.

    >>> import torch
    >>> model = ConvNet(3, ((8,), (16, 16)), out_features=10)
    >>> model.hidden, model(torch.zeros(2, 3, 32, 32)).shape
    ((8, 16, 16), torch.Size([2, 10]))
    """

    _RANGES: ClassVar[Mapping[str, Rule]] = {
        "in_channels": whole(low=1),
        "stages": each(each(whole(low=1), nonempty=True), nonempty=True),
        "out_features": whole(low=1),
    }

    def __init__(
        self, in_channels: int, stages: Sequence[Sequence[int]], out_features: int
    ) -> None:
        super().__init__()
        check_arguments(self._RANGES, locals())
        layers: list[nn.Module] = []
        width = in_channels
        for number, stage in enumerate(stages):
            if number:  # between stages
                layers.append(nn.MaxPool2d(2))
            for wider in stage:
                # BatchNorm subtracts the mean, so a bias would have no effect.
                convolution = nn.Conv2d(width, wider, 3, padding=1, bias=False)
                layers += [convolution, nn.BatchNorm2d(wider), nn.ReLU()]
                width = wider
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(width, out_features)

    @property
    def hidden(self) -> tuple[int, ...]:
        """Current widths of the hidden layers: the rows of every map but the last, in order."""
        return tuple(layer.weight.shape[0] for _, layer in self._hidden_maps())

    @property
    def hidden_names(self) -> tuple[str, ...]:
        """Names of the convolutions and linear maps of the hidden layers, in order."""
        return tuple(name for name, _ in self._hidden_maps())

    def _hidden_maps(self) -> list[tuple[str, nn.Conv2d | nn.Linear]]:
        modules = self.named_modules()
        return [(name, one) for name, one in modules if isinstance(one, nn.Conv2d | nn.Linear)][:-1]

    @torch.no_grad()
    def scale_outputs(self, factor: float) -> None:
        """Multiply all outputs by a factor, by the weights of the head.

        Args:
            factor: of the outputs.
        """
        for parameter in self.head.parameters():
            parameter.mul_(factor)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the outputs, (N, out_features), without a final activation."""
        # A mean over locations: the head's weights then fit images of any size.
        output: Tensor = self.head(self.body(x).mean((2, 3)))
        return output
