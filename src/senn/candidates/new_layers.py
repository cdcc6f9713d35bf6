"""Layers that could be inserted: what they would add as features of a linear map's input, and the move that does it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from senn.graph import InsertionPoint
from senn.kfac.layer_inputs import Kernel
from senn.nn import Rational, Residual
from senn.nn.activations import find_activation
from senn.surgery import Insert


@dataclass(frozen=True, eq=False)
class ResidualLayer:
    """A residual layer x + V phi(B x + beta), V = 0, of which some units will be chosen.

    Attributes:
        insertion_point: where.
        weight: B, (units, in).
        bias: beta, (units,).
        activation: phi, a module over `units` units.
    """

    insertion_point: InsertionPoint
    weight: Tensor
    bias: Tensor
    activation: nn.Module

    columns_per_unit = 1

    @property
    def name(self) -> str:
        """For people."""
        return f"residual {type(self.activation).__name__}"

    @property
    def columns(self) -> int:
        """Number of features."""
        return len(self.weight)

    def features(self, x: Tensor) -> Tensor:
        """phi(B x + beta), (rows, in) to (rows, units)."""
        result: Tensor = self.activation(x @ self.weight.to(x).mT + self.bias.to(x))
        return result

    def parameters(self, units: int) -> int:
        """Number of parameters of the layer with that many units."""
        per_unit = sum(p[..., :1].numel() for p in self.activation.parameters()) if _per_unit(self.activation) else 0
        return units * (self.weight[0].numel() + 1 + self.insertion_point.features + per_unit)

    def move(self, units: Sequence[int]) -> Insert:
        """The insertion of a layer of the chosen units."""
        chosen = torch.as_tensor(list(units))
        first, last = self._ends(len(chosen))
        activation = copy.deepcopy(self.activation)
        if _per_unit(activation):
            activation = type(activation)(len(chosen))
            for name, parameter in activation.named_parameters():
                parameter.data = self.activation.get_parameter(name).detach()[chosen].clone()
        with torch.no_grad():
            first.get_parameter("weight").copy_(self.weight[chosen])
            first.get_parameter("bias").copy_(self.bias[chosen])
            last.get_parameter("weight").zero_()
        return Insert(self.insertion_point.module, Residual(nn.Sequential(first, activation, last)))

    def _ends(self, units: int) -> tuple[nn.Module, nn.Module]:
        """Fresh maps to and from so many units."""
        return nn.Linear(self.insertion_point.features, units), nn.Linear(
            units, self.insertion_point.features, bias=False
        )


@dataclass(frozen=True, eq=False)
class IdentityLayer:
    """An identity insertion x -> sigma(B x + beta), W -> W B^-1, with sigma the identity now (paper, section 3.1).

    The features are what the activation's own parameters would add: d sigma / d p at the identity.

    Attributes:
        insertion_point: where.
        weight: B, (in, in), orthogonal up to a scale per row.
        bias: beta, (in,).
        rational: whether sigma is `Rational`; else PReLU.
    """

    insertion_point: InsertionPoint
    weight: Tensor
    bias: Tensor
    rational: bool

    @property
    def name(self) -> str:
        """For people."""
        return "identity " + ("Rational" if self.rational else "PReLU")

    @property
    def columns_per_unit(self) -> int:
        """Activation parameters per unit that become live."""
        return 2 if self.rational else 1

    @property
    def columns(self) -> int:
        """Number of features."""
        return self.insertion_point.features * self.columns_per_unit

    def features(self, x: Tensor) -> Tensor:
        """(rows, in) to (rows, in * columns_per_unit), a unit's columns side by side."""
        u = x @ self.weight.to(x).mT + self.bias.to(x)
        if self.rational:
            return torch.stack([1 / (1 + u**2), 2 * u / (1 + u**2)], -1).flatten(-2)
        return u.clamp_max(0)

    def parameters(self) -> int:
        """Number of parameters of the layer."""
        return self.insertion_point.features * (self.insertion_point.features + 1 + (3 if self.rational else 1))

    def move(self) -> Insert:
        """The insertion."""
        size = self.insertion_point.features
        linear = nn.Linear(size, size)
        activation = Rational.identity(size) if self.rational else nn.PReLU(size, init=1.0)
        inverse = torch.linalg.inv(self.weight.double())
        with torch.no_grad():
            linear.weight.copy_(self.weight)
            linear.bias.copy_(self.bias)
        shift = -inverse @ self.bias.double() if self.bias.any() else None
        return Insert(self.insertion_point.module, nn.Sequential(linear, activation), inverse, shift)


@dataclass(frozen=True, eq=False)
class ConvolutionalLayer(ResidualLayer):
    """The same before a convolution, x + V * phi(B * x + beta), with B (units, in, *taps).

    B keeps the size of the image, V has one tap. Its features are scored at the convolution's *input*: what they add to
    x is a map of one tap.
    """

    def features(self, x: Tensor) -> Tensor:
        """phi(B * x + beta), (samples, in, *spatial) to (samples, units, *spatial)."""
        apply = (F.conv1d, F.conv2d, F.conv3d)[self.insertion_point.spatial - 1]
        z = apply(x, self.weight.to(x), self.bias.to(x), padding=self.weight.shape[-1] // 2)
        result: Tensor = self.activation(z)
        return result

    def _ends(self, units: int) -> tuple[nn.Module, nn.Module]:
        kind, size = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[self.insertion_point.spatial - 1], self.weight.shape[-1]
        first = kind(self.insertion_point.features, units, size, padding=size // 2)
        return first, kind(units, self.insertion_point.features, 1, bias=False)


Layer = ResidualLayer | IdentityLayer


def same(spatial: int, size: int) -> Kernel:
    """A kernel of that odd size that keeps the size of an image."""
    return Kernel((size,) * spatial, (1,) * spatial, (1,) * spatial, ((size // 2, size // 2),) * spatial)


def fresh_activation(name: str, units: int, generator: torch.Generator) -> nn.Module:
    """A fresh activation of the class that the model uses nearby; ReLU where that one takes arguments."""
    if name == "Rational":
        module = Rational(units)
        for parameter in module.parameters():
            parameter.data = torch.randn(units, generator=generator)
        return module
    if name == "PReLU":
        return nn.PReLU(units)
    return (find_activation(name) or nn.ReLU)()


def _per_unit(activation: nn.Module) -> bool:
    return isinstance(activation, Rational | nn.PReLU)
