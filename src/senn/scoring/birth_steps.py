"""Natural steps of what a round has added: the outgoing weights of new units, and what else makes a new layer count.

Surgery adds units and layers that change nothing: their outgoing weights are zero. Until these have grown, no gradient
reaches the incoming ones. The step that a natural gradient would take from there is known from the round's Kronecker
factors, S^-1 C (A_pp - A_pc A^-1 A_cp)^-1 for all new columns of a map together, so units can be born with it.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from senn.candidates.new_layers import IdentityLayer
from senn.graph import LinearMap, get_tensor
from senn.nn import Rational
from senn.scoring.account_steps import copy_steps, layer_steps, unit_steps
from senn.scoring.pool import CandidatePool
from senn.surgery import Append, Insert, Receipt
from senn.surgery.moves import place_of
from senn.surgery.reindex import NewPositions

ACTION = "send the new weights"


@dataclass(frozen=True, eq=False, kw_only=True)
class ParameterEntries:
    """Entries of a parameter through which alone a new unit or layer reaches the outputs.

    Attributes:
        kind: `widen` or `insert`, as of the event.
        place: as of the event.
        name: full name of the parameter in the grown model.
        dim: dimension along which they lie.
        index: (n,) their positions.
        silent: their values with which nothing is added to the outputs, n of them along `dim`.
        is_new: False for existing weights that take back what they predict of the new ones.
    """

    kind: str
    place: str
    name: str
    dim: int
    index: Tensor
    silent: Tensor
    is_new: bool = True

    def fits(self, model: nn.Module) -> bool:
        """Return True if the model still has these entries."""
        parameter = dict(model.named_parameters()).get(self.name)
        if parameter is None or parameter.dim() <= self.dim:
            return False
        shape = list(parameter.shape)
        largest, shape[self.dim] = shape[self.dim], len(self.index)
        return shape == [*self.silent.shape] and int(self.index.max()) < largest

    def read(self, model: nn.Module) -> Tensor:
        """Return a copy of the values that they have."""
        values = get_tensor(model, self.name).detach()
        return values.index_select(self.dim, self.index.to(values.device))

    def write(self, model: nn.Module, values: Tensor) -> None:
        """Overwrite their values, without a trace in autograd."""
        data = get_tensor(model, self.name).data
        data.index_copy_(self.dim, self.index.to(data.device), values.to(data))


@dataclass(frozen=True, eq=False, kw_only=True)
class BirthStep:
    """New entries, and the step that is subtracted from their silent values at a birth of full length."""

    entries: ParameterEntries
    step: Tensor


def birth_steps(pool: CandidatePool, receipt: Receipt) -> list[BirthStep]:
    """Compute the steps of everything that a round has added.

    Groups of a grouped convolution are left silent: each of its filters reads a few of the new channels only.

    Args:
        pool: the round's pool, in which the additions are accepted.
        receipt: what the surgery did.
    """
    names = {id(parameter): name for name, parameter in pool.model.named_parameters()}
    return [*_of_units(pool, receipt, names), *_of_inserted(pool, receipt, names)]


def _of_units(pool: CandidatePool, receipt: Receipt, names: Mapping[int, str]) -> list[BirthStep]:
    """Steps of the columns that read new units, map by map."""
    by_map: dict[str, list[tuple[str, NewPositions]]] = {}
    for group, several in receipt.new_positions.items():
        for one in () if group in pool.candidate_set.streams else several:
            if one.coupled.role == "consumer" and id(one.tensor) in names:
                by_map.setdefault(one.coupled.map, []).append((group, one))
    found: list[BirthStep] = []
    for name, read in by_map.items():
        linear_map = pool.maps.get(name)
        if linear_map is not None and linear_map.groups == 1:
            found += _of_map(pool, linear_map, read, names)
    return found


def _of_map(
    pool: CandidatePool,
    linear_map: LinearMap,
    read: Sequence[tuple[str, NewPositions]],
    names: Mapping[int, str],
) -> list[BirthStep]:
    """Steps of one map's new columns, and of its existing ones.

    Existing columns and the bias take back what they predict of the new columns, so that the outputs move by what is
    new in these alone, which is what the score has counted. Without it a step runs into the curvature of what all units
    have in common, such as their means, and a quarter of the decrease is left.
    """
    layout = pool.columns[linear_map.name]
    columns = {
        group: layout.groups[group][pool.grown[group]] for group in dict.fromkeys(dict(read))
    }
    wanted = pool.candidate_set.outgoing
    steps: dict[str, Tensor] = {}
    for group in columns:
        if linear_map.name in wanted.get(group, {}):  # an initializer's own
            given = wanted[group][linear_map.name].double()
            by_unit = given.view(len(given), len(layout.groups[group]), -1)
            steps[group] = -by_unit[:, pool.grown[group]].flatten(1)
    free = [group for group in columns if group not in steps]
    found: list[BirthStep] = []
    if free:
        own = torch.cat([columns[group].flatten() for group in free])
        compute = functools.partial(unit_steps, pool, linear_map.name, own)
        step, taken = pool.owners.share(ACTION, linear_map.name, compute)
        sizes = [columns[group].numel() for group in free]
        steps |= zip(free, torch.split(step, sizes, 1), strict=True)
        found += _of_existing(pool.model, linear_map, read[0][1], taken, names)
    for group, step in steps.items():
        places = [one for of, one in read if of == group]
        # Of a map that reads the group twice, each unit's columns in both places lie side by side.
        sizes = [one.index.shape[1] * linear_map.kernel_numel for one in places]
        by_unit = step.reshape(len(step), *columns[group].shape)
        for one, part in zip(places, torch.split(by_unit, sizes, 2), strict=True):
            index = one.index.flatten()
            values = _like_weight(part.flatten(1), linear_map, one, len(index))
            about: dict[str, Any] = {
                "kind": "widen",
                "place": group,
                "dim": linear_map.in_dim,
                "index": index,
            }
            found.append(entry_step(one.tensor, values, names, **about))
    return found


def _of_existing(
    model: nn.Module,
    linear_map: LinearMap,
    one: NewPositions,
    step: Tensor,
    names: Mapping[int, str],
) -> list[BirthStep]:
    """Steps of a map's existing columns and its bias, from one (m, c) of all that there were."""
    former, now = one.kept(linear_map.in_dim)
    kernel = torch.arange(linear_map.kernel_numel)
    columns = (former[:, None] * linear_map.kernel_numel + kernel).flatten()
    values = _like_weight(step[:, columns], linear_map, one, len(now))
    about: dict[str, Any] = {"kind": "widen", "place": one.coupled.map, "is_new": False}
    found = [entry_step(one.tensor, values, names, dim=linear_map.in_dim, index=now, **about)]
    if linear_map.bias is not None and not linear_map.transposed:
        bias = get_tensor(model, linear_map.bias)
        former, now = one.kept(linear_map.out_dim)
        if id(bias) in names:
            found.append(entry_step(bias, step[former, -1], names, index=now, **about))
    return found


