"""Initializers: where the weights of candidate units come from.

An initializer is asked once for each linear map that makes units of a channel group, and answers with their incoming
weights; outgoing ones are zero at the addition, and what an initializer says about them is for the birth after it.
Which candidates are worth adding, the score decides: an initializer that returns as many units as are wanted makes the
choice itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from senn._validate import Rule
from senn.errors import DivergenceError

__all__ = [
    "DataDirections",
    "Initializer",
    "NewUnits",
    "PlaceActivations",
    "PlaceGradients",
    "ReaderRows",
    "TorchInitialization",
]

KINKS = 0.7
"""Standard deviation of the place where units bend, over that of their pre-activations.

Within the data for nearly all units: with 0.3 or with biases of zero, units of a small network on a table have less to
choose from, and it ends worse.
"""

MIN_SPREAD = 1e-6
"""Smallest standard deviation that weights are divided by, so that constant inputs don't give infinite weights."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ReaderRows:
    """Rows of a linear map that reads the units of a place.

    Attributes:
        a: what it reads now, with a trailing 1 where it has a bias, (rows, c).
        output_grad: gradient of each sample's loss at its outputs, (rows, m).
        pseudo_grad: random rows whose covariance is the loss's curvature at its outputs, (rows, m).
    """

    a: Tensor
    output_grad: Tensor
    pseudo_grad: Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class PlaceGradients:
    """Rows of the map that makes units, beside those of the maps that read them.

    They are of the samples on which steps are fitted; those on which they are valued stay unseen.

    Attributes:
        x: inputs of the map that makes the units, without a constant, (rows, d).
        readers: by map that reads the units, its rows at the same samples and locations. A map that has other
            locations, as behind pooling, is left out.
    """

    x: Tensor
    readers: Mapping[str, ReaderRows]


@dataclass(frozen=True, kw_only=True, eq=False)
class PlaceActivations:
    """A place where units could be added, as an initializer sees it: a linear map that makes units of a channel group.

    Attributes:
        group: name of the channel group.
        map: name of the linear map.
        x: inputs of the map, without a constant, (rows, d); of a convolution, patches (rows, in * kernel numel).
        z: outputs of the map, (rows, m).
        weight: weights of all outputs that the map has, (m, d).
        bias: their biases, (m,); None where it has none.
        rows_per_unit: outputs of the map that belong to one unit, such as a head's features.
        outgoing_shapes: by map that reads the units, its number of outputs and the columns that each unit has there.
        gradients: computes gradients at these maps, at the price of a forward and two backward passes.
    """

    group: str
    map: str
    x: Tensor
    z: Tensor
    weight: Tensor
    bias: Tensor | None
    rows_per_unit: int
    outgoing_shapes: Mapping[str, tuple[int, int]]
    gradients: Callable[[], PlaceGradients]

    @property
    def spread(self) -> float:
        """Standard deviation of the outputs over the rows, mean over the outputs; 1 where they hardly vary."""
        spread = float(self.z.std(0, correction=0).mean())
        # Where the existing outputs hardly vary (a fresh layer of zeros), their scale says nothing.
        return spread if spread > 1e-3 else 1.0


@dataclass(frozen=True, kw_only=True, eq=False)
class NewUnits:
    """Weights of new units at one linear map.

    Attributes:
        weight: incoming weights, (units * rows_per_unit, d).
        bias: (units * rows_per_unit,), None for zeros; without effect where the map has none.
        outgoing: by map that reads the units, weights toward which they are born, (m, units * p) with p columns a unit,
            side by side: a birth gives them as much of these as lowers the loss. Maps that are left out get a natural
            step's.
    """

    weight: Tensor
    bias: Tensor | None = None
    outgoing: Mapping[str, Tensor] = field(default_factory=dict)


class Initializer(Protocol):
    """What draws candidate units; any object with such a method will do."""

    def sample(self, place: PlaceActivations, count: int, generator: torch.Generator) -> NewUnits:
        """Draw units.

        Args:
            place: where they would be added.
            count: number of units.
            generator: source of randomness; nothing else may be used, so that one seed gives one network.
        """


def initializer_rule() -> Rule:
    """Build the rule for initializers: objects with a method `sample`."""
    return Rule(
        expected="an object with a method sample(place, count, generator), such as DataDirections()",
        allows=lambda value: (
            callable(getattr(value, "sample", None)) and not isinstance(value, type)
        ),
    )


@dataclass(frozen=True, kw_only=True)
class DataDirections:
    """Directions of two kinds, some along the data and some of any kind, at the scale of PyTorch's layers: the default.

    A random mixture of centered samples has the covariance of the inputs: units along the data see what varies most,
    as in images, and miss what a few weak features say, as in tables. So candidates are drawn from both, and the score
    chooses. Units bend at different places within the data.

    Args:
        data_direction_fraction: fraction of the units whose direction follows the data; the rest is uniform.
        copy_fraction: fraction of all that are perturbed copies of existing units, the last ones.
    """

    data_direction_fraction: float = 0.5
    copy_fraction: float = 0.0

    def sample(self, place: PlaceActivations, count: int, generator: torch.Generator) -> NewUnits:
        """Draw units; see `Initializer`."""
        weight, bias = draw_units(
            place.x,
            count * place.rows_per_unit,
            self.data_direction_fraction,
            generator,
            existing=place.weight.to(place.x.dtype),
            copy_fraction=self.copy_fraction,
        )
        return NewUnits(weight=weight, bias=bias)


