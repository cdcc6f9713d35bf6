"""Adaptive Width Neural Networks (Errica et al., ICLR 2026, arXiv 2501.15889), written anew from the paper.

Units of a hidden layer are ordered: unit i counts for f(i) = exp(-lambda i) - exp(-lambda (i + 1)), a discretized
exponential, and the layer has as many as hold `QUANTILE` of it. lambda is learned with the weights, by the same loss,
so that the width goes up or down step by step. What differs from the paper, to keep the recipe of all other arms:

- f is divided by its root mean square at the start, in place of first weights that are larger by as much;
- lambda is exp(rho) times its start, and the optimizer's decay of rho is the prior of lambda;
- weights lie in tensors of `MOST` units, of which a pass uses the first; only these cost operations.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

QUANTILE, MOST = 0.9, 512


class AdaptiveMLP(nn.Module):
    """A perceptron with a linear shortcut that learns its widths.

    Args:
        features: inputs.
        widths: of the hidden layers at the start.
        outputs: outputs.
    """

    def __init__(self, features: int, widths: tuple[int, ...], outputs: int) -> None:
        super().__init__()
        self.start_rates = [-math.log(1 - QUANTILE) / width for width in widths]
        self.log_rates = nn.ParameterList(nn.Parameter(torch.zeros(())) for _ in widths)
        self.layers = nn.ModuleList()
        before, used = features, features
        for width in widths:
            layer = nn.Linear(before, MOST)
            # as a layer of the width that is in use draws them
            with torch.no_grad():
                layer.weight *= math.sqrt(before / used)
                layer.bias *= math.sqrt(before / used)
            self.layers.append(layer)
            before, used = MOST, width
        self.head = nn.Linear(MOST, outputs)
        self.shortcut = nn.Linear(features, outputs, bias=False)
        for tensor in (self.head.weight, self.head.bias, self.shortcut.weight):
            nn.init.zeros_(tensor)  # as all fixed nets of the library

    def rate(self, number: int) -> Tensor:
        """Rate lambda of a layer."""
        return self.start_rates[number] * self.log_rates[number].exp()

    @property
    def widths(self) -> tuple[int, ...]:
        """Units in use."""
        rates = [float(self.rate(number).detach()) for number in range(len(self.layers))]
        wanted = [math.ceil(-math.log(1 - QUANTILE) / rate - 1e-4) for rate in rates]
        return tuple(min(max(1, width), MOST) for width in wanted)

    @property
    def used_parameters(self) -> int:
        """Parameters of the units in use, and the rates."""
        sizes = (self.shortcut.in_features, *self.widths, self.head.out_features)
        body = sum((a + 1) * b for a, b in itertools.pairwise(sizes))
        return body + self.shortcut.weight.numel() + len(self.widths)

    def importance(self, number: int, width: int) -> Tensor:
        """What each unit in use counts for, (width,)."""
        places, start, rate = torch.arange(width), self.start_rates[number], self.rate(number)
        first = torch.arange(math.ceil(-math.log(1 - QUANTILE) / start - 1e-4))
        at_start = torch.exp(-start * first) * (1 - math.exp(-start))
        return torch.exp(-rate * places) * (1 - torch.exp(-rate)) / at_start.square().mean().sqrt()

    def forward(self, x: Tensor) -> Tensor:
        """Outputs (rows, outputs)."""
        inner, before = x, x.shape[1]
        for number, width in enumerate(self.widths):
            layer = self.layers[number]
            z = F.linear(inner, layer.weight[:width, :before], layer.bias[:width])
            inner, before = F.relu(z) * self.importance(number, width), width
        out: Tensor = F.linear(inner, self.head.weight[:, :before], self.head.bias)
        return out + self.shortcut(x)
