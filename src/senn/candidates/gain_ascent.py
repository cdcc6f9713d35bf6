"""Ascent of the candidates: incoming parameters are moved uphill in the gain before it is judged (paper, section 3.2).

All candidates of all spaces climb at once, through autograd on a copy of the model in which they are dormant. Their
outgoing weights are zero, so none sees another, and the residual gradients that they are held against never change.
What climbs is log D' (Theorem 3.2), whose gradient is that of the bound divided by its value; a step is normalised unit
by unit, and one that does not raise a unit's own bound is taken back and halved, so no unit ends below where it began.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.func import functional_call

from senn.candidates.candidate_config import CandidateConfig
from senn.candidates.candidate_set import CandidateSet
from senn.candidates.initialization import SMALLEST_SPREAD
from senn.graph import DependencyGraph
from senn.kfac.capture import LayerRows, capture
from senn.kfac.factors import DAMPING, cholesky, kronecker_factors, solve, whiten
from senn.kfac.loss_metric import LossMetric
from senn.kfac.recorder import forward, record_linear_calls
from senn.preserve import preserve_model_state
from senn.pytree import Inputs
from senn.surgery import Widen, apply_moves, calibrate_batch_norm
from senn.surgery.plan import plan
from senn.surgery.plan_types import SurgeryPlan, find_tensor

WIDEST = 10.0
"""A pre-activation's spread may leave the one that it was drawn with by this factor and no more."""

Values = dict[str, dict[str, Tensor]]


@dataclass(frozen=True, eq=False)
class ResidualTarget:
    """What the existing weights of one linear map cannot explain.

    Attributes:
        gradient: rows of L_S^-1 d_r, (rows, m) float64.
        weights: (rows,) the samples' weights.
        locations: rows per sample.
    """

    gradient: Tensor
    weights: Tensor
    locations: int

    def gain_lower_bound(self, a: Tensor) -> Tensor:
        """D' of units with activations a (rows, units, p): (units,), see `scores.width_gain_bound`."""
        total = self.weights.sum()
        cross = torch.einsum("rm,rup->ump", self.gradient, a) / total
        moment = torch.einsum("rup,ruq->upq", a * self.weights[:, None, None], a) / total
        level = moment.diagonal(dim1=-2, dim2=-1)
        level = level * DAMPING + 1e-12 * level.detach().mean() + 1e-30
        gain: Tensor = (torch.linalg.solve(moment + torch.diag_embed(level), cross.mT) * cross.mT).sum((-2, -1))
        return gain * self.locations


