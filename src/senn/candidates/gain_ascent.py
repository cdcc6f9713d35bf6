"""Gradient ascent of candidate units: incoming parameters move uphill in the gain before they are scored (section 3.2).

All candidates of all groups ascend at once, by autograd through a copy of the model in which they are dormant. Their
outgoing weights are zero, so no candidate sees another, and the residual gradients that they are compared with never
change. The objective is log D' (Theorem 3.2). Steps are normalized unit by unit; a step that doesn't raise a unit's own
bound is taken back and halved, so no unit ends below its start.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.func import functional_call

from senn.candidates.candidate_config import CandidateConfig
from senn.candidates.candidate_set import CandidateSet
from senn.candidates.initializers import MIN_SPREAD
from senn.graph import DependencyGraph
from senn.graph.model_copy import copy_model
from senn.kfac.capture import capture
from senn.kfac.factors import DAMPING, cholesky, kronecker_factors, solve
from senn.kfac.layer_statistics import LayerRows
from senn.kfac.loss_metric import LossMetric
from senn.kfac.recorder import record_linear_calls
from senn.kfac.whitening import square_root, whiten_outputs
from senn.preserve import preserve_model_state
from senn.pytree import Inputs, Targets
from senn.surgery import Widen, apply_moves, calibrate_batch_norm
from senn.surgery.plan import plan
from senn.surgery.plan_types import SurgeryPlan, find_tensor

MAX_SPREAD_CHANGE = 10.0
"""Factor by which a pre-activation's standard deviation may leave the one that it was sampled with.

D' of a ReLU unit doesn't depend on its scale, so nothing else holds it in place; but training goes on from these
weights, so their scale has to stay near that of the data.
"""

Values = dict[str, dict[str, Tensor]]
"""Incoming parameters of candidate units: by group, by name of the tensor."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ResidualTarget:
    """Gradients that the existing weights of one linear map can't explain.

    Attributes:
        gradient: rows of L_S^-1 d_r, (rows, m) float64, of the live locations.
        weights: weights of the rows' samples, (rows,) float64.
        locations: rows per sample, a mean where samples have different numbers of them.
        live: which of all rows these are, (all rows,) Boolean; None for all.
    """

    gradient: Tensor
    weights: Tensor
    locations: float
    live: Tensor | None

    def gain_lower_bound(self, a: Tensor) -> Tensor:
        """Compute D' of units: `scoring.formulas.width_gain_bound`, differentiable in the activations.

        Args:
            a: activations, (rows, units, p) with p columns per unit.

        Returns:
            D' of each unit in the unit of eta, (units,).
        """
        total = self.weights.sum()
        # D' = n_locations tr[C M^-1 C^T] with C = E[L_S^-1 d_r a^T] and M = E[a a^T] (Theorem 3.2)
        cross = torch.einsum("rm,rup->ump", self.gradient, a) / total
        moment = torch.einsum("rup,ruq->upq", a * self.weights[:, None, None], a) / total
        level = moment.diagonal(dim1=-2, dim2=-1)
        # The second term keeps M invertible where a unit is off on all rows; detached, so that it pulls on no unit.
        damping = level * DAMPING + 1e-12 * level.detach().mean() + 1e-30
        solved = torch.linalg.solve(moment + torch.diag_embed(damping), cross.mT)
        gain: Tensor = (solved * cross.mT).sum((-2, -1))
        return gain * self.locations


