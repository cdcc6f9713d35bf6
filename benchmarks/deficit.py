"""Does a net that grew while it trained end below a fixed net of its final size, and what closes that gap?

An MLP d-[10]-10 with ReLU grows under several recipes. Each is paired, seed by seed, with a fixed net of exactly its
final architecture: same rows, same batches in the same order, same optimizer, learning rates and number of steps. Both
have an exponential average of their weights beside them. Validation rows come out of the training split; test splits
are never read. MNIST is read from a folder of IDX files, gzipped.

    python benchmarks/deficit.py --epochs 60 --kappa 0.1 --out digits.json
    python benchmarks/deficit.py --set mnist --data-dir DIR --out mnist.json
    python benchmarks/deficit.py --recipes 'early' '32 at 0.5, smooth, own clock' --seeds 5

A recipe's name is one of WHEN and any of HOW in `deficit_recipes.py`, with commas between.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from deficit_recipes import DEFAULT, Forced, Recipe, recipe_of
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from senn import Grower
from senn.candidates.candidate_config import CandidateConfig
from senn.candidates.initialization import sample_directions
from senn.policies import PricePolicy

BATCH, PROBE, DECAY, FOLLOWED = 256, 4096, 0.98, 200
BETAS = (0.9, 0.999)
SPANS = ((1, 10), (11, 50), (51, 200))
FRESH = 3**-0.5  # length of a row that `nn.Linear` draws


class Data(NamedTuple):
    """Training and validation rows, (n, d) and (n,)."""

    x: Tensor
    y: Tensor
    held_x: Tensor
    held_y: Tensor


def idx(path: Path) -> np.ndarray[Any, Any]:
    """An IDX file of bytes, gzipped."""
    raw = gzip.decompress(path.read_bytes())
    if raw[:3] != b"\0\0\x08":
        raise SystemExit(f"{path} is no IDX file of bytes")
    shape = np.frombuffer(raw, ">u4", raw[3], 4).astype(int)
    if len(raw) != 4 + 4 * len(shape) + shape.prod():
        raise SystemExit(f"{path} is truncated: it announces the shape {tuple(shape)}")
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * len(shape)).reshape(shape)


def load(arguments: argparse.Namespace, seed: int) -> Data:
    """Rows of one seed; a fifth of the digits is set aside as their test split and not used."""
    if arguments.set == "digits":
        x, y = load_digits(return_X_y=True)
        kept = np.random.default_rng(0).permutation(len(x))[len(x) // 5 :]
        x, y = x[kept], y[kept]
    else:
        x, y = (
            idx(arguments.data_dir / f"train-{part}.gz")
            for part in ("images-idx3-ubyte", "labels-idx1-ubyte")
        )
    order = np.random.default_rng(seed + 1).permutation(len(x))
    held = min(arguments.validation, len(x) // 5)
    train = order[held : held + arguments.train]
    rows = torch.tensor(x.reshape(len(x), -1)[np.r_[train, order[:held]]], dtype=torch.float32)
    rows = (rows - rows[: len(train)].mean()) / rows[: len(train)].std()
    labels = torch.tensor(y[np.r_[train, order[:held]]], dtype=torch.long)
    return Data(rows[: len(train)], labels[: len(train)], rows[len(train) :], labels[len(train) :])


def mlp(features: int, hidden: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, 10))


def order_of(rows: int, epochs: int, seed: int) -> Iterator[Tensor]:
    """Batches of row numbers, the same for every net of a seed."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        yield from torch.randperm(rows, generator=generator)[: rows // BATCH * BATCH].split(BATCH)


def factor(schedule: str, progress: float, since: int) -> float:
    """Learning rate over its peak, `since` steps after the last growth."""
    if schedule == "cosine":
        return 0.5 + 0.5 * math.cos(math.pi * progress)
    if schedule == "onecycle":
        return (
            progress / 0.3
            if progress < 0.3
            else 0.5 + 0.5 * math.cos(math.pi * (progress - 0.3) / 0.7)
        )
    return min(1.0, 3 * (1 - progress)) * (min(1.0, since / 20) if schedule == "rewarm" else 1.0)