@dataclass(frozen=True, kw_only=True)
class TorchInitialization:
    """Weights and biases as `torch.nn.Linear` and the convolutions draw them, from +-1 / sqrt(d)."""

    def sample(self, place: PlaceActivations, count: int, generator: torch.Generator) -> NewUnits:
        """Draw units; see `Initializer`."""
        rows, size = count * place.rows_per_unit, place.x.shape[1]
        bound = size**-0.5  # of `kaiming_uniform_` with a = sqrt(5), and of the bias
        weight = 2 * torch.rand(rows, size, generator=generator, dtype=place.x.dtype) - 1
        bias = 2 * torch.rand(rows, generator=generator, dtype=place.x.dtype) - 1
        return NewUnits(weight=bound * weight, bias=bound * bias)


def sample_directions(
    x: Tensor,
    count: int,
    data_direction_fraction: float,
    generator: torch.Generator,
    *,
    existing: Tensor | None = None,
    copy_fraction: float = 0.0,
) -> Tensor:
    """Sample incoming weights of candidate units, of about unit length.

    Args:
        x: inputs of the units, (rows, d).
        count: number of units.
        data_direction_fraction: fraction of them whose direction follows the data; the others' are uniform.
        generator: source of randomness.
        existing: weights of existing units, (units, d).
        copy_fraction: fraction of the candidates that are perturbed copies of these, the last ones.

    Returns:
        Weights (count, d) of x's type.
    """
    rows, size = x.shape
    # Normal entries have uniform directions; uniform ones would prefer the corners of a cube.
    weight = torch.randn(count, size, generator=generator, dtype=x.dtype)
    n_following = round(data_direction_fraction * count)
    if n_following and rows > 1:
        # Normal mixtures of centered samples have the covariance of the inputs, up to a factor.
        mixture = torch.randn(n_following, rows, generator=generator, dtype=x.dtype) @ (
            x - x.mean(0)
        )
        is_usable = mixture.norm(dim=1, keepdim=True) > 0
        weight[:n_following] = torch.where(is_usable, mixture, weight[:n_following])
    # Unit length, so that the perturbation of copies below means the same for all.
    weight /= weight.norm(dim=1, keepdim=True).clamp_min(1e-12)
    n_copies = round(copy_fraction * count) if existing is not None and len(existing) else 0
    if n_copies:
        assert existing is not None
        originals = existing[torch.randint(len(existing), (n_copies,), generator=generator)].to(
            x.dtype
        )
        originals = originals / originals.norm(dim=1, keepdim=True).clamp_min(1e-12)
        # A perturbation of half a unit's length turns it by about 27 degrees: a copy without one would gain nothing.
        weight[-n_copies:] = originals + 0.5 * weight[-n_copies:]
    return weight


def draw_units(
    x: Tensor,
    count: int,
    data_direction_fraction: float,
    generator: torch.Generator,
    *,
    existing: Tensor | None = None,
    copy_fraction: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Sample incoming weights and biases of candidate units.

    Arguments as of `sample_directions`.

    Returns:
        Weights (count, d), as long as `torch.nn.Linear` draws them, or, if they follow the data, with outputs that vary
        as much as those of such weights; and biases (count,) with which the outputs' means are normal with `KINKS` of
        their standard deviation.
    """
    weight = sample_directions(
        x, count, data_direction_fraction, generator, existing=existing, copy_fraction=copy_fraction
    )
    # d entries of variance 1 / (3 d): uniform in +-1 / sqrt(d)
    weight = weight * 3**-0.5
    following = weight[: round(data_direction_fraction * count)]
    # in float64: squares of large activations overflow float32
    inputs = x.double()
    # of uniform directions of length 1 / sqrt(3), the root of the mean square
    usual = (inputs.var(0, correction=0).mean() / 3).sqrt()
    if not usual.isfinite():
        raise DivergenceError("the activations hold NaN or infinity: the network has diverged")
    if len(following) and usual > 0:
        # correction=0: the unbiased estimate of a single row is NaN, which no clamp repairs.
        deviation = (inputs @ following.mT.double()).std(0, correction=0).clamp_min(MIN_SPREAD)
        following *= (usual / deviation).to(x)[:, None]
    z = inputs @ weight.mT.double()
    noise = torch.randn(count, generator=generator, dtype=x.dtype)
    return weight, (KINKS * z.std(0, correction=0) * noise - z.mean(0)).to(x)