def entry_step(
    tensor: Tensor,
    step: Tensor,
    names: Mapping[int, str],
    *,
    kind: str,
    place: str,
    dim: int = 0,
    index: Tensor | None = None,
    is_new: bool = True,
) -> BirthStep:
    """Make the step of some entries of a parameter, which are silent as they are now.

    Args:
        tensor: the parameter.
        step: their step, of as many numbers.
        names: full names of parameters, by identity.
        kind: as of `ParameterEntries`, and so are the others.
        place: as of the event.
        dim: dimension along which they lie.
        index: (n,) their positions; None for all.
        is_new: False for existing weights.
    """
    if index is None:
        index = torch.arange(len(tensor))
    entries = ParameterEntries(
        kind=kind,
        place=place,
        name=names[id(tensor)],
        dim=dim,
        index=index,
        silent=tensor.detach().index_select(dim, index.to(tensor.device)),
        is_new=is_new,
    )
    return BirthStep(entries=entries, step=step.view(entries.silent.shape))


def _like_weight(matrix: Tensor, linear_map: LinearMap, one: NewPositions, inputs: int) -> Tensor:
    """Give columns of a map's former matrix, of so many inputs, the dimensions and the outputs of its weight now."""
    former, now = one.kept(linear_map.out_dim)
    shape = list(one.tensor.shape)
    shape[linear_map.in_dim] = inputs
    if linear_map.transposed:  # a row for each output and kernel position
        kernel = len(matrix) // one.former_size(linear_map.out_dim)
        former = (former[:, None] * kernel + torch.arange(kernel)).flatten()
    return like_weight(matrix[former], linear_map, shape, now)