class GainObjective:
    """Bound D' as a function of the candidates' incoming parameters.

    Args:
        model: the model, read only.
        graph: what in it can change.
        candidates: the candidates; only `widen` is used.
        inputs: samples to ascend on.
        targets: targets of these samples.
        metric: the loss.
        generator: source of the random signs of S.
        weights: sample weights with mean 1, (samples,); None for ones.

    Attributes:
        start: incoming parameters as they were sampled.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        graph: DependencyGraph,
        candidates: CandidateSet,
        inputs: Inputs,
        targets: Targets,
        metric: LossMetric,
        generator: torch.Generator,
        weights: Tensor | None = None,
    ) -> None:
        # The copy is widened once; each evaluation then puts other values into its new entries (`functional_call`).
        moves = list(candidates.widen.values())
        widening = plan(model, moves, graph)
        self._inputs, self._columns = inputs, _candidate_columns(widening, moves, graph)
        scored = {group for columns in self._columns.values() for group in columns}
        self.start: Values = {
            move.group: dict(move.values) for move in moves if move.group in scored
        }
        # A copy: the model's own parameters and buffers are never written to.
        self._trial = copy_model(model)
        self._undo_log = apply_moves(self._trial, moves, graph)
        self._indices = {
            (group, name): _new_indices(widening, name, value)
            for group, values in self.start.items()
            for name, value in values.items()
        }
        producers = {
            dim.map
            for group in graph.groups
            for dim in group.dims_of("producer")
            if dim.map in graph.scored_maps
        }
        names = sorted({*self._columns, *producers})
        rows = capture(
            model, names, inputs, targets, metric, generator=generator, weights=weights
        ).rows
        # What producers read doesn't depend on the candidates, whose outgoing weights are zero: recorded once.
        self._x = {name: _live(_inputs(rows[name]), rows[name].live) for name in producers}
        self._targets = {name: _residual_target(rows[name], weights) for name in self._columns}

    def value_and_grad(self, values: Values) -> tuple[dict[str, Tensor], Values]:
        """Compute D' and the gradient of log D'.

        Args:
            values: incoming parameters, shaped like `start`.

        Returns:
            D' of every unit by group, (units,), and the gradient, shaped like `values`. The gradient of log D' is that
            of D' divided by D', so units of any gain move alike.
        """
        leaves = {
            group: {name: value.detach().requires_grad_() for name, value in tensors.items()}
            for group, tensors in values.items()
        }
        with torch.enable_grad(), preserve_model_state(self._trial):
            score = self._gain_lower_bounds(leaves)
            # The sum over units has the gradient of each by itself, as no candidate sees another.
            total = torch.cat([gains.clamp_min(1e-300).log() for gains in score.values()]).sum()
            flat = [leaf for tensors in leaves.values() for leaf in tensors.values()]
            grads = iter(torch.autograd.grad(total, flat, materialize_grads=True))
        # A unit that is off on all rows has no direction (0 / 0): it stays where it is.
        slopes = {
            group: {name: torch.nan_to_num(next(grads)) for name in tensors}
            for group, tensors in leaves.items()
        }
        return {group: gains.detach() for group, gains in score.items()}, slopes

    def spreads(self, values: Values) -> dict[str, Tensor]:
        """Return standard deviations of the units' pre-activations, by producer: (units,)."""
        return {
            module: (self._x[module].to(weight) @ weight.mT)
            .std(0, correction=0)
            .clamp_min(MIN_SPREAD)
            for module, weight in _linear_weights(values).items()
        }

    def confine(self, values: Values, spreads: Mapping[str, Tensor]) -> Values:
        """Rescale units whose pre-activations have left their range.

        Weights and bias are scaled together, so a unit bends where it did.

        Args:
            values: incoming parameters.
            spreads: by producer, the standard deviations that they may leave by a factor of `MAX_SPREAD_CHANGE`.
        """
        factors: dict[str, Tensor] = {}
        for module, now in self.spreads(values).items():
            low, high = spreads[module] / MAX_SPREAD_CHANGE, spreads[module] * MAX_SPREAD_CHANGE
            factors[f"{module}.weight"] = factors[f"{module}.bias"] = now.clamp(low, high) / now
        return {
            group: {
                name: value * _per_unit(factors[name], value) if name in factors else value
                for name, value in tensors.items()
            }
            for group, tensors in values.items()
        }

    @torch.no_grad()
    def _calibrate(self, tensors: Mapping[str, Tensor]) -> None:
        """Let BatchNorms take their statistics from the units, as they will when these are inserted."""
        if self._undo_log.uncalibrated:
            for name, tensor in tensors.items():
                find_tensor(self._trial, name).copy_(tensor)
            calibrate_batch_norm(self._trial, self._undo_log, self._inputs)

    def _gain_lower_bounds(self, leaves: Values) -> dict[str, Tensor]:
        """Run the copy with these parameters, and sum D' over the maps that read each group."""
        tensors: dict[str, Tensor] = {}
        for group, values in leaves.items():
            for name, leaf in values.items():
                # Several groups may have entries in one tensor (a weight's rows and columns).
                base = tensors.get(name, find_tensor(self._trial, name).detach())
                tensors[name] = base.index_put(self._indices[group, name], leaf.to(base))
        self._calibrate(tensors)
        with record_linear_calls(self._trial, [*self._columns]) as calls:
            functional_call(self._trial, tensors, self._inputs)
        score: dict[str, Tensor] = {}
        for name, columns in self._columns.items():
            x = calls[name][0].x
            # float64: D' is a quotient of small numbers where a unit adds little to what is there.
            a = _live(x.reshape(-1, x.shape[-1]).double(), self._targets[name].live)
            for group, of_group in columns.items():
                gain = self._targets[name].gain_lower_bound(a[:, of_group])
                # Maps add up, since the Fisher is taken as block-diagonal: no terms between them.
                score[group] = score[group] + gain if group in score else gain
        return score


