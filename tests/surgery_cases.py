"""Small networks with structures written down by hand, for the surgery's tests."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from senn.structure.spaces import Site, Slot, Space, Structure
from senn.surgery import Widen


def units(width: int, offset: int = 0) -> Tensor:
    """One position per unit, from `offset` on."""
    return torch.arange(offset, offset + width).view(-1, 1)


def producer(name: str, width: int) -> list[Slot]:
    return [Slot("producer", name, tensor, 0, units(width)) for tensor in ("weight", "bias")]


def carrier(name: str, width: int, *tensors: str) -> list[Slot]:
    return [Slot("carrier", name, tensor, 0, units(width)) for tensor in tensors]


def norm(name: str, width: int) -> list[Slot]:
    return carrier(name, width, "weight", "bias", "running_mean", "running_var")


def consumer(name: str, index: Tensor, interleaved: bool = False) -> Slot:
    return Slot("consumer", name, "weight", 1, index, interleaved)


def mlp(
    sizes: list[int], activation: type[nn.Module] = nn.Tanh, batch_norm: bool = False
) -> tuple[nn.Module, Structure]:
    """Linear maps `0`, `k`, `2k`, ... with an activation (after a BatchNorm) between them."""
    layers: list[nn.Module] = []
    for i, o in itertools.pairwise(sizes):
        layers += [nn.Linear(i, o), *([nn.BatchNorm1d(o)] if batch_norm else []), activation()]
    model = nn.Sequential(*layers[: -2 - batch_norm + 1])
    step = 3 if batch_norm else 2
    names = [str(step * i) for i in range(len(sizes) - 1)]
    spaces = []
    for number, width in enumerate(sizes[1:-1]):
        here, after, between = names[number], names[number + 1], str(step * number + 1)
        slots = [*producer(here, width), consumer(after, units(width))]
        attributes = [(here, "out_features", 1), (after, "in_features", 1)]
        if batch_norm:
            slots += norm(between, width)
            attributes.append((between, "num_features", 1))
        spaces.append(Space(here, width, tuple(slots), tuple(attributes)))
    sites = [Site(name, size, activation.__name__) for name, size in zip(names, sizes, strict=False)]
    return model, Structure(tuple(names), tuple(spaces), tuple(sites))


class Concat(nn.Module):
    """fc reads [a(x), x, b(x)]: new columns go in the middle."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = nn.Linear(3, 4), nn.Linear(3, 2), nn.Linear(9, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.cat([self.a(x).tanh(), x, self.b(x).tanh()], 1))


def concat() -> tuple[nn.Module, Structure]:
    a = Space(
        "a", 4, (*producer("a", 4), consumer("fc", units(4))), (("a", "out_features", 1), ("fc", "in_features", 1))
    )
    b = Space(
        "b", 2, (*producer("b", 2), consumer("fc", units(2, 7))), (("b", "out_features", 1), ("fc", "in_features", 1))
    )
    return Concat(), Structure(("a", "b", "fc"), (a, b), (Site("a", 3, "Tanh"), Site("fc", 9, "Tanh")))


class Tokens(nn.Module):
    """Three tokens of two features each; their units are flattened token by token, or unit by unit."""

    def __init__(self, unit_major: bool) -> None:
        super().__init__()
        self.token, self.act, self.fc = nn.Linear(2, 4), nn.PReLU(4), nn.Linear(12, 2)
        self.unit_major = unit_major

    def forward(self, x: Tensor) -> Tensor:
        h = self.token(x.view(-1, 3, 2)).transpose(1, 2)
        h = self.act(h)
        return self.fc((h if self.unit_major else h.transpose(1, 2)).flatten(1))


def tokens(unit_major: bool) -> tuple[nn.Module, Structure]:
    index = torch.arange(12).view(4, 3) if unit_major else torch.arange(12).view(3, 4).T
    slots = (*producer("token", 4), *carrier("act", 4, "weight"), consumer("fc", index, not unit_major))
    attributes = (("token", "out_features", 1), ("act", "num_parameters", 1), ("fc", "in_features", 3))
    return Tokens(unit_major), Structure(
        ("token", "fc"), (Space("token", 4, slots, attributes),), (Site("fc", 12, "PReLU"),)
    )


class Stream(nn.Module):
    """A residual stream: the block's map both writes and reads it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.block, self.last = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return self.last(h + self.block(h).tanh())


def stream() -> tuple[nn.Module, Structure]:
    slots = (*producer("first", 4), *producer("block", 4), consumer("block", units(4)), consumer("last", units(4)))
    attributes = tuple(
        (name, attribute, 1)
        for name, attribute in [
            ("first", "out_features"), ("block", "out_features"), ("block", "in_features"), ("last", "in_features"),
        ]
    )  # fmt: skip
    return Stream(), Structure(
        ("first", "block", "last"), (Space("first", 4, slots, attributes),), (Site("last", 4, "Tanh"),)
    )


def widen(model: nn.Module, structure: Structure, name: str, count: int, seed: int = 0) -> Widen:
    """New units with random incoming weights."""
    generator = torch.Generator().manual_seed(seed)
    values = {}
    for slot in structure.space(name).of("producer"):
        tensor = model.get_submodule(slot.module).get_parameter(slot.tensor)
        shape = list(tensor.shape)
        shape[slot.dim] = count * slot.index.shape[1]
        values[slot.name] = torch.randn(shape, generator=generator, dtype=torch.float64).to(tensor.dtype)
    return Widen(name, count, values)


def grown(structure: Structure, name: str, count: int) -> Structure:
    """The structure of an `mlp` after one of its spaces changed by `count` units."""
    spaces = []
    for space in structure.spaces:
        if space.name == name:
            width = space.width + count
            slots = tuple(
                Slot(s.role, s.module, s.tensor, s.dim, units(width, int(s.index[0, 0])), s.interleaved)
                for s in space.slots
            )
            space = Space(name, width, slots, space.attributes)
        spaces.append(space)
    widths = {space.of("consumer")[0].module: space.width for space in spaces}
    sites = [Site(site.module, widths.get(site.module, site.features), site.activation) for site in structure.sites]
    return Structure(structure.linears, tuple(spaces), tuple(sites))