class Units:
    """Which hidden units are how old, and how new ones move beside old ones.

    Attributes:
        born: (units,) the step at which each came; 0 for the first ones.
    """

    def __init__(self, model: nn.Sequential) -> None:
        self.model, self.born = model, torch.zeros(len(model[0].weight))
        self.followed: list[dict[str, Any]] = []
        self._start: tuple[int, Tensor, Tensor, Tensor] | None = None
        self._rows: list[dict[str, float]] = []

    @property
    def weights(self) -> tuple[Tensor, Tensor]:
        """Incoming (units, d) and outgoing (units, 10) weights."""
        return self.model[0].weight, self.model[2].weight.mT

    def changed(
        self, before: Tensor, step: int, recipe: Recipe, optimizer: torch.optim.Adam
    ) -> None:
        """After a round: who is new; incoming weights of the others are the former ones, bit by bit."""
        rows, first, second = self.weights[0], self.model[0], self.model[2]
        same = torch.stack([(before == row).all(1) for row in rows.detach()])
        old = same.any(1)
        self.born = torch.where(old, self.born[same.int().argmax(1)], torch.tensor(float(step)))
        self._start, self._rows = None, []
        if old.all():
            return
        if recipe.birth is not None:
            with torch.no_grad():  # outgoing weights are zero, so nothing else changes
                shrink = recipe.birth * FRESH / rows[~old].norm(dim=1)
                rows[~old] *= shrink[:, None]
                first.bias[~old] *= shrink
        if recipe.clock == "inherit":
            for parameter, dim in ((first.weight, 0), (first.bias, 0), (second.weight, 1)):
                squares = optimizer.state[parameter]["exp_avg_sq"].movedim(dim, 0)
                squares[~old] = squares[old].mean(0)
        self._start = (step, old, rows.detach().clone(), self.weights[1].detach().clone())

    def scale(self, recipe: Recipe, step: int) -> Tensor | None:
        """(units,) factors on this step's update; None where all are 1."""
        young = self.born > 0
        if not young.any() or (recipe.clock != "own" and recipe.boost == 1):
            return None
        age = step + 1 - self.born
        result = 1 + (recipe.boost - 1) * torch.exp(-age / 50)
        if recipe.clock == "own":
            first, second = ((1 - b ** (step + 1)) / (1 - b**age) for b in BETAS)
            result = result * first / second.sqrt()
        return torch.where(young, result, torch.ones(()))

    def follow(self, step: int) -> None:
        """Gradients and movement of this step, means over old and over new units, for `FOLLOWED` steps of a growth."""
        if self._start is None or step >= self._start[0] + FOLLOWED:
            return
        since, old, *starts = self._start
        gradients, row = (self.model[0].weight.grad, self.model[2].weight.grad.mT), {}
        for place, weight, start, gradient in zip(
            ("in", "out"), self.weights, starts, gradients, strict=True
        ):
            found = {"gradient": gradient, "moved": weight.detach() - start, "length": start}
            for name, value in found.items():
                norm = value.norm(dim=1)
                row |= {
                    f"{name} {place} {who}": float(norm[m].mean())
                    for who, m in (("old", old), ("new", ~old))
                }
        self._rows.append(row)
        if len(self._rows) == FOLLOWED:
            record = {
                f"{key} at birth": value for key, value in self._rows[0].items() if "length" in key
            }
            for first, last in SPANS:
                for key in row:
                    if "gradient" in key:
                        record[f"{key} {first}-{last}"] = statistics.fmean(
                            r[key] for r in self._rows[first - 1 : last]
                        )
                    if "moved" in key:
                        record[f"{key} {last}"] = self._rows[last - 1][key]
            self.followed.append({"step": since, "new": int((~old).sum()), **record})


