"""Candidates for new units and layers, and how they are drawn.

A candidate unit is drawn so that its pre-activation varies over the data as much as its neighbours' do; the score is
scale free, later training is not. Directions follow the data (a random mixture of centred samples has the inputs'
covariance); a fraction of them can be asked to be uniform, or to be perturbed copies of existing units'. The score
judges.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from senn.candidates.candidate_config import CandidateConfig
from senn.candidates.candidate_set import LayerActivations
from senn.candidates.new_layers import ConvolutionalLayer, IdentityLayer, ResidualLayer, fresh_activation
from senn.graph import ChannelGroup, CoupledDim, InsertionPoint, LinearMap, get_tensor, weight_matrix
from senn.nn import Rational
from senn.surgery import Widen, parameters_per_unit

SMALLEST_SPREAD = 1e-6
"""Smallest spread of a pre-activation that a unit is scaled by."""


WEIGHTS = 100_000
"""Weights that all candidate units of a space have together, so that looking stays cheap beside training wide maps."""


CHANNELS = 8
"""Candidates of a space of channels, at least; or a quarter as many as it has."""


def sample_directions(
    x: Tensor,
    count: int,
    smooth: float,
    generator: torch.Generator,
    existing: Tensor | None = None,
    copies: float = 0.0,
) -> Tensor:
    """Random incoming weights (count, d) for inputs x (rows, d); see the module's docstring.

    Args:
        x: what the units will read.
        count: how many.
        smooth: fraction whose direction follows the data.
        generator: source of randomness.
        existing: (units, d) weights of existing units.
        copies: fraction that are perturbed copies of these.
    """
    rows, size = x.shape
    weight = torch.randn(count, size, generator=generator, dtype=x.dtype)
    centred = x - x.mean(0)
    follow = round(smooth * count)
    if follow and rows > 1:
        mixture = torch.randn(follow, rows, generator=generator, dtype=x.dtype) @ centred
        keep = mixture.norm(dim=1, keepdim=True) > 0
        weight[:follow] = torch.where(keep, mixture, weight[:follow])
    weight /= weight.norm(dim=1, keepdim=True).clamp_min(1e-12)
    copied = round(copies * count) if existing is not None and len(existing) else 0
    if copied:
        assert existing is not None
        chosen = existing[torch.randint(len(existing), (copied,), generator=generator)].to(x.dtype)
        unit = chosen / chosen.norm(dim=1, keepdim=True).clamp_min(1e-12)
        weight[-copied:] = unit + 0.5 * weight[-copied:]
    return weight


def match_scale(x: Tensor, weight: Tensor, spread: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Weights and biases whose pre-activations have standard deviation `spread` and a random centre over x."""
    z = x @ weight.mT
    factor = spread / z.std(0, correction=0).clamp_min(SMALLEST_SPREAD)
    center = 0.5 * spread * torch.randn(len(weight), generator=generator, dtype=x.dtype)
    return weight * factor[:, None], center - z.mean(0) * factor