def optimize_candidates(
    objective: GainObjective, candidates: CandidateSet, config: CandidateConfig
) -> CandidateSet:
    """Move candidate units uphill by `config.ascent_steps` steps.

    Args:
        objective: the objective, made for these candidates.
        candidates: the candidates.
        config: number of steps, and the length of the first relative to the norm of a unit's parameters in a module.

    Returns:
        The candidates with new values in `widen`; no unit's bound is lower than before.
    """
    current = objective.start
    if not current:
        return candidates
    spreads = objective.spreads(current)
    best, slopes = objective.value_and_grad(current)
    rates = {
        group: torch.full_like(score, config.ascent_step_size) for group, score in best.items()
    }
    for _ in range(config.ascent_steps):
        stepped = {
            group: _step(values, slopes[group], rates[group]) for group, values in current.items()
        }
        # Confined before it is scored, so that what is kept is what was measured.
        proposed = objective.confine(stepped, spreads)
        score, new_slopes = objective.value_and_grad(proposed)
        higher = {group: score[group] > best[group] for group in best}
        best = {group: torch.maximum(best[group], score[group]) for group in best}
        # Longer while it rises, halved where it doesn't: each unit finds its own length, without a line search.
        # With 1.5 and 0.5 it settles where 63 % of the steps rise; with 2 and 0.5, where half do.
        rates = {group: rates[group] * torch.where(higher[group], 1.5, 0.5) for group in rates}
        current, slopes = _select(higher, proposed, current), _select(higher, new_slopes, slopes)
    widen = {
        group: replace(move, values=current.get(group, move.values))
        for group, move in candidates.widen.items()
    }
    return replace(candidates, widen=widen)


def _step(
    values: Mapping[str, Tensor], slopes: Mapping[str, Tensor], rate: Tensor
) -> dict[str, Tensor]:
    """Move each unit's parameters along their slope, by `rate` times their own norm.

    Norms are those of a unit's parameters in one module, weight and bias together; `rate` is (units,).
    """
    result = {}
    for module in dict.fromkeys(name.rpartition(".")[0] for name in values):
        names = [name for name in values if name.rpartition(".")[0] == module]
        length = (
            torch.cat([values[name].reshape(len(rate), -1) for name in names], 1)
            .double()
            .norm(dim=1)
        )
        slope = (
            torch.cat([slopes[name].reshape(len(rate), -1) for name in names], 1)
            .double()
            .norm(dim=1)
        )
        # A step of a length relative to the unit's own norm: the learning rate needs no scale of its own.
        step = torch.where(slope > 0, rate * length / slope.clamp_min(1e-300), 0.0)
        for name in names:
            result[name] = values[name] + _per_unit(step, slopes[name]) * slopes[name]
    return result


def _select(which: Mapping[str, Tensor], new: Values, old: Values) -> Values:
    """Take the new entries of the units in `which` (units,) bool, the old ones of the others."""
    return {
        group: {
            name: torch.where(_per_unit(which[group], value), new[group][name], value)
            for name, value in tensors.items()
        }
        for group, tensors in old.items()
    }


