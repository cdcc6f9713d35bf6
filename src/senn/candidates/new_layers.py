"""Layers that could be inserted: features that they would add to a linear map's input, moves that insert them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import skip_init

from senn.graph import InsertionPoint
from senn.kfac.layer_inputs import Kernel
from senn.nn import Rational, Residual
from senn.nn.activations import find_activation
from senn.surgery import Insert

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True, kw_only=True, eq=False)
class ResidualLayer:
    """A residual layer x + V phi(B x + beta) with V = 0, some of whose units will be selected.

    Attributes:
        insertion_point: where it would be inserted.
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
        """Name to display, such as `residual ReLU`."""
        return f"residual {type(self.activation).__name__}"

    @property
    def columns(self) -> int:
        """Number of features, one per column of the map's input that they add."""
        return len(self.weight)

    def features(self, x: Tensor) -> Tensor:
        """Compute phi(B x + beta), from (rows, in) to (rows, units)."""
        result: Tensor = self.activation(x @ self.weight.to(x).mT + self.bias.to(x))
        return result

    def parameters(self, units: int) -> int:
        """Return the number of parameters of the layer with that many units."""
        per_unit = self.weight[0].numel() + 1 + self.insertion_point.features  # B, beta and V
        if _has_units(self.activation):
            per_unit += sum(p[..., :1].numel() for p in self.activation.parameters())
        return units * per_unit

    def move(self, units: Sequence[int]) -> Insert:
        """Build the move that inserts a layer of the selected units."""
        selected = torch.as_tensor(list(units))
        first, last = self._outer_maps(len(selected))
        activation = copy.deepcopy(self.activation)
        if _has_units(activation):  # it needs the parameters of the selected units alone
            activation = _empty(type(activation), len(selected))
            for name, parameter in activation.named_parameters():
                parameter.data = self.activation.get_parameter(name).detach()[selected].clone()
        with torch.no_grad():
            first.get_parameter("weight").copy_(self.weight[selected])
            first.get_parameter("bias").copy_(self.bias[selected])
            last.get_parameter("weight").zero_()  # V = 0: the network's function stays as it is
        return Insert(self.insertion_point.module, Residual(nn.Sequential(first, activation, last)))

    def _outer_maps(self, units: int) -> tuple[nn.Module, nn.Module]:
        """Create the maps B and V of a layer of that many units."""
        features = self.insertion_point.features
        return _empty(nn.Linear, features, units), _empty(nn.Linear, units, features, bias=False)


