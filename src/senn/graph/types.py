"""Records of what in a module can change size, by names and indices only.

Nothing here holds a module or a parameter: a `DependencyGraph` is valid for every copy of the model that has the same
shapes (a deepcopy, an averaged model, a freshly loaded one).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple, get_args

from torch import Tensor

from senn import _deprecated, html
from senn.graph.norm_record import Norm
from senn.graph.table_cells import left_alone, refused_places

Role = Literal["producer", "elementwise", "consumer"]

NOTHING = "Nothing in this model can change size."
"""Text of a graph that is empty."""


# Compared by identity, as all records here that hold an index: tensors have no single truth value.
@_deprecated.aliased
@dataclass(frozen=True, kw_only=True, eq=False)
class CoupledDim:
    """One dimension of one tensor, whose positions belong to the units of a group.

    `n_segments` says how a unit's k positions are laid out: the dimension consists of so many segments; in each of
    them the units follow each other without a gap, and a unit owns k / n_segments neighboring positions. One segment
    where a unit's positions are neighbors (flattened channels-first images), k segments where units alternate
    (flattened tokens), 3 where queries, keys and values are packed.

    Attributes:
        role: `producer` (rows that make the units), `elementwise` (parameters and buffers with entries for each unit,
            on the way: BatchNorm, PReLU, Rational), `consumer` (columns that read the units).
        module: name of the owning module, as in `model.get_submodule`.
        tensor: name of the parameter or buffer inside that module (`weight`, `bias`, ...).
        dim: the dimension of that tensor.
        index: (width, k) long, positions along `dim` that each unit owns, in ascending order.
        n_segments: number of segments of the layout.
        behind_norm: True if the units here meet one of `ChannelGroup.norms`. Then the new entries of producers are
            prescribed (means of the old ones, or zeros), and new columns of consumers may hold anything. Otherwise
            new columns of consumers are zero, and new entries of producers may hold anything.
        gains: full names of the parameters that scale what these producers make, by unit, before it reaches a norm
            (LayerScale).
        stream_power: 1 for what makes the units that enter a norm, -1 for what reads these past the norm, else 0: see
            `Norm.fixed_eps`.
    """

    role: Role
    module: str
    tensor: str
    dim: int
    index: Tensor
    n_segments: int = 1
    behind_norm: bool = False
    gains: tuple[str, ...] = ()
    stream_power: int = 0

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
    """A Python number that changes with a group.

    Attributes:
        module: name of the module that holds it.
        name: name of the attribute.
        per_unit: added to it for each new unit.
        item: index of the number in a tuple or list (`normalized_shape`); None for a plain integer.
    """

    module: str
    name: str
    per_unit: int
    item: int | None = None


@_deprecated.aliased
@dataclass(frozen=True, kw_only=True, eq=False)
class ChannelGroup:
    """A hidden dimension, with everything that changes size when its units come and go.

    Attributes:
        name: name of the first producer; it stays while the model grows.
        width: number of units now.
        dims: every tensor dimension that changes size with the group.
        attributes: Python numbers to rewrite.
        granularity: units come and go in multiples of this.
        norms: normalizations over the units, all of one kind; see `CoupledDim.behind_norm`.

    A convolution of four channels, whose flattened 2 x 2 output a linear layer reads. Each channel is one row of the
    convolution and its bias, one entry of each tensor of the BatchNorm, and four columns of the linear layer:

    >>> import senn, torch
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
    >>> group = senn.analyze(model, torch.randn(2, 1, 4, 4)).group("0")
    >>> for coupled in group.dims:
    ...     print(f"{coupled.role:11}  {coupled.name:14}  {coupled.dim}  {coupled.index[1].tolist()}")
    producer     0.weight        0  [1]
    producer     0.bias          0  [1]
    elementwise  1.weight        0  [1]
    elementwise  1.bias          0  [1]
    elementwise  1.running_mean  0  [1]
    elementwise  1.running_var   0  [1]
    consumer     4.weight        1  [4, 5, 6, 7]
    >>> [(attribute.module, attribute.name, attribute.per_unit) for attribute in group.attributes]
    [('0', 'out_channels', 1), ('1', 'num_features', 1), ('4', 'in_features', 4)]
    """

    name: str
    width: int
    dims: tuple[CoupledDim, ...]
    attributes: tuple[SizeAttribute, ...] = ()
    granularity: int = 1
    norms: tuple[Norm, ...] = ()

    def dims_of(self, role: Role) -> tuple[CoupledDim, ...]:
        """Return the dimensions with one role."""
        return tuple(coupled for coupled in self.dims if coupled.role == role)


@_deprecated.aliased
@dataclass(frozen=True, kw_only=True)
class LinearMap:
    """A linear map z = W a + b, applied at every location (token, pixel) of every sample.

    As a matrix W is (out, in * kernel positions), with the columns of one input side by side; see `weight_matrix`. For
    a grouped convolution the groups' matrices lie above each other; for a transposed one W is (out * kernel positions,
    in).

    Attributes:
        name: name of the module if the tensor is its `weight`, else the tensor's full name.
        weight: full name of the weight.
        bias: full name of the bias; None if there is none.
        out_dim: dimension of the weight that counts outputs.
        in_dim: dimension of the weight that counts inputs.
        kernel_numel: columns of one input: kernel positions (9 for a 3 x 3 convolution), 1 for a transposed one.
        has_factors: True if its inputs and output gradients can be recorded: it is applied by `linear`, `addmm`, a
            matrix product or a convolution, and not inside a fused operation.
        n_uses: how often the forward pass applies it.
        groups: number of groups of a convolution.
        transposed: True for a transposed convolution.
        located_in: names of the groups whose units are locations to it (channels, to a map that mixes tokens).
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
    located_in: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class InsertionPoint:
    """The input of a linear map, where a layer can be inserted.

    Attributes:
        module: name of the linear map before which the layer goes.
        features: size of its input.
        activation: class name of the activation that the model uses nearest to this place (`ReLU`, `Tanh`,
            `Rational`, `PReLU`, ...), a hint for what to insert.
        spatial: number of spatial dimensions of its input; 0 for a linear layer, whose features come last.
    """

    module: str
    features: int
    activation: str
    spatial: int = 0


