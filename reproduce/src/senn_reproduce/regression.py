"""Figure 2: least squares on fifty samples of a one-dimensional function, neurons added where they are wanted.

The target is a random deep rational network, the net has one hidden layer and starts with one neuron. Full-batch
natural gradient with exact curvature trains it between the rounds of growth.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from senn.candidates.candidate_config import CandidateConfig
from senn.grower import Grower
from senn.nn import MLP, Rational
from senn.optim import NaturalGradient
from senn.policies import PaperPolicy
from senn_reproduce.landscape import Moment, figure
from senn_reproduce.results import Record, table, write_results
from senn_reproduce.step_threads import step_threads

TRAIN, TEST = 50, 1000
DEEP = (16, 16, 16, 16)
POLICY = PaperPolicy(tau=1.0, alpha=2.5e-3)
CANDIDATE_CONFIG = CandidateConfig(ascent_steps=30)
ADAPTED = {"adapt": True, "damping": 1e-2, "weight_decay": 1e-7}
"""Ours: each step's length, momentum and damping follow from the exact quadratic model."""
FIXED = {
    "metric": "euclidean",
    "lr": 0.1,
    "damping": 0.1,
    "momentum": 0.0,
    "norm_constraint": None,
}
"""The paper's natural gradient: a fixed rate and a fixed damping."""


@dataclass(frozen=True)
class Settings:
    """How a run goes; the defaults are ours, found on seeds from 100 on, which no figure reports.

    Args:
        steps: of natural gradient.
        every: steps between two rounds of growth.
        max_width: most neurons.
        optimizer: options of `NaturalGradient`, by conjugate gradients.
        policy: when to grow.
        candidate_config: what to grow by.
    """

    steps: int = 180
    every: int = 30
    max_width: int = 11
    optimizer: Mapping[str, Any] = field(default_factory=lambda: ADAPTED)
    policy: PaperPolicy = POLICY
    candidate_config: CandidateConfig = CANDIDATE_CONFIG


FULL = Settings(
    steps=2000,
    max_width=128,
    optimizer=FIXED,
    candidate_config=CandidateConfig(units=100, ascent_steps=300),
)
"""The paper's size, with the values of its authors' code: steps, optimizer, tau, alpha, capacity and proposals.

Proposals differ in two ways. The authors' are moved by a Langevin sampler of 300 bursts of ten steps, ours by 300 steps
of gradient ascent; and theirs are drawn without regard to the data, ours at the scale of the data.
"""


@dataclass
class Run:
    """What came of one seed.

    Attributes:
        data: training inputs and targets.
        target: the function behind them.
        record: for `results.json`.
        moments: the network before and after each round that added to it, and at the end.
        additions: how many neurons each round added.
    """

    data: tuple[Tensor, Tensor]
    target: nn.Module
    record: Record = field(default_factory=dict)
    moments: list[Moment] = field(default_factory=list)
    additions: list[int] = field(default_factory=list)


def random_network(generator: torch.Generator) -> MLP:
    """A deep net of random rational units: weights LeCun normal, all else standard normal."""
    with torch.random.fork_rng():
        net = MLP(1, DEEP, 1, activation="rational")
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.Linear):
                # A normal cut off at two deviations has .8796 of their length.
                nn.init.trunc_normal_(module.weight, 0.0, 1.0, -2.0, 2.0, generator=generator)
                module.weight.div_(0.87962566 * math.sqrt(module.in_features))
                module.bias.normal_(generator=generator)
            elif isinstance(module, Rational):
                for parameter in module.parameters():
                    parameter.normal_(generator=generator)
    return net.requires_grad_(False)