def like_weight(
    matrix: Tensor, linear_map: LinearMap, shape: Sequence[int], outputs: Tensor
) -> Tensor:
    """Give a map's matrix the dimensions that its weight has; the inverse of `weight_matrix`.

    Args:
        matrix: (m, columns), of some of the outputs.
        linear_map: the map.
        shape: of the weight.
        outputs: positions of these outputs in it.

    Returns:
        In that shape, zero at other outputs.
    """
    order = (linear_map.out_dim, linear_map.in_dim)
    whole = matrix.new_zeros(shape).movedim(order, (0, 1))
    if linear_map.transposed:  # a row for each output and kernel position, a column for each input
        rows = matrix.view(len(outputs), -1, matrix.shape[1])
        whole[outputs] = rows.movedim(2, 1).reshape(len(outputs), *whole.shape[1:])
    else:
        whole[outputs] = matrix.reshape(len(outputs), *whole.shape[1:])
    return whole.movedim((0, 1), order)


def _of_inserted(
    pool: CandidatePool, receipt: Receipt, names: Mapping[int, str]
) -> list[BirthStep]:
    """Steps of new layers and of copies of blocks."""
    # Surgery inserts layers first, then copies, each in the order of the moves.
    moves: list[Insert | Append] = [one for one in receipt.moves if isinstance(one, Insert)]
    moves += [one for one in receipt.moves if isinstance(one, Append)]
    found: list[BirthStep] = []
    for move, modules in zip(moves, receipt.inserted, strict=True):
        if isinstance(move, Insert):
            tensors = _of_layer(pool, move.insertion_point, modules)
        else:
            tensors = _of_copy(pool, move, modules[0])
        new = {id(parameter) for module in modules for parameter in module.parameters()}
        found += [
            entry_step(
                tensor,
                step,
                names,
                kind="insert",
                place=place_of(move),
                is_new=id(tensor) in new,
            )
            for tensor, step in tensors
        ]
    return found


def _of_layer(
    pool: CandidatePool, point: str, modules: tuple[nn.Module, ...]
) -> list[tuple[Tensor, Tensor]]:
    """Steps of what makes an inserted layer count: V of a residual one, the activation of an identity insertion."""
    layer = pool.candidate_set.layers[point][pool.insertions.units[point][0]]
    found = pool.owners.share(ACTION, point, functools.partial(layer_steps, pool, point))
    if isinstance(layer, IdentityLayer):
        (values,) = found
        activation = modules[1]
        if isinstance(activation, Rational):
            c, v = values.view(-1, 2).unbind(1)
            return [(activation.c, c), (activation.v, v)]
        return [(activation.get_parameter("weight"), values)]
    step, taken = found
    last = list(modules[0].modules())[-1].get_parameter("weight")
    linear = list(pool.model.get_submodule(point).children())[-1]
    return [(last, step), *_behind_layer(linear, taken)]


def _behind_layer(linear: nn.Module, taken: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Steps of the map after a new layer, which take back what its inputs predict of the layer's outputs.

    With x + V phi in place of x, and phi = P [x, 1] + r, weights W (1 - V P) in place of W leave W V r alone.

    Args:
        linear: the map, W.
        taken: V P, (in, in + 1), or (in, in) without the constant.
    """
    weight = linear.get_parameter("weight")
    matrix = weight.detach().double()
    size = taken.shape[0]
    # of a convolution the channels are dimension 1
    folded = torch.tensordot(matrix, taken[:, :size], ([1], [0])).movedim(-1, 1)
    found: list[tuple[Tensor, Tensor]] = [(weight, folded)]
    if taken.shape[1] > size and (bias := getattr(linear, "bias", None)) is not None:
        # at the border of an image padding has no constant, which is left to training
        constant = torch.tensordot(matrix, taken[:, -1:], ([1], [0])).flatten(1).sum(1)
        found.append((bias, constant))
    return found


def _of_copy(pool: CandidatePool, move: Append, added: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """Steps of the output weights of a copy of a block, and of output biases, which take back their mean effect."""
    found: list[tuple[Tensor, Tensor]] = []
    for name in pool.stream.outputs[move.block]:
        module = added.get_submodule(name)
        compute = functools.partial(copy_steps, pool, move.block, name, module)
        source = pool.owners.blocks[move.block]
        steps = pool.owners.communicator.broadcast_result(ACTION, source, compute)
        found.append((module.get_parameter("weight"), steps[0]))
        bias = getattr(module, "bias", None)
        if len(steps) > 1 and bias is not None and not bias.any():
            found.append((bias, steps[1]))
    return found
