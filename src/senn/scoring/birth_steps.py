"""Natural steps of what a round has added: the outgoing weights of new units, and what else makes a new layer count.

Surgery adds units and layers that change nothing: their outgoing weights are zero. Until these have grown, no gradient
reaches the incoming ones. The step that a natural gradient would take from there is known from the round's Kronecker
factors, S^-1 C (A_pp - A_pc A^-1 A_cp)^-1 for all new columns of a map together, so units can be born with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from senn.candidates.new_layers import ConvolutionalLayer, IdentityLayer
from senn.candidates.sampling import BATCH_NORMS
from senn.graph import LinearMap, get_tensor
from senn.kfac.factors import DAMPING, FactorInverse, WoodburyInverse, cholesky, solve
from senn.kfac.per_sample import PerSampleFactors
from senn.kfac.whitening import whiten_weights
from senn.nn import Rational
from senn.scoring.gains import LayerGains
from senn.scoring.pool import CandidatePool
from senn.surgery import Append, Insert, Prune, Receipt, Widen
from senn.surgery.moves import place_of
from senn.surgery.reindex import NewPositions


@dataclass(frozen=True, eq=False, kw_only=True)
class NewEntries:
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

    entries: NewEntries
    step: Tensor


def birth_steps(pool: CandidatePool, receipt: Receipt) -> list[BirthStep]:
    """Compute the steps of everything that a round has added.

    Groups of a grouped convolution are left silent: each of its filters reads a few of the new channels only.

    Args:
        pool: the round's pool, in which the additions are accepted.
        receipt: what the surgery did.
    """
    model = pool.model
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found: list[BirthStep] = []
    for move in receipt.moves:
        if isinstance(move, Widen):
            found += _of_units(pool, receipt, move.group, names)
    # Surgery inserts layers first, then copies, each in the order of the moves.
    inserted = iter(receipt.inserted)
    for kind in (Insert, Append):
        for move in receipt.moves:
            if not isinstance(move, kind):
                continue
            modules = next(inserted)
            if isinstance(move, Insert):
                tensors = _of_layer(pool, move.insertion_point, modules)
            else:
                tensors = _of_copy(pool, move, modules[0])
            for tensor, step in tensors:
                entries = NewEntries(
                    kind="insert",
                    place=place_of(move),
                    name=names[id(tensor)],
                    dim=0,
                    index=torch.arange(len(tensor)),
                    silent=tensor.detach().clone(),
                    is_new=any(tensor is own for part in modules for own in part.parameters()),
                )
                found.append(BirthStep(entries=entries, step=step.view(tensor.shape)))
    return found


def joint_step(
    gains: LayerGains, columns: Tensor, output_basis: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Natural step of columns that are added together, whatever was accepted before.

    Its direction is fitted on one fold, and so is its length, by the exact curvature along what the columns add to the
    outputs; it is K-FAC's own at most.

    Args:
        gains: gains of the map's columns.
        columns: (p,) numbers of candidate columns.
        output_basis: (m, r) orthonormal basis of the outputs that can change; None for all of them.

    Returns:
        (m, p), to be subtracted from the columns' weights, which are zero, and the same whitened, L^T d.
    """
    before = gains.clone()
    before.fit = gains.first_fit
    group = columns[None]
    white, slope = before.fitted_step(group, output_basis)
    flat, length = before.with_length(white, slope, group)
    return flat * length, white[0] * length


def prediction(gains: LayerGains, columns: Tensor) -> Tensor:
    """What a map's existing columns predict of candidate columns (p,) on the fitting fold, A^-1 A_cp, (c, p)."""
    c, fit = gains.existing, gains.folds[0]
    if isinstance(gains.inverse, WoodburyInverse):
        assert isinstance(fit.samples, PerSampleFactors)
        rows = fit.samples.a.double()
        old, new = rows[:, :c], rows[:, c:][:, columns]
        return WoodburyInverse(old).solve(old.mT @ new / len(rows))
    A = fit.complete.A
    # where A_cc is known, A holds the candidates' columns alone: count from the end
    side = A[:c, A.shape[1] - len(gains.damping) :][:, columns]
    inverse = gains.inverse if gains.is_shared else FactorInverse(cholesky(A[:c, :c], DAMPING))
    return inverse.solve(side)