class GainObjective:
    """The bound D' as a function of the candidates' incoming parameters.

    Args:
        model: the model, read only.
        graph: what in it can change.
        draw: the candidates.
        inputs: the samples to climb on.
        targets: theirs.
        metric: the loss.
        generator: source of the random signs behind S.
        weights: (samples,) with mean 1, or None.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        graph: DependencyGraph,
        draw: CandidateSet,
        inputs: Inputs,
        targets: Tensor,
        metric: LossMetric,
        generator: torch.Generator,
        weights: Tensor | None = None,
    ) -> None:
        moves = list(draw.widen.values())
        todo = plan(model, moves, graph)
        self.inputs, self.reads = inputs, _reads(todo, moves, graph)
        scored = {group for read in self.reads.values() for group in read}
        self.start: Values = {group: dict(move.values) for group, move in draw.widen.items() if group in scored}
        self.trial = copy.deepcopy(model)
        self._journal = apply_moves(self.trial, moves, graph)
        self.places = {
            (group, name): _places(todo, name, value) for group, of in self.start.items() for name, value in of.items()
        }
        makers = {
            coupled.map
            for group in graph.groups
            for coupled in group.dims_of("producer")
            if coupled.map in graph.scored_maps
        }
        with torch.no_grad(), preserve_model_state(model), record_linear_calls(model, sorted(makers)) as seen:
            forward(model, inputs)
        self._x = {name: one.x.detach().reshape(-1, one.x.shape[-1]) for name, (one,) in seen.items()}
        captured = capture(model, [*self.reads], inputs, targets, metric, generator=generator, weights=weights)
        self._residuals = {name: _residual(rows, weights) for name, rows in captured.rows.items()}

    def value_and_grad(self, values: Values) -> tuple[dict[str, Tensor], Values]:
        """D' of every unit, by space, and the gradient of log D' with respect to the values."""
        leaves = {group: {k: v.detach().requires_grad_() for k, v in of.items()} for group, of in values.items()}
        with torch.enable_grad(), preserve_model_state(self.trial):
            score = self._bounds(leaves)
            total = torch.cat([s.clamp_min(1e-300).log() for s in score.values()]).sum()
            flat = [leaf for of in leaves.values() for leaf in of.values()]
            found = iter(torch.autograd.grad(total, flat, materialize_grads=True))
        slopes = {group: {name: torch.nan_to_num(next(found)) for name in of} for group, of in leaves.items()}
        return {group: s.detach() for group, s in score.items()}, slopes

    def spreads(self, values: Values) -> dict[str, Tensor]:
        """Standard deviation of each unit's pre-activation, by producer: (units,)."""
        return {
            module: (self._x[module].to(weight) @ weight.mT).std(0, correction=0).clamp_min(SMALLEST_SPREAD)
            for module, weight in _weights(values).items()
        }

    def confined(self, values: Values, spreads: Mapping[str, Tensor]) -> Values:
        """The units with every pre-activation's spread within a factor `WIDEST` of the given one.

        Weights and bias are scaled together, so that the place where a unit bends stays where it is.
        """
        result = {group: dict(of) for group, of in values.items()}
        for module, now in self.spreads(values).items():
            factor = now.clamp(spreads[module] / WIDEST, spreads[module] * WIDEST) / now
            for of in result.values():
                for name in (f"{module}.weight", f"{module}.bias"):
                    if name in of:
                        of[name] = of[name] * _wide(factor, of[name])
        return result

    @torch.no_grad()
    def _calibrate(self, tensors: Mapping[str, Tensor]) -> None:
        """Have normalisations on the way follow the units, as they will when the units are there."""
        if self._journal.uncalibrated:
            for name, tensor in tensors.items():
                find_tensor(self.trial, name).copy_(tensor)
            calibrate_batch_norm(self.trial, self._journal, self.inputs)

    def _bounds(self, leaves: Values) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = {}
        for group, of in leaves.items():
            for name, leaf in of.items():
                base = tensors.get(name, find_tensor(self.trial, name).detach())
                tensors[name] = base.index_put(self.places[group, name], leaf.to(base))
        self._calibrate(tensors)
        with record_linear_calls(self.trial, [*self.reads]) as seen:
            functional_call(self.trial, tensors, self.inputs)
        score: dict[str, Tensor] = {}
        for name, read in self.reads.items():
            a = seen[name][0].x
            a = a.reshape(-1, a.shape[-1]).double()
            for group, columns in read.items():
                bound = self._residuals[name].gain_lower_bound(a[:, columns])
                score[group] = score[group] + bound if group in score else bound
        return score


def optimize_candidates(hill: GainObjective, draw: CandidateSet, recipe: CandidateConfig) -> CandidateSet:
    """The same candidates after `recipe.ascent` steps uphill.

    Args:
        hill: what to climb.
        draw: the candidates, those that the hill was made for.
        recipe: how many steps, and how long the first is, relative to the length of a unit's parameters in a module.
    """
    current = hill.start
    if not current:
        return draw
    spreads = hill.spreads(current)
    best, slopes = hill.value_and_grad(current)
    rate = {group: torch.full_like(score, recipe.ascent_step_size) for group, score in best.items()}
    for _ in range(recipe.ascent_steps):
        tried = hill.confined({s: _stepped(of, slopes[s], rate[s]) for s, of in current.items()}, spreads)
        score, there = hill.value_and_grad(tried)
        higher = {group: found > best[group] for group, found in score.items()}
        best = {group: torch.maximum(best[group], score[group]) for group in best}
        rate = {group: rate[group] * torch.where(higher[group], 1.5, 0.5) for group in rate}
        current, slopes = _taken(higher, tried, current), _taken(higher, there, slopes)
    return replace(draw, widen={s: replace(m, values=current.get(s, m.values)) for s, m in draw.widen.items()})