@dataclass(frozen=True, kw_only=True, eq=False)
class IdentityLayer:
    """Identity insertion x -> sigma(B x + beta), W -> W B^-1 (section 3.1).

    sigma starts as the identity. The features are what the activation's own parameters p would add to the map's input:
    d sigma / d p at the identity.

    Attributes:
        insertion_point: where it would be inserted.
        weight: B, (in, in), orthogonal up to a scale per row.
        bias: beta, (in,).
        rational: True if sigma is `Rational`, False for PReLU.
    """

    insertion_point: InsertionPoint
    weight: Tensor
    bias: Tensor
    rational: bool

    @property
    def name(self) -> str:
        """Name to display, such as `identity Rational`."""
        return "identity " + ("Rational" if self.rational else "PReLU")

    @property
    def columns_per_unit(self) -> int:
        """Number of activation parameters per unit that could move the unit away from the identity."""
        # c and v: d sigma / dl is 0 at the identity, as only the ratio of the three matters.
        return 2 if self.rational else 1

    @property
    def columns(self) -> int:
        """Number of features, one per column of the map's input that they add."""
        return self.insertion_point.features * self.columns_per_unit

    def features(self, x: Tensor) -> Tensor:
        """Compute the features, from (rows, in) to (rows, in * columns_per_unit).

        Features of a unit lie side by side.
        """
        u = x @ self.weight.to(x).mT + self.bias.to(x)
        if self.rational:
            # sigma = (l u + (c + 2 v u) / (1 + u^2)) / |(v, c, l)|: d sigma / dc and d sigma / dv at v = c = 0, l = 1
            return torch.stack([1 / (1 + u**2), 2 * u / (1 + u**2)], -1).flatten(-2)
        # PReLU is u for u > 0 and p u below: d sigma / dp = min(u, 0)
        return u.clamp_max(0)

    def parameters(self) -> int:
        """Return the number of parameters of the layer: B, beta and those of the activation."""
        size = self.insertion_point.features
        return size * (size + 1 + (3 if self.rational else 1))

    def move(self) -> Insert:
        """Build the move that inserts the layer."""
        size = self.insertion_point.features
        linear = _empty(nn.Linear, size, size)
        activation = Rational.identity(size) if self.rational else nn.PReLU(size, init=1.0)
        with torch.no_grad():
            linear.weight.copy_(self.weight)
            linear.bias.copy_(self.bias)
        # In float64: the map's weight becomes W B^-1, and a rounded inverse would change the function.
        inverse = torch.linalg.inv(self.weight.double())
        shift = -inverse @ self.bias.double() if self.bias.any() else None
        return Insert(
            self.insertion_point.module, nn.Sequential(linear, activation), inverse, shift
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class ConvolutionalLayer(ResidualLayer):
    """A residual layer before a convolution, x + V * phi(B * x + beta), with B (units, in, *kernel).

    B keeps the size of the image, and V has kernels of size 1. The features are scored at the convolution's *input*,
    to which V adds a linear map of them, location by location.
    """

    def features(self, x: Tensor) -> Tensor:
        """Compute phi(B * x + beta), from (samples, in, *spatial) to (samples, units, *spatial)."""
        convolve = (F.conv1d, F.conv2d, F.conv3d)[self.insertion_point.spatial - 1]
        # Half of an odd kernel on each side keeps the size of the image, so the result can be added to x.
        z = convolve(x, self.weight.to(x), self.bias.to(x), padding=self.weight.shape[-1] // 2)
        result: Tensor = self.activation(z)
        return result

    def _outer_maps(self, units: int) -> tuple[nn.Module, nn.Module]:
        features, size = self.insertion_point.features, self.weight.shape[-1]
        convolution = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[self.insertion_point.spatial - 1]
        first = _empty(convolution, features, units, size, padding=size // 2)
        return first, _empty(convolution, units, features, 1, bias=False)


Layer = ResidualLayer | IdentityLayer


def same_size_kernel(spatial: int, size: int) -> Kernel:
    """Build a kernel that keeps the size of an image.

    Args:
        spatial: number of spatial dimensions.
        size: entries along each of them; odd.
    """
    ones = (1,) * spatial
    return Kernel((size,) * spatial, ones, ones, ((size // 2, size // 2),) * spatial)


def fresh_activation(name: str, units: int, generator: torch.Generator) -> nn.Module:
    """Create an activation of the class that the model uses nearby.

    Args:
        name: class name; one that takes further arguments (`Threshold`) stands for ReLU.
        units: number of units, for activations with parameters of their own.
        generator: source of the parameters of `Rational`.
    """
    if name == "Rational":
        module = _empty(Rational, units)
        for parameter in module.parameters():
            parameter.data = torch.randn(units, generator=generator)
        return module
    if name == "PReLU":
        return nn.PReLU(units)
    return (find_activation(name) or nn.ReLU)()


def _empty(kind: Callable[..., M], *sizes: int, **options: Any) -> M:
    """Create a module whose parameters are to be written: drawing them would change the global random state."""
    module: M = skip_init(kind, *sizes, device=torch.get_default_device(), **options)  # type: ignore[no-untyped-call]
    return module


def _has_units(activation: nn.Module) -> bool:
    return isinstance(activation, Rational | nn.PReLU)
