"""How much a growth throws a loss back, by optimizer and by how late it comes.

    python benchmarks/late_growth.py [--seeds 5] [--only NAME ...] [--out benchmarks/results/late_growth.json]

A net of 16 hidden units learns digits (1,400 images, minibatches of 64). After 20, 200, 600 and 3,000 steps copies of
it grow to 32 units at most, and train on for 50 steps beside a twin that doesn't grow, on the same minibatches. Births
are

- `silent`: outgoing weights zero;
- `stepped`: outgoing weights at as much of their natural step as lowers the loss.

Second moments of new entries in the optimizer's state are

- `zero`: as an optimizer starts them;
- `measured`: what goes with their own gradients, at the level of the old entries' (what a `Grower` does).

For each: `worst`, the largest ratio of the loss to the twin's, both on all 1,400 images, over the 50 steps, the first
of which is the birth; `end`, the last ratio; `parity`, the mean length of the gradient of new units' incoming weights
over that of old ones 20 steps after the birth. All are means over seeds, and `worst` comes with the worst seed's.

Optimizers beyond PyTorch's need the extra `optimizers`; without it they are left out. A run that was broken off goes on
where its `--out` ends.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import importlib.util
import json
import statistics
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

import senn
from senn.policies import Candidate
from senn.surgery.optimizer_layers import OptimizerLayers
from senn.surgery.second_moments import find_second_moments

WHEN = (20, 200, 600, 3000)
"""Steps before the growth."""

AFTER = 50
"""Steps after it."""

OLD, MOST = 16, 32
"""Hidden units before the growth, and at most after it."""

Make = Callable[[nn.Module], Any]


class TakeAny(senn.Policy):
    """Accepts whatever is offered, the best first: the question is what growing does, not whether it pays."""

    def choose(  # noqa: D102
        self, candidates: Sequence[Candidate], accepted: Sequence[Candidate]
    ) -> Candidate | None:
        return max(candidates, key=lambda one: one.held_out_gain, default=None)


def data() -> tuple[Tensor, Tensor]:
    digits = load_digits()
    order = torch.randperm(len(digits.data), generator=torch.Generator().manual_seed(1))[:1400]
    return torch.tensor(digits.data).float()[order] / 16, torch.tensor(digits.target)[order]


def optimizers() -> dict[str, Make]:
    """What makes each optimizer, with a learning rate at which it trains this net well."""

    def plain(kind: Any, **options: Any) -> Make:
        return lambda model: kind(model.parameters(), **options)

    def muon(model: nn.Module) -> list[Any]:
        matrices = [p for p in model.parameters() if p.dim() == 2]
        others = [p for p in model.parameters() if p.dim() != 2]
        return [torch.optim.Muon(matrices, lr=0.01), torch.optim.AdamW(others, lr=3e-3)]

    found: dict[str, Make] = {
        "SGD, momentum": plain(torch.optim.SGD, lr=0.05, momentum=0.9),
        "Adam": plain(torch.optim.Adam, lr=3e-3),
        "AdamW": plain(torch.optim.AdamW, lr=3e-3),
        "NAdam": plain(torch.optim.NAdam, lr=3e-3),
        "RAdam": plain(torch.optim.RAdam, lr=3e-3),
        "Adamax": plain(torch.optim.Adamax, lr=3e-3),
        "RMSprop": plain(torch.optim.RMSprop, lr=1e-3),
        "Adagrad": plain(torch.optim.Adagrad, lr=3e-2),
        "Adadelta": plain(torch.optim.Adadelta, lr=1.0),
        "Adafactor": plain(torch.optim.Adafactor, lr=1e-2),
        "Muon": muon,
    }
    others = {
        "pytorch_optimizer": {"ADOPT": 3e-3, "Lion": 3e-4, "SOAP": 3e-3, "AdaBelief": 3e-3},
        "schedulefree": {"AdamWScheduleFree": 3e-3},
        "heavyball": {"AdamW": 3e-3},
    }
    for package, kinds in others.items():
        if importlib.util.find_spec(package) is not None:
            module = importlib.import_module(package)
            if package == "heavyball":
                module.utils.compile_mode = None
            for name, lr in kinds.items():
                found[f"{name} ({package})"] = plain(getattr(module, name), lr=lr)
    return found


def minibatches(seed: int, count: int) -> Iterator[Tensor]:
    chance = torch.Generator().manual_seed(seed)
    for _ in range(count):
        yield torch.randint(0, 1400, (64,), generator=chance)


class Run:
    """A net with its optimizer, at some step of its training.

    Args:
        make: makes the optimizer.
        seed: of the weights and of the minibatches.
    """

    def __init__(self, make: Make, seed: int) -> None:
        torch.manual_seed(seed)
        self.x, self.y = data()
        self.model = nn.Sequential(nn.Linear(64, OLD), nn.ReLU(), nn.Linear(OLD, 10))
        self.optimizer = make(self.model)
        self.make, self.seed = make, seed

    def parts(self) -> list[Any]:
        """The optimizers, in a list."""
        return self.optimizer if isinstance(self.optimizer, list) else [self.optimizer]

    def copy(self) -> Run:
        """A copy with an optimizer of its own; a deep copy of one would lose what its class adds."""
        other = copy.copy(self)
        other.model = copy.deepcopy(self.model)
        other.optimizer = self.make(other.model)
        for mine, its in zip(self.parts(), other.parts(), strict=True):
            its.load_state_dict(copy.deepcopy(mine.state_dict()))
        return other

    def train(self, rows: Iterator[Tensor], *, watched: bool = False) -> tuple[list[float], float]:
        """Train on minibatches; return the loss on all images before each step, and the parity at step 20."""
        losses, parity = [], float("nan")
        for one in self.parts():
            if callable(train := getattr(one, "train", None)):
                train()  # schedule-free ones
        for step, some in enumerate(rows):
            if watched:
                with torch.no_grad():
                    losses.append(float(F.cross_entropy(self.model(self.x), self.y)))
            self.model.zero_grad()
            F.cross_entropy(self.model(self.x[some]), self.y[some]).backward()
            if step == 20 and self.model[0].out_features > OLD:
                norms = self.model[0].weight.grad.norm(dim=1)
                parity = float(norms[OLD:].mean() / norms[:OLD].mean())
            for one in self.parts():
                one.step()
        return losses, parity

    def grow(self, birth: str, moments: str) -> int:
        """Grow, and return the number of new units."""
        grower = senn.Grower(
            self.model,
            self.optimizer,
            F.cross_entropy,
            TakeAny(),
            max_width=MOST,
            moves=("width",),
            birth=birth,
            seed=self.seed,
        )
        grower.grow([(self.x[:1024], self.y[:1024])])
        if moments == "zero":
            first, second = self.model[0], self.model[2]
            found = find_second_moments(OptimizerLayers(self.optimizer), self.model.parameters())
            for p in (first.weight, first.bias, second.weight):
                for one in found.get(p, []):
                    new = torch.zeros(p.shape, dtype=torch.bool)
                    new[
                        (slice(None), slice(OLD, None)) if p is second.weight else slice(OLD, None)
                    ] = True
                    one.values[one.new(new)] = 0
        return int(self.model[0].out_features) - OLD


def measured(make: Make, seed: int) -> list[dict[str, Any]]:
    """Figures of one seed: a record for each time, birth and kind of second moments."""
    run, found, past = Run(make, seed), [], 0
    for when in WHEN:
        run.train(minibatches(10_000 * seed + when, when - past))
        past = when
        twin = run.copy()
        usual, _ = twin.train(minibatches(seed, AFTER), watched=True)
        for birth in ("silent", "stepped"):
            for moments in ("zero", "measured"):
                grown = run.copy()
                units = grown.grow(birth, moments)
                losses, parity = grown.train(minibatches(seed, AFTER), watched=True)
                ratios = [mine / its for mine, its in zip(losses, usual, strict=True)]
                found.append(
                    {
                        "when": when,
                        "birth": birth,
                        "moments": moments,
                        "units": units,
                        "worst": max(ratios),
                        "end": ratios[-1],
                        "parity": parity,
                        "loss": usual[0],
                    }
                )
    return found


def summary(seeds: Sequence[Sequence[dict[str, Any]]]) -> Iterator[dict[str, Any]]:
    """Means over seeds."""
    for same in zip(*seeds, strict=True):
        mean = {
            key: round(statistics.fmean(one[key] for one in same), 4)
            for key in ("units", "loss", "worst", "end", "parity")
        }
        kind = {key: same[0][key] for key in ("when", "birth", "moments")}
        worst = round(max(one["worst"] for one in same), 4)
        yield {**kind, **mean, "worst of seeds": worst, "seeds": len(same)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    results: dict[str, Any] = {}
    if options.out and options.out.exists():
        results = json.loads(options.out.read_text())["optimizers"]
    every = optimizers()
    for name in options.only or every:
        if name in results:
            continue
        make = every[name]
        results[name] = [*summary([measured(make, seed) for seed in range(options.seeds)])]
        for one in results[name]:
            print(name, *(f"{key} {value}" for key, value in one.items()), flush=True)
        if options.out:
            found = {"after": AFTER, "optimizers": results}
            options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
