"""Parameters of new layers join the groups of an optimizer, in the order and with the company that they'd have had."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

from senn.surgery.optimizer_layers import OptimizerLayers
from senn.surgery.undo import Inserted

Group = dict[str, Any]
Kind = tuple[int, Group]
"""An optimizer's identity and the switches of one of its groups, such as `use_muon`: what is done to its parameters."""


def join_groups(
    layers: OptimizerLayers,
    inserted: Sequence[Inserted],
    model: nn.Module,
    names: Mapping[nn.Parameter, str],
) -> None:
    """Add the parameters of new layers to groups, in these very lists.

    New parameters join groups in model order. A parameter of a layer before a map goes by its name, `weight` or `bias`:
    to the group that holds the map's own of that name; else to the one group that holds all others of that name in the
    model; else to that of the map's weight. So where biases don't decay, new ones don't either, and groups are as if
    made for the grown model; where biases have an optimizer of their own, new ones are given to it. Parameters of a
    copy of a block join the groups of those of the same names in the block, after them.

    Args:
        layers: the optimizers.
        inserted: the new layers.
        model: the changed model.
        names: full names of the Parameters before the change; recorded names are brought into step by them.
    """
    now = {parameter: name for name, parameter in model.named_parameters()}
    before = [(group, [*group["params"]]) for group in layers.groups]
    makers = {id(g["params"]): _kind(one, g) for one in layers.optimizers for g in one.param_groups}
    # A wrapper with groups of its own and what it wraps both hold every parameter.
    for groups in _families(layers):
        for one in inserted:
            _join(groups, one, now, makers)
    for group, held in before:
        if "param_names" in group:
            _rename(group, held, names, now)


def _kind(optimizer: Optimizer, group: Group) -> Kind:
    return id(optimizer), {key: one for key, one in group.items() if isinstance(one, bool | str)}


def _families(layers: OptimizerLayers) -> list[list[Group]]:
    """Return groups in lists in which every parameter occurs once: wrappers first, what they wrap after them."""
    families: list[list[Group]] = []
    held: list[set[nn.Parameter]] = []
    for group in {id(group["params"]): group for group in layers.groups}.values():
        mine = {*group["params"]}
        free = next((n for n, others in enumerate(held) if not others & mine), None)
        if free is None:
            families.append([group])
            held.append(mine)
        else:
            families[free].append(group)
            held[free] |= mine
    return families


def _join(
    groups: Sequence[Group],
    inserted: Inserted,
    now: Mapping[nn.Parameter, str],
    makers: Mapping[int, Kind],
) -> None:
    """Add a new layer's parameters to groups, in these very lists."""
    home = {parameter: group["params"] for group in groups for parameter in group["params"]}
    order = {parameter: number for number, parameter in enumerate(now)}
    block = {*inserted.neighbors, *inserted.neighbors.values()} if inserted.after else set()
    for new, like in inserted.neighbors.items():
        if like not in home:
            continue
        if inserted.after:
            # The whole copy follows the whole block, as it does in `model.parameters()`.
            neighbor = [parameter for parameter in home[like] if parameter in block][-1]
            after = True
        else:
            neighbor = _neighbor(new, like, home, now)
            neighbor = _of_its_kind(new, neighbor, home, makers)
            after = order[neighbor] < order[new]
        params = home[new] = home[neighbor]
        # Not `list.index`, which compares tensors entry by entry.
        position = next(number for number, parameter in enumerate(params) if parameter is neighbor)
        params.insert(position + after, new)


def _neighbor(
    new: nn.Parameter,
    weight: nn.Parameter,
    home: Mapping[nn.Parameter, list[nn.Parameter]],
    now: Mapping[nn.Parameter, str],
) -> nn.Parameter:
    """Choose the parameter whose group one of a new layer before a map joins: see `join_groups`."""
    path = now[weight].rpartition(".")[0]
    kind = now[new].rpartition(".")[2]
    before: list[nn.Parameter] = []
    after: list[nn.Parameter] = []
    for one, name in now.items():
        if one is new:
            before, after = after, []
        elif one in home and name.rpartition(".")[2] == kind:
            after.append(one)
    others = [*after, *reversed(before)]  # the next ones in the model first
    found = next((one for one in others if now[one].rpartition(".")[0] == path), None)
    groups = {id(home[one]) for one in others}
    if found is None and len(groups) == 1:
        found = others[0]
    # Where both are in one group, the new one stands next to the map's weight.
    return weight if found is None or home[found] is home[weight] else found


def _of_its_kind(
    new: nn.Parameter,
    neighbor: nn.Parameter,
    home: Mapping[nn.Parameter, list[nn.Parameter]],
    makers: Mapping[int, Kind],
) -> nn.Parameter:
    """Choose another neighbor for a vector that would come to matrices alone, as those of Muon or of its groups are."""
    params = home[neighbor]
    if new.dim() > 1 or any(one.dim() < 2 for one in params):
        return neighbor
    maker = makers[id(params)]
    vectors = (one for one, held in home.items() if one.dim() < 2 and makers[id(held)] != maker)
    return next(vectors, neighbor)


def _rename(
    group: Group,
    before: Sequence[nn.Parameter],
    names: Mapping[nn.Parameter, str],
    now: Mapping[nn.Parameter, str],
) -> None:
    """Bring recorded names into step with the list of parameters; a name that the user made up stays."""
    made_up = {}
    for old, recorded in zip(before, group["param_names"], strict=True):
        if recorded != names.get(old):
            made_up[old] = recorded
    recorded_names = [made_up.get(parameter) or now[parameter] for parameter in group["params"]]
    group["param_names"][:] = recorded_names