def run(seed: int, settings: Settings) -> Run:
    """Train and grow one network.

    Args:
        seed: decides the target, the samples, the start and all candidates.
        settings: sizes of the experiment.

    Returns:
        What was recorded.
    """
    generator = torch.Generator().manual_seed(seed)
    target = random_network(generator)
    inputs = torch.randn(TRAIN + TEST, 1, generator=generator)
    x, test = inputs[:TRAIN], inputs[TRAIN:]
    y = target(x)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = MLP(1, (1,), 1, activation="rational")
    optimizer = NaturalGradient(model, loss=F.mse_loss, method="cg", **settings.optimizer)
    grower = Grower(
        model, optimizer, F.mse_loss, settings.policy, moves=("width",), max_width=settings.max_width,
        candidate_config=settings.candidate_config, seed=seed,
    )  # fmt: skip
    result = Run((x, y), target)
    seconds = -time.perf_counter()
    with step_threads(model, x[:1], len(x)) as threads:
        for step in range(settings.steps):
            if step % settings.every == 0:
                before = copy.deepcopy(model)
                events = grower.grow([(x, y)])
                threads.follow(step)
                result.additions.append(sum(event.units for event in events))
                if events:
                    result.moments.append(_moment(step, before, grower, added=model))
                    grower.score_candidates([(x, y)])
                    grower.reset()
                    result.moments.append(_moment(step, model, grower))
            optimizer.step(x, y)
    seconds += time.perf_counter()
    grower.score_candidates([(x, y)])
    result.moments.append(_moment(settings.steps, model, grower))
    result.record = {
        "seed": seed, "test": {"error": _error(model, target, test)}, "train": {"error": _error(model, target, x)},
        "hidden": list(model.hidden), "units": sum(model.hidden),
        "parameters": sum(p.numel() for p in model.parameters()), "seconds": seconds, "threads": threads.record,
    }  # fmt: skip
    return result


@torch.no_grad()
def _error(model: nn.Module, target: nn.Module, x: Tensor) -> float:
    """Mean squared error over the variance of the target."""
    y = target(x)
    return float(F.mse_loss(model(x), y) / y.var(correction=0))


def _moment(step: int, model: MLP, grower: Grower, added: MLP | None = None) -> Moment:
    """Return the network with the candidates of the last round, and those of them that it took."""
    (move,) = grower.candidate_set.widen.values()
    names = sorted(move.values)
    weight, bias = (
        next(move.values[n] for n in names if n.endswith(end)) for end in (".weight", ".bias")
    )
    taken = torch.zeros(len(weight), dtype=torch.bool)
    if added is not None:
        first = added.body[0]
        assert isinstance(first, nn.Linear)
        new = first.weight.detach()[model.hidden[0] :]
        taken = (weight[:, None] == new[None]).all(-1).any(1)
    return Moment(step, copy.deepcopy(model), grower.eta, weight[:, 0], bias, taken)


def shown(moments: Sequence[Moment]) -> list[Moment]:
    """Pick what figure 2 shows: before and after the fourth neuron, before the fifth, and the end."""
    before = [
        i
        for i, m in enumerate(moments)
        if bool(m.taken.any()) and m.units < 4 <= moments[i + 1].units
    ]
    chosen = range(before[0], min(before[0] + 3, len(moments) - 1)) if before else []
    return [*(moments[i] for i in chosen if moments[i].units <= 4), moments[-1]]


def main(seeds: int, out: Path, settings: Settings | None = None) -> list[Record]:
    """Run the experiment with several seeds; write `results.json` and `figure.png`, print a table.

    Args:
        seeds: number of seeds: 0, 1, ... are run one after the other.
        out: folder for the results, which exists.
        settings: sizes of the experiment; None for those for two cores.

    Returns:
        A record for each seed.
    """
    settings = settings or Settings()
    command = f"senn reproduce regression --seeds {seeds}" + " --full" * (settings == FULL)
    runs: list[Run] = []
    for seed in range(seeds):
        runs.append(run(seed, settings))
        # after each seed, so that a run that is stopped leaves what it has measured
        write_results([each.record for each in runs], out / "results.json", command)
    records = [each.record for each in runs]
    drawn = max(
        runs, key=lambda each: len(shown(each.moments))
    )  # the first whose fourth and fifth came apart
    figure(shown(drawn.moments), drawn.data, drawn.target, settings.policy.tau, out / "figure.png")
    print(table(records))
    return records