class Training:
    """One net through all of its steps; `recipe.rounds` are left out when it is fixed."""

    def __init__(
        self, data: Data, recipe: Recipe, arguments: argparse.Namespace, seed: int, hidden: int
    ) -> None:
        torch.manual_seed(seed)
        self.data, self.recipe, self.arguments, self.seed = data, recipe, arguments, seed
        self.model = mlp(data.x.shape[1], hidden)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=arguments.lr, betas=BETAS)
        self.average = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(DECAY))
        self.units = Units(self.model)
        self.total = len(data.x) // BATCH * arguments.epochs
        self.grown_at = [0]
        self.events: list[dict[str, Any]] = []
        self.seconds = 0.0

    def run(self, grows: bool, warmths: Sequence[int] = ()) -> Training:
        """Train; a fixed net follows the learning rates of the grown one, whose growths were at `warmths`."""
        grower = self._grower() if grows else None
        adds, removes = (
            {round(p * self.total) for p in ps} for ps in (self.recipe.rounds, self.recipe.prune)
        )
        started = time.process_time()
        for step, batch in enumerate(order_of(len(self.data.x), self.arguments.epochs, self.seed)):
            if grower is not None and (step in adds or step in removes):
                self._round(grower, step, removing=step not in adds)
            growths = self.grown_at if grows else [s for s in warmths if s <= step]
            lr = self.arguments.lr * factor(
                self.recipe.schedule, step / self.total, step + 1 - max(growths)
            )
            self.optimizer.param_groups[0]["lr"] = lr
            self._step(batch, step)
        self.seconds = time.process_time() - started
        return self

    def _grower(self) -> Grower:
        force, price = self.recipe.force, PricePolicy(self.recipe.bid * self.arguments.kappa)
        return Grower(
            self.model,
            self.optimizer,
            samples=len(self.data.x),
            averaged=[self.average],
            policy=Forced(force) if force else price,
            moves=("width",),
            candidate_config=CandidateConfig(data_direction_fraction=self.recipe.smooth),
            seed=self.seed,
        )

    def _round(self, grower: Grower, step: int, removing: bool) -> None:
        if removing:
            grower.moves = ("prune",)
            grower.policy = PricePolicy(kappa=self.arguments.kappa, hysteresis=0.5)
        generator = torch.Generator().manual_seed(self.seed * 100_003 + step)
        for rows in torch.randperm(len(self.data.x), generator=generator)[:PROBE].split(1024):
            grower.observe(self.data.x[rows], self.data.y[rows])
        before = self.units.weights[0].detach().clone()
        events = grower.grow()
        if not events:
            return
        self.units.changed(before, step, self.recipe, self.optimizer)
        self.grown_at.append(step)
        for event in events:
            change = event.loss_after / event.loss_before - 1
            record = {
                "kind": event.kind,
                "at": step / self.total,
                "to": event.width_after,
                "promised": event.expected_decrease,
            }
            self.events.append({**record, "loss_change": change})

    def _step(self, batch: Tensor, step: int) -> None:
        self.optimizer.zero_grad()
        F.cross_entropy(self.model(self.data.x[batch]), self.data.y[batch]).backward()
        scale = self.units.scale(self.recipe, step)
        first, second = self.model[0], self.model[2]
        places = (
            [(first.weight, 0), (first.bias, 0), (second.weight, 1)] if scale is not None else []
        )
        before = [p.detach().clone() for p, _ in places]
        self.optimizer.step()
        with torch.no_grad():
            for (parameter, dim), old in zip(places, before, strict=True):
                shape = [-1 if d == dim else 1 for d in range(old.dim())]
                parameter.copy_(old + scale.view(shape) * (parameter - old))
        self.units.follow(step)
        self.average.update_parameters(self.model)

    @torch.no_grad()
    def figures(self) -> dict[str, Any]:
        """Validation accuracy and loss, of the weights and of their average; dead units; lengths; seconds."""
        record: dict[str, Any] = {"seconds": self.seconds}
        for name, model in (("", self.model), ("average ", self.average)):
            output = model(self.data.held_x)
            record[f"{name}accuracy"] = float((output.argmax(1) == self.data.held_y).float().mean())
            record[f"{name}loss"] = float(F.cross_entropy(output, self.data.held_y))
        active = (self.model[0](self.data.x) > 0).any(0).float()
        record["dead"] = 1 - float(active.mean())
        record["train loss"] = float(F.cross_entropy(self.model(self.data.x), self.data.y))
        record["length"] = float(self.units.weights[0].norm(dim=1).mean())
        return record