def _of_units(
    pool: CandidatePool, receipt: Receipt, group: str, names: Mapping[int, str]
) -> list[BirthStep]:
    """Steps of the columns that read a group's new units."""
    found: list[BirthStep] = []
    by_map: dict[str, list[NewPositions]] = {}
    for one in receipt.new_positions[group]:
        if one.coupled.role == "consumer" and id(one.tensor) in names:
            by_map.setdefault(one.coupled.map, []).append(one)
    for name, several in by_map.items():
        layout, linear_map = pool.columns.get(name), pool.maps.get(name)
        if layout is None or linear_map is None or linear_map.groups > 1:
            continue
        columns = layout.groups[group][pool.grown[group]]
        gains = pool.layer_gains[name]
        wanted = pool.candidate_set.outgoing.get(group, {}).get(name)
        if wanted is not None:  # an initializer's own
            given = wanted.double().view(len(wanted), len(layout.groups[group]), -1)
            step = -given[:, pool.grown[group]].flatten(1)
        else:
            step, _ = joint_step(gains, columns.flatten())
            taken = -step @ prediction(gains, columns.flatten()).mT
            kept = _kept_outputs(pool, receipt, linear_map, len(step))
            step, taken = step[kept], taken[kept]
            found += _of_elders(pool.model, receipt, linear_map, several, taken)
        by_unit = step.view(len(step), *columns.shape)
        # Of a map that reads the group twice, each unit's columns in both places lie side by side.
        sizes = [one.index.shape[1] * linear_map.kernel_numel for one in several]
        for one, own in zip(several, torch.split(by_unit, sizes, 2), strict=True):
            index, dim = one.index.flatten(), linear_map.in_dim
            entries = NewEntries(
                kind="widen",
                place=group,
                name=names[id(one.tensor)],
                dim=dim,
                index=index,
                silent=one.tensor.detach().index_select(dim, index.to(one.tensor.device)),
            )
            outputs = old_outputs(receipt, one.tensor, linear_map)
            values = like_weight(own.flatten(1), linear_map, entries.silent, outputs)
            found.append(BirthStep(entries=entries, step=values))
    return found


def _kept_outputs(
    pool: CandidatePool, receipt: Receipt, linear_map: LinearMap, count: int
) -> Tensor:
    """Return which of a map's rows, of `count` before the round, are still there: it may have lost units as well."""
    is_kept = torch.ones(count, dtype=torch.bool)
    for move in receipt.moves:
        if isinstance(move, Prune):
            for coupled in pool.graph.group(move.group).dims:
                if (coupled.name, coupled.dim) == (linear_map.weight, linear_map.out_dim):
                    gone = coupled.index[list(move.units)].flatten()
                    # a row for each output and kernel position of a transposed convolution
                    rows = count // pool.outputs[linear_map.weight]
                    is_kept[(gone[:, None] * rows + torch.arange(rows)).flatten()] = False
    return is_kept.nonzero().flatten()


def _of_elders(
    model: nn.Module,
    receipt: Receipt,
    linear_map: LinearMap,
    several: Sequence[NewPositions],
    step: Tensor,
) -> list[BirthStep]:
    """Steps (m, c) of the existing columns and the bias, which take back what they predict of the new columns.

    So the outputs move by what is new in these alone, which is what the score has counted. Without it a step runs into
    the curvature of what all units have in common, such as their means, and only a few per cent of it helps.
    """
    weight, dim = several[0].tensor, linear_map.in_dim
    is_old = torch.ones(weight.shape[dim], dtype=torch.bool)
    for one in several:
        is_old[one.index.flatten()] = False
    index = is_old.nonzero().flatten()
    size = len(index) * linear_map.kernel_numel
    if size + (linear_map.bias is not None) != step.shape[1]:
        return []  # another group has widened the map in the same round
    rows = old_outputs(receipt, weight, linear_map)
    like = weight.detach().index_select(dim, index.to(weight.device))
    given = [(weight, dim, index, like_weight(step[:, :size], linear_map, like, rows))]
    if linear_map.bias is not None and not linear_map.transposed:
        given.append((get_tensor(model, linear_map.bias), 0, rows, step[:, -1]))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [
        BirthStep(
            entries=NewEntries(
                kind="widen",
                place=several[0].coupled.map,
                name=names[id(tensor)],
                dim=dim,
                index=index,
                silent=tensor.detach().index_select(dim, index.to(tensor.device)),
                is_new=False,
            ),
            step=values,
        )
        for tensor, dim, index, values in given
        if id(tensor) in names
    ]


