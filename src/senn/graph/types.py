"""Records of what in a module can change size, held by names and indices only.

Nothing here holds a module or a parameter: a `DependencyGraph` stays valid for any copy of the model
that has the same shapes (a deepcopy, an averaged model, a freshly loaded one).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from senn import _deprecated, html

Role = Literal["producer", "elementwise", "consumer"]

NOTHING = "Nothing in this model can change size."
"""Said of a structure that is empty."""


@_deprecated.aliased
@dataclass(frozen=True, kw_only=True, eq=False)
class CoupledDim:
    """One dimension of one tensor whose entries belong to the units of a space.

    Attributes:
        role: `producer` (rows that make the units), `carrier` (per-unit parameters or buffers on the
            way: BatchNorm, PReLU, Rational), `consumer` (columns that read the units).
        module: name of the owning module, as in `model.get_submodule`.
        tensor: name of the parameter or buffer inside that module (`weight`, `bias`, ...).
        dim: the dimension of that tensor.
        index: (width, k) long; positions along `dim` that each unit owns.
        runs: how a unit's k positions are laid out: `runs` runs of all units, in each of which a unit owns k / runs
            neighbours. One run where a unit's positions are neighbours (channels-first flatten), k runs where
            units alternate (tokens flattened), 3 where queries, keys and values are packed. `index` goes through a
            unit's positions in ascending order; in each run the units follow each other without a gap.
        quiet: whether the units here meet one of `Space.norms`: then it is the producers whose new entries are given
            (means of the old ones, or zeros), and consumers' new columns may be anything; otherwise new
            columns of consumers are zero, and producers' new entries may be anything.
    """

    role: Role
    module: str
    tensor: str
    dim: int
    index: Tensor
    n_segments: int = 1
    behind_norm: bool = False

    @property
    def name(self) -> str:
        """Fully qualified tensor name, as in `state_dict`."""
        return f"{self.module}.{self.tensor}" if self.module else self.tensor

    @property
    def map(self) -> str:
        """Name of the linear map whose weight this tensor is, if it is one: see `LinearMap`."""
        return self.module if self.tensor == "weight" and self.module else self.name


@dataclass(frozen=True, kw_only=True)
class SizeAttribute:
    """A Python number that changes with a space.

    Attributes:
        module: name of the module that holds it.
        name: the attribute.
        per_unit: added to it for each new unit.
        item: which item, where the attribute is a tuple or list (`normalized_shape`); None for a plain integer.
    """

    module: str
    name: str
    per_unit: int
    item: int | None = None


@dataclass(frozen=True, kw_only=True)
class Norm:
    """A normalisation that mixes the units of a space.

    Its output for the old units stays as it was if new units enter it as the mean of the old ones (`layer`: variance
    falls by C / (C + k)) or as zeros (`rms`: so does the mean square), its weight is multiplied by sqrt(C / (C + k))
    and eps by C / (C + k).

    Attributes:
        module: its name.
        kind: `layer` or `rms`.
        eps: name of the attribute that holds eps; None if it has none.
    """

    module: str
    kind: Literal["layer", "rms"]
    eps: str | None = "eps"


@_deprecated.aliased
@dataclass(frozen=True, kw_only=True, eq=False)
class ChannelGroup:
    """A hidden dimension: `width` units that producers make and consumers read.

    Attributes:
        name: the first producer module's name; stable while the model grows.
        width: number of units now.
        dims: every tensor dimension that changes size with the space.
        attributes: Python numbers to rewrite.
        granularity: units come and go in multiples of this.
        norms: normalisations that mix the units in the `quiet` slots, all of one kind: new entries of producers are
            means of the old ones (`layer`) or zeros (`rms`), and what the normalisation gives for new units is zero.
    """

    name: str
    width: int
    dims: tuple[CoupledDim, ...]
    attributes: tuple[SizeAttribute, ...] = ()
    granularity: int = 1
    norms: tuple[Norm, ...] = ()

    def dims_of(self, role: Role) -> tuple[CoupledDim, ...]:
        """The slots with one role."""
        return tuple(coupled for coupled in self.dims if coupled.role == role)


@_deprecated.aliased
@dataclass(frozen=True, kw_only=True)
class LinearMap:
    """A linear map z = W a + b of the forward pass, applied at every location (token, pixel) of every sample.

    As a matrix W is (out, in * taps), columns of one input side by side: `weight.movedim` of `out_dim` and `in_dim` to
    the front, then flattened (`matrix`). Of a grouped convolution that is one matrix above the other; of a transposed
    one it is (out * kernel positions, in).

    Attributes:
        name: the module's name where the tensor is its `weight`, else the tensor's full name.
        weight: full name of the weight.
        bias: full name of the bias, or None.
        out_dim: dimension of the weight that counts outputs.
        in_dim: dimension that counts inputs.
        kernel_numel: columns of one input: kernel positions (9 for a 3 x 3 convolution), 1 for a transposed one.
        has_factors: whether its inputs and outputs can be read: applied by `linear`, `addmm`, a matrix product or a
            convolution, and not inside a fused operation.
        n_uses: how often the forward pass applies it.
        groups: of a convolution.
        transposed: whether it is a transposed convolution.
    """

    name: str
    weight: str
    bias: str | None
    out_dim: int = 0
    in_dim: int = 1
    kernel_numel: int = 1
    has_factors: bool = True
    n_uses: int = 1
    groups: int = 1
    transposed: bool = False


@dataclass(frozen=True, kw_only=True)
class InsertionPoint:
    """The input of a linear map, a place where a layer can be inserted.

    Attributes:
        module: name of the linear map before which the layer goes.
        features: size of its input.
        activation: class name of the activation that the model uses nearest to this place
            (`ReLU`, `Tanh`, `Rational`, `PReLU`, ...), a hint for what to insert.
        spatial: number of spatial dimensions of its input; 0 for a linear layer, whose features come last.
    """

    module: str
    features: int
    activation: str
    spatial: int = 0


@_deprecated.aliased
@dataclass(frozen=True, kw_only=True)
class ResidualBlock:
    """A residual block after which another one like it can be put: x -> x + f(x, whatever else it is given).

    Attributes:
        module: its name.
        output_params: full names, inside it, of the parameters that a copy must have zero to be silent: those that make
            what is added to x. Each is needed, and each has a gradient then.
        in_module_list: whether the copy goes into the list of layers (`nn.ModuleList`, `nn.Sequential`) that the
            block lies in, directly after it; if not, `Sequential(block, copy)` takes the block's place.
        depth_attributes: numbers of layers that grow by one with each copy. A name may lead into an object that isn't
            a module (`config.n_layer`).
    """

    module: str
    output_params: tuple[str, ...]
    in_module_list: bool = False
    depth_attributes: tuple[SizeAttribute, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """A place that cannot change size, and why, in one sentence."""

    place: str
    reason: str


class SummaryTable(NamedTuple):
    """Rows of text for people: what they show, the names of the columns, the cells."""

    caption: str
    head: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


@_deprecated.aliased
@dataclass(frozen=True, kw_only=True, eq=False)
class DependencyGraph:
    """All that can change size in one model.

    Attributes:
        linear_maps: linear maps in order of use.
        groups: hidden dimensions that can be widened and pruned.
        insertion_points: inputs where a layer can be inserted.
        refusals: places that cannot change, with reasons.
        residual_blocks: residual blocks that can be repeated.
    """

    linear_maps: tuple[LinearMap, ...]
    groups: tuple[ChannelGroup, ...]
    insertion_points: tuple[InsertionPoint, ...]
    refusals: tuple[Refusal, ...] = field(default=())
    residual_blocks: tuple[ResidualBlock, ...] = field(default=())

    @property
    def scored_maps(self) -> tuple[str, ...]:
        """Names of the maps whose inputs and outputs can be read: each has Kronecker factors."""
        return tuple(one.name for one in self.linear_maps if one.has_factors)

    def as_tables(self) -> tuple[SummaryTable, ...]:
        """Return all that is known, as tables of text: spaces, sites, blocks, refusals.

        A consumer that owns k > 1 columns per unit is shown as `name x k`.
        """
        groups = [
            (
                group.name,
                str(group.width),
                _modules(group.dims_of("producer")),
                _modules(group.dims_of("elementwise")) or "-",
                _modules(group.dims_of("consumer")),
            )
            for group in self.groups
        ]
        insertion_points = [
            (insertion_point.module, str(insertion_point.features), insertion_point.activation)
            for insertion_point in self.insertion_points
        ]
        blocks = [
            (block.module, ", ".join(n[len(block.module) + 1 :] for n in block.output_params))
            for block in self.residual_blocks
        ]
        refused = [(refusal.place or "(the model)", refusal.reason) for refusal in self.refusals]
        return (
            SummaryTable("Hidden dimensions", ("group", "units", "produced by", "elementwise", "consumed by"), groups),
            SummaryTable("Where a layer can be inserted", ("layer before", "features", "activation"), insertion_points),
            SummaryTable("Blocks", ("can be repeated", "silent where zero"), blocks),
            SummaryTable("What stays as it is", ("cannot change", "because"), refused),
        )

    def _repr_html_(self) -> str:
        """HTML for notebooks: the tables, and a picture of the widths."""
        tables = self.as_tables()
        if not any(table.rows for table in tables):
            return f"<p>{NOTHING}</p>"
        parts = [html.table(table.caption, table.head, table.rows, left=len(table.head)) for table in tables]
        return html.network([group.width for group in self.groups]) + "".join(parts)

    def map(self, name: str) -> LinearMap:
        """The linear map with that name."""
        for one in self.linear_maps:
            if one.name == name:
                return one
        raise KeyError(name)

    def block(self, name: str) -> ResidualBlock:
        """The residual block with that name."""
        for block in self.residual_blocks:
            if block.module == name:
                return block
        raise KeyError(name)

    def group(self, name: str) -> ChannelGroup:
        """The space with that name."""
        for group in self.groups:
            if group.name == name:
                return group
        raise KeyError(name)


def _modules(coupled_dims: Sequence[CoupledDim]) -> str:
    """Name the modules of some slots, each once."""
    columns = {coupled.module or coupled.tensor: coupled.index.shape[1] for coupled in coupled_dims}
    return ", ".join(name if k == 1 else f"{name} x {k}" for name, k in columns.items())


def get_tensor(model: nn.Module, name: str) -> Tensor:
    """A parameter or buffer by its full name."""
    path, _, key = name.rpartition(".")
    return cast(Tensor, getattr(model.get_submodule(path), key))


def weight_matrix(model: nn.Module, one: LinearMap) -> Tensor:
    """The weight of a linear map as a matrix, (out, in * taps), detached."""
    weight = get_tensor(model, one.weight).detach()
    if one.transposed:
        return weight.flatten(1).mT
    return weight.movedim((one.out_dim, one.in_dim), (0, 1)).flatten(1)


def owned_columns(coupled: CoupledDim, taps: int) -> Tensor:
    """(width, k * taps) columns of a consumer's `matrix` that each unit owns."""
    return (coupled.index[:, :, None] * taps + torch.arange(taps)).flatten(1)


def get_linear(model: nn.Module, name: str) -> nn.Linear:
    """A linear layer by its name."""
    return cast(nn.Linear, model.get_submodule(name))