def pair(
    data: Data, name: str, recipe: Recipe, arguments: argparse.Namespace, seed: int
) -> dict[str, Any]:
    """A grown net and the fixed net of its final size."""
    grown = Training(data, recipe, arguments, seed, 10).run(grows=True)
    hidden = len(grown.units.born)
    fixed = Training(data, recipe, arguments, seed, hidden).run(grows=False, warmths=grown.grown_at)
    record = {
        "recipe": name,
        "seed": seed,
        "hidden": hidden,
        "grown": grown.figures(),
        "fixed": fixed.figures(),
    }
    if recipe.smooth:  # is it the growth or the draw?
        drawn = Training(data, recipe, arguments, seed, hidden)
        with torch.no_grad():
            rows = sample_directions(
                data.x[:PROBE], hidden, recipe.smooth, torch.Generator().manual_seed(seed)
            )
            drawn.model[0].weight.copy_(FRESH * rows)
        record["drawn"] = drawn.run(grows=False, warmths=grown.grown_at).figures()
    return {**record, "events": grown.events, "followed": grown.units.followed}


def summary(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means over seeds, and the standard error of the differences."""
    result: dict[str, Any] = {"hidden": [run["hidden"] for run in runs]}
    for key in runs[0]["grown"]:
        both = [(run["grown"][key], run["fixed"][key]) for run in runs]
        differences = [a - b for a, b in both]
        result[key] = {
            "grown": statistics.fmean(a for a, _ in both),
            "fixed": statistics.fmean(b for _, b in both),
            "difference": statistics.fmean(differences),
            "error": statistics.stdev(differences) / len(runs) ** 0.5 if len(runs) > 1 else None,
        }
    widened = [e for run in runs for e in run["events"] if e["kind"] == "widen"]
    result["largest loss change"] = max((abs(e["loss_change"]) for e in widened), default=0.0)
    if "drawn" in runs[0]:
        result["drawn"] = {
            k: statistics.fmean(run["drawn"][k] for run in runs) for k in runs[0]["drawn"]
        }
    result["time ratio"] = statistics.fmean(
        run["grown"]["seconds"] / run["fixed"]["seconds"] for run in runs
    )
    return result


def line(name: str, figures: dict[str, Any]) -> str:
    parts = [f"{name:<40}"]
    for key in ("accuracy", "loss", "average accuracy", "average loss"):
        one = figures[key]
        parts.append(f"{one['grown']:.4f} {one['difference']:+.4f}+-{one['error'] or 0:.4f}")
    parts.append(f"{figures['dead']['grown']:.2f} {figures['dead']['fixed']:.2f}")
    widths = ",".join(map(str, figures["hidden"]))
    if "drawn" in figures:
        widths += f"  (fixed, drawn smooth: {figures['drawn']['accuracy']:.4f} {figures['drawn']['loss']:.4f})"
    return "  ".join(
        [*parts, f"x{figures['time ratio']:.2f}", f"{figures['largest loss change']:.0e}", widths]
    )


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse(argv)
    torch.set_num_threads(1)
    print(
        f"{'recipe':<40}  accuracy, loss, both averaged, each with less fixed; dead units; time; loss change; hidden"
    )
    recipes = {name: recipe_of(name) for name in arguments.recipes}
    loaded = {seed: load(arguments, seed) for seed in range(arguments.seeds)}
    runs, means = [], {}
    for name in recipes:
        mine = [pair(data, name, recipes[name], arguments, seed) for seed, data in loaded.items()]
        means[name] = summary(mine)
        runs += mine
        print(line(name, means[name]), flush=True)
        if arguments.out:
            arguments.out.parent.mkdir(parents=True, exist_ok=True)
            settings = {
                k: str(v) for k, v in vars(arguments).items() if k not in ("out", "data_dir")
            }
            document = {"settings": settings, "summary": means, "runs": runs}
            arguments.out.write_text(json.dumps(document, indent=1) + "\n")
    return 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--set", choices=("digits", "mnist"), default="digits")
    parser.add_argument(
        "--data-dir", type=Path, default=Path("data"), help="folder of MNIST's IDX files, gzipped"
    )
    parser.add_argument("--recipes", nargs="+", default=DEFAULT, metavar="RECIPE")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--train", type=int, default=12_000, help="training rows, at most")
    parser.add_argument(
        "--validation", type=int, default=4_000, help="validation rows, at most a fifth"
    )
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument(
        "--kappa",
        type=float,
        default=0.03,
        help="price of a parameter, in nats times training rows",
    )
    parser.add_argument("--out", type=Path, help="where to write the results, as JSON")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
