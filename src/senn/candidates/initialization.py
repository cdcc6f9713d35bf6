"""Sampling the weights of candidate units and layers.

Incoming weights of units are an initializer's (`initializers`); here they become a move, with all else that a unit
has. Units of new layers are drawn like those of the default initializer. Which of them are good, the score decides.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from senn.candidates.candidate_config import CandidateConfig
from senn.candidates.candidate_set import LayerActivations
from senn.candidates.initializers import (
    MIN_SPREAD,
    DataDirections,
    Initializer,
    NewUnits,
    PlaceActivations,
    draw_units,
)
from senn.candidates.new_layers import (
    ConvolutionalLayer,
    IdentityLayer,
    ResidualLayer,
    fresh_activation,
)
from senn.candidates.places import Gradients, checked, outgoing_shapes
from senn.graph import (
    ChannelGroup,
    CoupledDim,
    InsertionPoint,
    LinearMap,
    get_tensor,
    weight_matrix,
)
from senn.nn import Rational
from senn.surgery import Widen, parameters_per_unit

MAX_NEW_WEIGHTS = 200_000
"""Weights that all candidate units of a group have together.

It keeps scoring cheap compared with training where maps are wide. Half of it halves the candidates, and twice
of it doubles them, in groups with some 800 to 3,000 weights per unit; narrower ones have 256 candidates, wider ones 64.
Half of the candidates follow the data: on 784 pixels 125 candidates instead of 250 cost two thousandths of accuracy.
"""

WIDE_GROUP = 256
"""Width from which groups of units that many locations share have a quarter as many candidates: as of channels, a pass
through the candidates costs as much as one through as many existing units."""

MIN_CHANNELS = 8
"""Fewest candidates of a group of channels; wide groups have a quarter as many candidates as channels."""


def sample_units(
    *,
    model: nn.Module,
    group: ChannelGroup,
    maps: Mapping[str, LinearMap],
    activations: Mapping[str, LayerActivations],
    config: CandidateConfig,
    generator: torch.Generator,
    gradients: Gradients,
    locations: int = 1,
) -> tuple[Widen, dict[str, Tensor]]:
    """Sample the candidate units of one channel group.

    Args:
        model: the model as it is.
        group: group to widen.
        maps: linear maps that can be read, by name.
        activations: by map, rows of its inputs and outputs; producers without any are sampled like the existing units.
        config: how many candidates of what kind.
        generator: source of randomness.
        gradients: reads the rows of a map and of those that read its units.
        locations: rows per sample of the maps that read the group.

    Returns:
        The move that would add all of them, and by map that reads them the outgoing weights that the initializer
        wants, (m, units * p).

    Raises:
        SennError: what the initializer returns doesn't fit the place.
    """
    count = _number_of_units(model, group, config, locations)
    if config.max_columns is not None:
        # columns that one unit has at the map where it has most
        own = [
            coupled.index.shape[1] * maps[coupled.map].kernel_numel
            for coupled in group.dims_of("consumer")
            if coupled.map in maps
        ]
        most = config.max_columns // max(own) // group.granularity
        count = min(count, max(most, 1) * group.granularity)
    values: dict[str, Tensor] = {}
    outgoing: dict[str, Tensor] = {}
    # All producers first, in this order: figures of a seed depend on it. Readable maps are then sampled again.
    for producer in group.dims_of("producer"):
        values[producer.name] = _like_existing(
            get_tensor(model, producer.name).detach(), producer, count, generator
        )
    shapes = outgoing_shapes(model, group, maps)
    for producer in group.dims_of("producer"):
        one = maps.get(producer.map)
        if one is None or one.name not in activations:
            continue
        # A bias is sampled with its weight below: it takes off the mean that these weights make.
        if (producer.name, producer.dim) != (one.weight, one.out_dim):
            continue
        place = PlaceActivations(
            group=group.name,
            map=one.name,
            x=activations[one.name].x,
            z=activations[one.name].z,
            weight=weight_matrix(model, one),
            bias=None if one.bias is None else get_tensor(model, one.bias).detach(),
            rows_per_unit=producer.index.shape[1],
            outgoing_shapes=shapes,
            gradients=functools.partial(gradients, one.name, [*shapes]),
        )
        units = checked(_initializer(config).sample(place, count, generator), place, count)
        values |= _incoming(model, one, units, values)
        outgoing |= units.outgoing
    for dim in group.dims_of("elementwise"):
        if isinstance(model.get_submodule(dim.module), Rational):
            # Other elementwise parameters start at the identity; a Rational unit needs a shape, any is as likely.
            values[dim.name] = torch.randn(count * dim.index.shape[1], generator=generator)
    return Widen(group.name, count, values), outgoing


def _initializer(config: CandidateConfig) -> Initializer:
    if config.initializer is not None:
        return config.initializer
    return DataDirections(
        data_direction_fraction=config.data_direction_fraction, copy_fraction=config.copy_fraction
    )


def _incoming(
    model: nn.Module, one: LinearMap, units: NewUnits, values: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Values of a map's parameters for new units, in the layout of its weight."""
    stored = get_tensor(model, one.weight).movedim((one.out_dim, one.in_dim), (0, 1))
    weight = units.weight.view(-1, *stored.shape[1:]).movedim((0, 1), (one.out_dim, one.in_dim))
    if one.bias is None or one.bias not in values:
        return {one.weight: weight}
    bias = units.weight.new_zeros(len(units.weight)) if units.bias is None else units.bias
    return {one.weight: weight, one.bias: bias}