def old_outputs(receipt: Receipt, weight: Tensor, linear_map: LinearMap) -> Tensor:
    """Return where the outputs stand now that a map's weight had before a round."""
    is_old = torch.ones(weight.shape[linear_map.out_dim], dtype=torch.bool)
    for several in receipt.new_positions.values():
        for one in several:
            if one.tensor is weight and one.coupled.dim == linear_map.out_dim:
                is_old[one.index.flatten()] = False
    return is_old.nonzero().flatten()


def like_weight(matrix: Tensor, linear_map: LinearMap, like: Tensor, outputs: Tensor) -> Tensor:
    """Give some columns of a map's matrix the dimensions that its weight has; the inverse of `weight_matrix`.

    Args:
        matrix: (m, columns).
        linear_map: the map.
        like: these columns of its weight, which may have further outputs.
        outputs: positions of the m outputs (of an m-th of them each, for a transposed convolution) in it.

    Returns:
        In the shape of `like`, zero at further outputs.
    """
    order = (linear_map.out_dim, linear_map.in_dim)
    whole = matrix.new_zeros(like.shape).movedim(order, (0, 1))
    if linear_map.transposed:  # a row for each output and kernel position, a column for each input
        rows = matrix.view(len(outputs), -1, matrix.shape[1])
        whole[outputs] = rows.movedim(2, 1).reshape(len(outputs), *whole.shape[1:])
    else:
        whole[outputs] = matrix.reshape(len(outputs), *whole.shape[1:])
    return whole.movedim((0, 1), order)


def _of_layer(
    pool: CandidatePool, point: str, modules: tuple[nn.Module, ...]
) -> list[tuple[Tensor, Tensor]]:
    """Steps of what makes an inserted layer count: V of a residual one, the activation of an identity insertion."""
    number, units = pool.insertions.units[point]
    layer = pool.candidate_set.layers[point][number]
    gains, by_layer = pool.insertions.scored_columns(point)
    columns = by_layer[number]
    if isinstance(layer, IdentityLayer):
        through = pool.insertions.through(point, layer)
        values = gains.first_fit.newton_step(columns.flatten(), through)
        activation = modules[1]
        if isinstance(activation, Rational):
            c, v = values.view(-1, 2).unbind(1)
            return [(activation.c, c), (activation.v, v)]
        return [(activation.get_parameter("weight"), values)]
    own = columns[units].flatten()
    if isinstance(layer, ConvolutionalLayer):  # its outputs are the stream itself
        step, _ = joint_step(gains, own)
    else:
        _, white = joint_step(gains, own, pool.insertions.output_basis(point))
        # V reaches the outputs as W V: least squares in their metric.
        step = _least_squares(pool.insertions.whitened_weight(point), white)
    last = list(modules[0].modules())[-1].get_parameter("weight")
    linear = list(pool.model.get_submodule(point).children())[-1]
    return [(last, step), *_behind_layer(linear, -step @ prediction(gains, own).mT)]


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
    for name, gains in pool.stream.gains_of(move.block).items():
        module = added.get_submodule(name)
        weight = module.get_parameter("weight")
        columns = torch.arange(len(gains.damping))
        if isinstance(module, BATCH_NORMS):
            each = torch.eye(len(weight), dtype=torch.float64)
            through = whiten_weights(gains.whitener, each)
            found.append((weight, gains.first_fit.newton_step(columns, through)))
            continue
        step, _ = joint_step(gains, columns)
        found.append((weight, step))
        bias = getattr(module, "bias", None)
        if bias is not None and not bias.any():
            found.append((bias, -step @ prediction(gains, columns)[0]))
    return found


def _least_squares(through: Tensor, white: Tensor) -> Tensor:
    """Solve W V = D for V (in, p) by the smaller of the two normal equations, damped; W (m, in), D (m, p)."""
    if len(through) <= through.shape[1]:
        return through.mT @ solve(cholesky(through @ through.mT, DAMPING), white)
    return solve(cholesky(through.mT @ through, DAMPING), through.mT @ white)