@_deprecated.aliased
@dataclass(frozen=True, kw_only=True)
class ResidualBlock:
    """A residual block, x -> x + f(x, ...), after which a copy of itself can be inserted.

    Attributes:
        module: name of the block.
        output_params: full names, inside it, of the parameters that make what is added to x. With these at zero a copy
            adds nothing. Each of them is needed for that, and each has a gradient there.
        in_module_list: True if the copy goes into the list of layers (`nn.ModuleList`, `nn.Sequential`) that the block
            lies in, directly after it; otherwise `Sequential(block, copy)` takes the block's place.
        depth_attributes: numbers of layers that grow by one with each copy. A name may lead into an object that isn't
            a module (`config.n_layer`).
    """

    module: str
    output_params: tuple[str, ...]
    in_module_list: bool = False
    depth_attributes: tuple[SizeAttribute, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """A place that cannot change size.

    Attributes:
        place: name of the module, map or parameter; "" for the model.
        reason: the rest of a sentence that begins with the place.
        line: file, number and text of the line of the forward's code that is why; empty if it isn't known.
    """

    place: str
    reason: str
    line: str = ""


class SummaryTable(NamedTuple):
    """One table of a summary, all text: what it shows, names of the columns, the cells."""

    caption: str
    head: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


@_deprecated.aliased
@dataclass(frozen=True, kw_only=True, eq=False)
class DependencyGraph:
    """Everything that can change size in one model; `senn.analyze` makes it.

    Attributes:
        linear_maps: linear maps in order of use.
        groups: hidden dimensions that can be widened and pruned.
        insertion_points: inputs before which a layer can be inserted.
        refusals: places that cannot change, with reasons.
        residual_blocks: residual blocks that can be repeated.
        guesses: by place, groups that one forward pass can't show (attention with a single head), of which
            `senn.verification` tries one after the other; empty once that is done.

    Two layers that write into one residual stream, of which a third reads twice, are one group; the model's outputs
    stay as they are:

    >>> import senn, torch
    >>> from torch import nn
    >>> class Net(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.stem, self.branch, self.head = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(8, 2)
    ...     def forward(self, x):
    ...         x = torch.relu(self.stem(x))
    ...         x = x + self.branch(x)
    ...         return self.head(torch.cat([x, x.abs()], dim=1))
    >>> graph = senn.analyze(Net(), torch.randn(5, 3))
    >>> print(senn.explain(graph))
    group  units  produced by   elementwise  consumed by
    stem   4      stem, branch  -            branch, head x 2
    <BLANKLINE>
    layer before  features  activation
    stem          3         ReLU
    branch        4         ReLU
    head          8         ReLU
    <BLANKLINE>
    cannot change  because
    head           its units are the model's outputs
    >>> graph.group("stem").dims_of("consumer")[1].index[0].tolist()  # the first unit's columns of the head
    [0, 4]
    """

    linear_maps: tuple[LinearMap, ...]
    groups: tuple[ChannelGroup, ...]
    insertion_points: tuple[InsertionPoint, ...]
    refusals: tuple[Refusal, ...] = field(default=())
    residual_blocks: tuple[ResidualBlock, ...] = field(default=())
    guesses: tuple[tuple[ChannelGroup, ...], ...] = field(default=())

    @property
    def scored_maps(self) -> tuple[str, ...]:
        """Names of the linear maps that have Kronecker factors."""
        return tuple(one.name for one in self.linear_maps if one.has_factors)

    def as_tables(self) -> tuple[SummaryTable, ...]:
        """Return tables of text: groups, those that a grower leaves alone, insertion points, residual blocks, refusals.

        A consumer that owns k > 1 columns for each unit is shown as `name x k`.
        """
        groups = []
        for group in self.groups:
            modules = {role: _modules(group.dims_of(role)) for role in get_args(Role)}
            groups.append(
                (
                    group.name,
                    str(group.width),
                    modules["producer"],
                    modules["elementwise"] or "-",
                    modules["consumer"],
                )
            )
        points = [
            (point.module, str(point.features), point.activation) for point in self.insertion_points
        ]
        blocks = []
        for block in self.residual_blocks:
            # Relative to the block, whose name stands in the first column.
            names = [name.removeprefix(f"{block.module}.") for name in block.output_params]
            blocks.append((block.module, ", ".join(names)))
        by_hand = [(group.name, left_alone(group.norms[0])) for group in self.groups if group.norms]
        refused = list(
            refused_places(
                (refusal.place, refusal.reason, refusal.line) for refusal in self.refusals
            )
        )
        return (
            SummaryTable(
                "Hidden dimensions",
                ("group", "units", "produced by", "elementwise", "consumed by"),
                groups,
            ),
            SummaryTable("What a grower leaves to you", ("only by hand", "because"), by_hand),
            SummaryTable(
                "Where a layer can be inserted", ("layer before", "features", "activation"), points
            ),
            SummaryTable("Blocks", ("can be repeated", "identity where zero"), blocks),
            SummaryTable("What stays as it is", ("cannot change", "because"), refused),
        )

    def _repr_html_(self) -> str:
        """HTML for notebooks: the tables, and a sketch of the widths."""
        tables = self.as_tables()
        if not any(table.rows for table in tables):
            return f"<p>{NOTHING}</p>"
        parts = [str(html.network([group.width for group in self.groups]))]
        for table in tables:  # all columns left-aligned: they hold names
            parts.append(html.table(table.caption, table.head, table.rows, left=len(table.head)))
        return "".join(parts)

    @property
    def changeable(self) -> tuple[tuple[str, ...], ...]:
        """Names of the channel groups, of the insertion points and of the residual blocks."""
        return (
            tuple(group.name for group in self.groups),
            tuple(point.module for point in self.insertion_points),
            tuple(block.module for block in self.residual_blocks),
        )

    def without(self, refusals: Sequence[Refusal]) -> DependencyGraph:
        """Return the graph with places taken out, and refused with these reasons.

        Args:
            refusals: names of groups, insertion points or residual blocks, and why they can't change.
        """
        if not refusals:
            return self
        places = {refusal.place for refusal in refusals}
        return replace(
            self,
            groups=tuple(one for one in self.groups if one.name not in places),
            insertion_points=tuple(p for p in self.insertion_points if p.module not in places),
            residual_blocks=tuple(b for b in self.residual_blocks if b.module not in places),
            refusals=tuple(dict.fromkeys((*self.refusals, *refusals))),
        )

    def map(self, name: str) -> LinearMap:
        """Return the linear map of that name; raises KeyError if there is none."""
        for one in self.linear_maps:
            if one.name == name:
                return one
        raise KeyError(name)

    def block(self, name: str) -> ResidualBlock:
        """Return the residual block of that name; raises KeyError if there is none."""
        for block in self.residual_blocks:
            if block.module == name:
                return block
        raise KeyError(name)

    def group(self, name: str) -> ChannelGroup:
        """Return the channel group of that name; raises KeyError if there is none."""
        for group in self.groups:
            if group.name == name:
                return group
        raise KeyError(name)


def _modules(dims: Sequence[CoupledDim]) -> str:
    """Names of the modules of some dimensions, each once, with a unit's number of positions."""
    names = {}
    for coupled in dims:
        # Weight and bias of a module lie alike; a bare parameter is named itself.
        name, k = coupled.module or coupled.tensor, coupled.index.shape[1]
        names[name] = name if k == 1 else f"{name} x {k}"
    return ", ".join(names.values())