def _per_unit(factor: Tensor, values: Tensor) -> Tensor:
    """Shape a factor (units,) so that it broadcasts to values (units, ...)."""
    factor = factor.view(-1, *[1] * (values.dim() - 1))
    return factor if factor.dtype == torch.bool else factor.to(values)


def _linear_weights(values: Values) -> dict[str, Tensor]:
    """Return the candidates' rows (units, in) of each linear producer."""
    return {
        name.removesuffix(".weight"): value
        for tensors in values.values()
        for name, value in tensors.items()
        if name.endswith(".weight") and value.dim() == 2
    }


def _new_indices(widening: SurgeryPlan, name: str, value: Tensor) -> tuple[Tensor, ...]:
    """Return where new entries are in the widened tensor: an index per dimension, which broadcast."""
    (entry,) = [entry for entry in widening.entries[name] if entry.values is value]
    indices = []
    for dim, size in enumerate(widening.shapes[name]):
        index = torch.arange(size)
        if dim in widening.layouts[name]:
            # Old entries come first in `order`, then those of each move: its inverse says where they end up.
            index = widening.layouts[name][dim].order.argsort()
            index = (
                index[entry.offset : entry.offset + entry.count]
                if dim == entry.dim
                else index[:size]
            )
        indices.append(index.view(-1, *[1] * (value.dim() - dim - 1)))
    return tuple(indices)


def _candidate_columns(
    widening: SurgeryPlan, moves: Sequence[Widen], graph: DependencyGraph
) -> dict[str, dict[str, Tensor]]:
    """Return candidates' columns in the widened input of each scored map, by group: (units, p)."""
    columns: dict[str, dict[str, Tensor]] = defaultdict(dict)
    # New columns of one map follow one another in the order of the moves, after its old ones.
    offsets = {name: shape[1] for name, shape in widening.shapes.items() if len(shape) > 1}
    for move in moves:
        for dim in graph.group(move.group).dims_of("consumer"):
            index = widening.layouts[dim.name][1].order.argsort()
            new = slice(offsets[dim.name], offsets[dim.name] + move.units * dim.index.shape[1])
            offsets[dim.name] = new.stop
            if dim.module in graph.scored_maps:
                columns[dim.module][move.group] = index[new].view(move.units, -1)
    return columns


def _residual_target(rows: LayerRows, weights: Tensor | None) -> ResidualTarget:
    """Find the gradients of a map, as it is, that its own weights can't explain."""
    live = rows.live
    if weights is None:
        row_weights = rows.a.new_ones(len(rows.a))
        samples = float(len(rows.a) // rows.locations)
    else:
        row_weights = weights.repeat_interleave(rows.locations).to(rows.a)
        samples = float(weights.sum())
    a, output_grad, pseudo_grad, row_weights = (
        _live(one, live) for one in (rows.a, rows.output_grad, rows.pseudo_grad, row_weights)
    )
    factors = kronecker_factors(a, output_grad, pseudo_grad, weights=row_weights)
    # d_r = d - w G A^-1 a: what is left of the gradient after the best change of the existing weights
    explained = a.double() @ solve(cholesky(factors.A), factors.G.mT)
    residual = output_grad.double() - explained * row_weights[:, None]
    # L_S^-1 d_r with S = L_S L_S^T turns tr[S^-1 d_r d_r^T] of Theorem 3.2 into a plain sum of squares.
    whitened = whiten_outputs(square_root(factors.S), residual.mT).mT
    return ResidualTarget(
        gradient=whitened,
        weights=row_weights.double(),
        locations=factors.rows / samples,
        live=live,
    )


def _inputs(rows: LayerRows) -> Tensor:
    """What a linear layer reads, (rows, in), without a constant."""
    (chunk,) = rows.chunks
    return chunk.layer_input.x.flatten(0, 1)


def _live(rows: Tensor, live: Tensor | None) -> Tensor:
    return rows if live is None else rows[live]
