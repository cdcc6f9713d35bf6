"""The oracle of `criteria.py`: each of some candidates is added to a copy and trained; what foresaw the order?

Copies have optimizer states of their own and see the same batches. What a candidate was worth is the validation loss
of the copy without any, trained as long, less that of its own.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from criteria_arms import Counted, fixed
from criteria_run import Run
from torch import Tensor, nn

import senn
from senn.candidates.initializers import NewUnits, PlaceActivations
from senn.policies.candidate import BirthKind
from senn.scoring.unit_scores import PlaceScores

if TYPE_CHECKING:
    from criteria import Results
    from criteria_tasks import Task

CANDIDATES, STEPS = 12, (20, 100, 300)


class Given:
    """One unit whose weights are known."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        self.weight, self.bias = weight, bias

    def sample(self, place: PlaceActivations, count: int, generator: torch.Generator) -> NewUnits:
        """The unit, however many are asked for."""
        flat = self.weight.flatten()[: place.x.shape[1]]
        flat = torch.cat([flat, flat.new_zeros(place.x.shape[1] - len(flat))])
        rows = count * place.rows_per_unit
        return NewUnits(weight=flat.expand(rows, -1), bias=self.bias.expand(rows))


def figures(scores: PlaceScores) -> dict[str, list[float]]:
    """Figures of the units of one place by which they could be chosen."""
    fractions = []
    for one in scores.readers.values():
        old = torch.arange(int(one.columns.min()))
        A = one.A.double()
        solved = torch.linalg.lstsq(A[old][:, old], A[old], driver="gelsd").solution
        rest = A - A[:, old] @ solved
        fractions.append((rest.diagonal() / A.diagonal())[one.columns].mean(1))
    return {
        "gain": scores.gain.tolist(),
        "lower bound": scores.gain_lower_bound.tolist(),
        "held-out gain": scores.held_out_gain.tolist(),
        "gradient": scores.gradient_norm.tolist(),
        "orthogonality": torch.stack(fractions).sum(0).tolist(),
    }


def ranks(values: Sequence[float]) -> Tensor:
    """Ranks of values."""
    return torch.tensor(values, dtype=torch.float64).argsort().argsort().double()


def rank_correlation(one: Sequence[float], other: Sequence[float]) -> float:
    """Spearman's."""
    return float(torch.corrcoef(torch.stack([ranks(one), ranks(other)]))[0, 1])


def correlate(results: Results, task: Task, *, when: str, birth: BirthKind, seed: int) -> None:
    """Train the candidates of every place of a task at one moment; one record for each place.

    Args:
        results: where the records are kept.
        task: the task.
        when: `early` or `late`: after a tenth or a half of the steps.
        birth: how a candidate is born.
        seed: of everything drawn.
    """
    abouts = {
        place: {"task": task.name, "arm": f"oracle at {place}", "when": when, "birth": birth}
        | {"seed": seed}
        for place in task.start
    }
    if all(results.key(**about) in results.records for about in abouts.values()):
        return
    run = Run(task, fixed(), when=when, birth="silent", seed=seed, flops=None)
    batches = task.batches(seed)
    for step in range(round(task.steps * {"early": 0.1, "late": 0.5}[when])):
        run._step(next(batches), step)
    later = [next(batches) for _ in range(STEPS[-1])]
    x, y, *_ = task.rows
    looked = torch.randperm(len(x), generator=run.generator)[: task.looked_at]
    config = senn.CandidateConfig(units=CANDIDATES)
    grower = senn.Grower(
        run.model, loss=task.loss, moves=("width",), candidate_config=config, seed=seed
    )
    grower.observe(x[looked], y[looked])
    scores = grower.score_units()
    rate = run.optimizer.param_groups[0]["lr"]
    plain = trained(task, *copy.deepcopy((run.model, run.optimizer)), later, rate)
    for place, about in abouts.items():
        worth: dict[int, list[float]] = {steps: [] for steps in STEPS}
        expected = []
        for unit in range(CANDIDATES):
            pair = copy.deepcopy((run.model, run.optimizer))
            expected.append(born(task, *pair, scores[place], unit, birth, looked))
            found = trained(task, *pair, later, rate)
            for steps in STEPS:
                worth[steps].append(plain[steps] - found[steps])
        known = {**figures(scores[place]), "expected decrease": expected}
        correlations = {
            f"after {steps}": {
                name: rank_correlation(values, worth[steps]) for name, values in known.items()
            }
            for steps in STEPS
        }
        about_figures = {"correlations": correlations, "worth": worth, "figures": known}
        results.add(about, about_figures)
        print(results.key(**about), correlations[f"after {STEPS[1]}"], flush=True)


def born(
    task: Task,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scores: PlaceScores,
    unit: int,
    birth: BirthKind,
    looked: Tensor,
) -> float:
    """Add one unit to a model, with its optimizer; returns what the event expects of it."""
    incoming: Mapping[str, Tensor] = scores.incoming
    given = Given(*(incoming[f"{scores.place}.{name}"][unit] for name in ("weight", "bias")))
    grower = senn.Grower(
        model,
        optimizer,
        loss=task.loss,
        moves=("width",),
        policy=Counted({scores.place: 1}),
        candidate_config=senn.CandidateConfig(units=1, initializer=given),
        birth=birth,
    )
    x, y, *_ = task.rows
    (event,) = grower.grow([(x[looked], y[looked])])
    return event.expected_decrease


def trained(
    task: Task,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Sequence[Tensor],
    rate: float,
) -> dict[int, float]:
    """Validation loss after some numbers of steps."""
    found: dict[int, Any] = {}
    x, y, *_ = task.rows
    optimizer.param_groups[0]["lr"] = rate
    for step, rows in enumerate(batches, 1):
        optimizer.zero_grad()
        task.loss(model(x[rows]), y[rows]).backward()
        optimizer.step()
        if step in STEPS:
            found[step] = task.figures(model)["loss"]
    return found