def sample_units(
    model: nn.Module,
    group: ChannelGroup,
    maps: Mapping[str, LinearMap],
    passing: Mapping[str, LayerActivations],
    recipe: CandidateConfig,
    generator: torch.Generator,
) -> Widen:
    """Candidate units for one space.

    Args:
        model: the model as it is.
        group: where.
        maps: linear maps that can be read, by name.
        passing: by map, some rows of what passes through it; units that other maps make are drawn like those there are.
        recipe: how many of what.
        generator: source of randomness.
    """
    values: dict[str, Tensor] = {}
    k = {coupled.name: coupled.index.shape[1] for coupled in group.dims}
    wanted = recipe.units or min(max(WEIGHTS // parameters_per_unit(model, group), 64), 256)
    if any(get_tensor(model, coupled.name).dim() > 2 for coupled in group.dims) and not recipe.units:
        # a pass through the candidates costs as much as one through the model
        wanted = min(wanted, max(group.width // 4, CHANNELS))
    count = max(wanted // group.granularity, 1) * group.granularity
    for coupled in group.dims_of("producer"):
        values[coupled.name] = _alike(get_tensor(model, coupled.name).detach(), coupled, count, generator)
    for coupled in group.dims_of("producer"):
        one = maps.get(coupled.map)
        if one is None or coupled.name != one.weight or coupled.dim != one.out_dim or one.name not in passing:
            continue
        x, z = passing[one.name].x, passing[one.name].z
        spread = float(z.std(0, correction=0).mean())
        old = weight_matrix(model, one).to(x.dtype)
        weight = sample_directions(
            x, count * k[coupled.name], recipe.data_direction_fraction, generator, old, recipe.copy_fraction
        )
        weight, bias = match_scale(x, weight, spread if spread > 1e-3 else 1.0, generator)
        stored = get_tensor(model, one.weight).movedim((one.out_dim, one.in_dim), (0, 1))
        values[coupled.name] = weight.view(-1, *stored.shape[1:]).movedim((0, 1), (one.out_dim, one.in_dim))
        if one.bias in values:
            values[one.bias] = bias
    for coupled in group.dims_of("elementwise"):
        if isinstance(model.get_submodule(coupled.module), Rational):
            values[coupled.name] = torch.randn(count * k[coupled.name], generator=generator)
    return Widen(group.name, count, values)


def _alike(old: Tensor, coupled: CoupledDim, count: int, generator: torch.Generator) -> Tensor:
    """Random entries spread as the existing units' are, for producers whose inputs can't be read."""
    units = old.index_select(coupled.dim, coupled.index.flatten().to(old.device)).double()
    shape = list(old.shape)
    shape[coupled.dim] = count * coupled.index.shape[1]
    spread = float(units.std(correction=0)) if units.numel() > 1 else 1.0
    return (float(units.mean()) + spread * torch.randn(shape, generator=generator, dtype=torch.float64)).to(old.dtype)


def sample_residual_layer(
    insertion_point: InsertionPoint, x: Tensor, recipe: CandidateConfig, generator: torch.Generator
) -> ResidualLayer:
    """Candidate units of a residual layer at a site, for rows x (n, in) of the linear map's input."""
    weight, bias = match_scale(
        x, sample_directions(x, recipe.residual_units, recipe.data_direction_fraction, generator), 1.0, generator
    )
    return ResidualLayer(
        insertion_point,
        weight,
        bias,
        fresh_activation(insertion_point.activation, recipe.residual_units, generator).to(x.dtype),
    )


def sample_conv_layer(
    insertion_point: InsertionPoint, x: Tensor, recipe: CandidateConfig, generator: torch.Generator
) -> ConvolutionalLayer:
    """The same before a convolution, for rows x (n, in * taps) of patches of its input."""
    weight, bias = match_scale(
        x, sample_directions(x, recipe.residual_units, recipe.data_direction_fraction, generator), 1.0, generator
    )
    size = round((x.shape[1] / insertion_point.features) ** (1 / insertion_point.spatial))
    # `Rational` is an activation of last dimensions
    name = "ReLU" if insertion_point.activation == "Rational" else insertion_point.activation
    activation = fresh_activation(name, recipe.residual_units, generator).to(x.dtype)
    return ConvolutionalLayer(
        insertion_point, weight.view(-1, insertion_point.features, *(size,) * insertion_point.spatial), bias, activation
    )


def sample_identity_layer(
    insertion_point: InsertionPoint, x: Tensor, biased: bool, generator: torch.Generator, *, rational: bool
) -> IdentityLayer:
    """A random well-conditioned basis in which an activation that is the identity now is inserted.

    A map without a bias (`biased` False) could not take a shift back, so the basis then has none. The activation is
    `rational`, or a PReLU, whose units come second.
    """
    size = insertion_point.features
    basis = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64)).Q
    u = x.double() @ basis.mT
    scale = 1 / u.std(0, correction=0).clamp_min(SMALLEST_SPREAD)
    scale = scale.clamp(max=10 * float(scale.median()), min=0.1 * float(scale.median()))
    center = 0.5 * torch.randn(size, generator=generator, dtype=torch.float64)
    weight = (basis * scale[:, None]).float()
    shift = (center - u.mean(0) * scale).float() if biased else torch.zeros(size)
    return IdentityLayer(insertion_point, weight, shift, rational)