def _stepped(values: Mapping[str, Tensor], slopes: Mapping[str, Tensor], rate: Tensor) -> dict[str, Tensor]:
    """Each unit's parameters in each module moved along their slope, by `rate` times their own length."""
    result = {}
    for module in dict.fromkeys(name.rpartition(".")[0] for name in values):
        names = [name for name in values if name.rpartition(".")[0] == module]
        length, slope = (
            torch.cat([of[name].reshape(len(rate), -1) for name in names], 1).double().norm(dim=1)
            for of in (values, slopes)
        )
        step = torch.where(slope > 0, rate * length / slope.clamp_min(1e-300), 0.0)
        for name in names:
            result[name] = values[name] + _wide(step, slopes[name]) * slopes[name]
    return result


def _taken(which: Mapping[str, Tensor], new: Values, old: Values) -> Values:
    """The new entries of those units, the old ones of the others."""
    return {s: {k: torch.where(_wide(which[s], v), new[s][k], v) for k, v in of.items()} for s, of in old.items()}


def _wide(per_unit: Tensor, values: Tensor) -> Tensor:
    """(units,) shaped to go with values (units, ...)."""
    per_unit = per_unit.view(-1, *[1] * (values.dim() - 1))
    return per_unit if per_unit.dtype == torch.bool else per_unit.to(values)


def _weights(values: Values) -> dict[str, Tensor]:
    """Candidate rows of each producer, (units, in)."""
    return {
        name.removesuffix(".weight"): value
        for of in values.values()
        for name, value in of.items()
        if name.endswith(".weight") and value.dim() == 2
    }


def _places(todo: SurgeryPlan, name: str, value: Tensor) -> tuple[Tensor, ...]:
    """Indices at which new entries stand in the widened tensor, shaped to go with them."""
    (entry,) = [entry for entry in todo.entries[name] if entry.values is value]
    places = []
    for dim, size in enumerate(todo.shapes[name]):
        place = torch.arange(size)
        if dim in todo.layouts[name]:
            place = todo.layouts[name][dim].order.argsort()
            place = place[entry.offset : entry.offset + entry.count] if dim == entry.dim else place[:size]
        places.append(place.view(-1, *[1] * (value.dim() - dim - 1)))
    return tuple(places)


def _reads(todo: SurgeryPlan, moves: Sequence[Widen], graph: DependencyGraph) -> dict[str, dict[str, Tensor]]:
    """By scored map and space, where the candidates' columns stand in the widened map's input, (units, p)."""
    reads: dict[str, dict[str, Tensor]] = defaultdict(dict)
    offsets = {name: shape[1] for name, shape in todo.shapes.items() if len(shape) > 1}
    for move in moves:
        for coupled in graph.group(move.group).dims_of("consumer"):
            place = todo.layouts[coupled.name][1].order.argsort()
            new = slice(offsets[coupled.name], offsets[coupled.name] + move.units * coupled.index.shape[1])
            offsets[coupled.name] = new.stop
            if coupled.module in graph.scored_maps:
                reads[coupled.module][move.group] = place[new].view(move.units, -1)
    return reads


def _residual(rows: LayerRows, weights: Tensor | None) -> ResidualTarget:
    """Find the gradients of a map as it is that its own weights can't explain, before any candidate."""
    if weights is None:
        row_weights = rows.a.new_ones(len(rows.a))
    else:
        row_weights = weights.repeat_interleave(rows.locations).to(rows.a)
    found = kronecker_factors(rows.a, rows.output_grad, rows.pseudo_grad, locations=rows.locations, weights=row_weights)
    explained = rows.a.double() @ solve(cholesky(found.A), found.G.mT)
    residual = rows.output_grad.double() - explained * row_weights[:, None]
    white = whiten(cholesky(found.S), residual.mT).mT
    return ResidualTarget(white, row_weights.double(), rows.locations)