def _number_of_units(
    model: nn.Module, group: ChannelGroup, config: CandidateConfig, locations: int
) -> int:
    """Return how many candidate units a group has, a multiple of its granularity."""
    wanted = config.units
    if wanted is None:
        wanted = min(max(MAX_NEW_WEIGHTS // parameters_per_unit(model, group), 64), 256)
        if any(get_tensor(model, dim.name).dim() > 2 for dim in group.dims):
            # A pass through a convolution's candidates costs as much as one through as many existing channels.
            wanted = min(wanted, max(group.width // 4, MIN_CHANNELS))
        elif locations > 1 and group.width >= WIDE_GROUP:
            wanted = min(wanted, group.width // 4)
    # Units come in whole multiples, as of a group convolution's groups.
    return max(wanted // group.granularity, 1) * group.granularity


def _like_existing(old: Tensor, dim: CoupledDim, count: int, generator: torch.Generator) -> Tensor:
    """Sample entries with the mean and spread of the existing units' entries."""
    existing = old.index_select(dim.dim, dim.index.flatten().to(old.device)).double()
    shape = list(old.shape)
    shape[dim.dim] = count * dim.index.shape[1]
    # Over all units together: of a bias, each has a single entry.
    spread = float(existing.std(correction=0)) if existing.numel() > 1 else 1.0
    noise = torch.randn(shape, generator=generator, dtype=torch.float64)
    return (float(existing.mean()) + spread * noise).to(old.dtype)


def sample_residual_layer(
    point: InsertionPoint, x: Tensor, config: CandidateConfig, generator: torch.Generator
) -> ResidualLayer:
    """Sample the candidate units of a residual layer before a linear map.

    Args:
        point: where it would be inserted.
        x: rows of the linear map's inputs, (rows, in).
        config: how many units, and in what directions.
        generator: source of randomness.
    """
    weight, bias = _residual_units(x, config, generator)
    activation = fresh_activation(point.activation, config.residual_units, generator).to(x.dtype)
    return ResidualLayer(insertion_point=point, weight=weight, bias=bias, activation=activation)


def sample_conv_layer(
    point: InsertionPoint, x: Tensor, config: CandidateConfig, generator: torch.Generator
) -> ConvolutionalLayer:
    """Sample the candidate channels of a residual layer before a convolution.

    Args:
        point: where it would be inserted.
        x: rows of unfolded patches of the convolution's input, (rows, in * kernel numel).
        config: how many channels, and in what directions.
        generator: source of randomness.
    """
    weight, bias = _residual_units(x, config, generator)
    # round, not int: 125 ** (1 / 3) is 4.999...
    kernel_size = round((x.shape[1] / point.features) ** (1 / point.spatial))
    # Rational acts on the last dimension, where images have their width.
    name = "ReLU" if point.activation == "Rational" else point.activation
    activation = fresh_activation(name, config.residual_units, generator).to(x.dtype)
    return ConvolutionalLayer(
        insertion_point=point,
        weight=weight.view(-1, point.features, *(kernel_size,) * point.spatial),
        bias=bias,
        activation=activation,
    )


def _residual_units(
    x: Tensor, config: CandidateConfig, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Sample weights (units, d) and biases (units,)."""
    return draw_units(x, config.residual_units, config.data_direction_fraction, generator)


def sample_identity_layer(
    point: InsertionPoint, x: Tensor, generator: torch.Generator, *, biased: bool, rational: bool
) -> IdentityLayer:
    """Sample a well-conditioned basis in which an activation that is the identity could be inserted.

    Args:
        point: where it would be inserted.
        x: rows of the linear map's inputs, (rows, in).
        generator: source of randomness.
        biased: True if the linear map has a bias; one without can't compensate a shift, so the basis has none then.
        rational: True for a `Rational` activation, False for a PReLU.
    """
    size = point.features
    # Q of a normal matrix is uniform over the orthogonal ones: its inverse is exact, and no unit prefers an axis.
    basis = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64)).Q
    u = x.double() @ basis.mT
    scale = 1 / u.std(0, correction=0).clamp_min(MIN_SPREAD)
    # Scales within a factor of 100 keep the basis invertible in float32, also where inputs are constant.
    median = float(scale.median())
    scale = scale.clamp(min=0.1 * median, max=10 * median)
    center = 0.5 * torch.randn(size, generator=generator, dtype=torch.float64)
    shift = (center - u.mean(0) * scale).float() if biased else torch.zeros(size)
    return IdentityLayer(
        insertion_point=point,
        weight=(basis * scale[:, None]).float(),
        bias=shift,
        rational=rational,
    )
