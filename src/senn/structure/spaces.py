"""Records of what in a module can change size, held by names and indices only.

Nothing here holds a module or a parameter: a `Structure` stays valid for any copy of the model
that has the same shapes (a deepcopy, an averaged model, a freshly loaded one).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, cast

from torch import Tensor, nn

Role = Literal["producer", "carrier", "consumer"]


@dataclass(frozen=True, eq=False)
class Slot:
    """One dimension of one tensor whose entries belong to the units of a space.

    Attributes:
        role: `producer` (rows that make the units), `carrier` (per-unit parameters or buffers on the
            way: BatchNorm, PReLU, Rational), `consumer` (columns that read the units).
        module: name of the owning module, as in `model.get_submodule`.
        tensor: name of the parameter or buffer inside that module (`weight`, `bias`, ...).
        dim: the dimension of that tensor.
        index: (width, k) long; positions along `dim` that each unit owns.
        interleaved: how more than one position per unit is laid out: False if the k positions of a
            unit are neighbours (channels-first flatten), True if units alternate (tokens flattened).
    """

    role: Role
    module: str
    tensor: str
    dim: int
    index: Tensor
    interleaved: bool = False

    @property
    def name(self) -> str:
        """Fully qualified tensor name, as in `state_dict`."""
        return f"{self.module}.{self.tensor}" if self.module else self.tensor


@dataclass(frozen=True, eq=False)
class Space:
    """A hidden dimension: `width` units that producers make and consumers read.

    Attributes:
        name: the first producer module's name; stable while the model grows.
        width: number of units now.
        slots: every tensor dimension that changes size with the space.
        attributes: Python attributes to rewrite: (module, attribute, positions per unit), for example
            ("fc1", "out_features", 1).
        quantum: units come and go in multiples of this.
    """

    name: str
    width: int
    slots: tuple[Slot, ...]
    attributes: tuple[tuple[str, str, int], ...] = ()
    quantum: int = 1

    def of(self, role: Role) -> tuple[Slot, ...]:
        """The slots with one role."""
        return tuple(slot for slot in self.slots if slot.role == role)


@dataclass(frozen=True)
class Site:
    """The input of a linear map, a place where a layer can be inserted.

    Attributes:
        module: name of the linear map before which the layer goes.
        features: size of its input.
        activation: class name of the activation that the model uses nearest to this place
            (`ReLU`, `Tanh`, `Rational`, `PReLU`, ...), a hint for what to insert.
    """

    module: str
    features: int
    activation: str


@dataclass(frozen=True)
class Refusal:
    """A place that cannot change size, and why, in one sentence."""

    place: str
    reason: str


@dataclass(frozen=True, eq=False)
class Structure:
    """All that can change size in one model.

    Attributes:
        linears: names of the linear maps that are used exactly once per forward pass, in order of use;
            each has Kronecker factors.
        spaces: hidden dimensions that can be widened and pruned.
        sites: inputs where a layer can be inserted.
        refused: places that cannot change, with reasons.
    """

    linears: tuple[str, ...]
    spaces: tuple[Space, ...]
    sites: tuple[Site, ...]
    refused: tuple[Refusal, ...] = field(default=())

    def space(self, name: str) -> Space:
        """The space with that name."""
        for space in self.spaces:
            if space.name == name:
                return space
        raise KeyError(name)


def linear_map(model: nn.Module, name: str) -> nn.Linear:
    """A linear map by its name in `Structure.linears` or a slot; the analysis vouches for its weight and bias."""
    return cast(nn.Linear, model.get_submodule(name))
