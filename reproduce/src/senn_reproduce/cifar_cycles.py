"""Figure 5: convolutions under a cyclic learning rate, grown and pruned all along.

A `DenseConvNet` starts with eight channels a layer. Every so many steps a `Grower` looks at training images and may add
and remove channels anywhere. While the rate is high the network is far from where it is going, and every channel has
work to do; when the rate has come down many do without. The layers of the first block breathe with the cycles.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from senn.candidates.candidate_config import CandidateConfig
from senn.errors import SennError
from senn.grower import Grower
from senn.nn import DenseConvNet
from senn.policies import Candidate, PaperPolicy, PricePolicy
from senn.training.augment import augment
from senn_reproduce.cifar_cycles_figure import figure
from senn_reproduce.image_runs import Data, accuracy_and_loss, batches, load, pick_device
from senn_reproduce.results import Record, table, write_results
from senn_reproduce.step_threads import step_threads

COUNTED = 4
"""Last cycles over which breathing is measured."""

Pictures = tuple[Tensor, Tensor]
"""Standardized images (N, C, H, W) of a batch and their labels (N,)."""


@dataclass(frozen=True)
class BothWays(PricePolicy):
    """One price for buying and keeping, in every place at once, of what two halves of the samples agree on.

    A held-out promise is less than what a unit is worth by the noise of a step fitted on few samples, and a removal's
    cost is more by it: between the two nothing would ever happen on a few thousand images. What the halves agree on is
    free of it on average. But the best of many candidates is partly the luckiest: a promise counts less `confidence`
    standard errors, a cost more by a share of its `noise`.

    Args:
        noise: fraction of a cost's noise that it counts.
        most: changes of one place in one round, since figures are those of small changes.
    """

    kappa: float = 0.08
    confidence: float = 1.5
    hysteresis: float = 0.95
    noise: float = 0.1
    most: int = 2

    def margin(self, candidate: Candidate) -> float:
        """Sure promise less the price, or the refund less the cost, in nats per sample."""
        price, gain = self.price(candidate.parameters, candidate.samples), candidate.cross_fold_gain
        if candidate.kind == "prune":
            gain += self.noise * (candidate.gain - candidate.cross_fold_gain)
            return gain / (2 * candidate.loss_per_nat) - self.hysteresis * price
        return (gain - self.confidence * candidate.held_out_stderr) / (
            2 * candidate.loss_per_nat
        ) - price

    def choose(
        self, candidates: Sequence[Candidate], accepted: Sequence[Candidate]
    ) -> Candidate | None:
        """Return the candidate with the largest margin above zero, at a place that has not changed too much already.

        Args:
            candidates: what is offered.
            accepted: what was chosen in this round.

        Returns:
            One of the candidates, or None.
        """
        places = [c.place for c in accepted]
        best = max(
            (c for c in candidates if places.count(c.place) < self.most),
            key=self.margin,
            default=None,
        )
        return best if best is not None and self.margin(best) > 0 else None


@dataclass(frozen=True)
class Settings:
    """How a run goes; found on seeds from 100 on and on validation images.

    Args:
        hidden: channels at first, block by block.
        side: images are reduced to side x side pixels.
        images: training images, of which validation images are none.
        validation: images held out of the training file.
        shift: most pixels by which training images are shifted.
        cycles: of the learning rate.
        cycle: steps of each: a rise over the first tenth, then half a cosine.
        batch: images of a step.
        rate: AdamW's learning rate at the top of each cycle.
        weight_decay: AdamW's.
        every: steps between two considerations.
        looked_at: images that each looks at.
        policy: what is bought and sold.
        candidate_config: what is offered.
    """

    hidden: tuple[tuple[int, ...], ...] = ((8, 8, 8), (8, 8, 8))
    side: int = 12
    images: int = 8000
    validation: int = 2000
    shift: int = 1
    cycles: int = 6
    cycle: int = 600
    batch: int = 64
    rate: float = 4e-3
    weight_decay: float = 1e-2
    every: int = 60
    looked_at: int = 4096
    policy: PricePolicy | PaperPolicy = field(default_factory=BothWays)
    candidate_config: CandidateConfig = field(
        default_factory=lambda: CandidateConfig(units=6, data_direction_fraction=1.0)
    )

    def __post_init__(self) -> None:
        if self.cycles < COUNTED:
            raise SennError(
                f"breathing is measured over {COUNTED} cycles, and there are {self.cycles}"
            )
        if self.cycle < 2 * self.every:
            raise SennError(
                f"a cycle of {self.cycle} steps leaves no two considerations, one every {self.every} steps"
            )

    @property
    def steps(self) -> int:
        """Number of steps of all cycles."""
        return self.cycles * self.cycle

    def relative(self, step: int) -> float:
        """Return the learning rate of a step as a fraction of its peak."""
        part = step % self.cycle / self.cycle
        return (
            0.04 + 9.6 * part if part < 0.1 else 0.5 * (1 + math.cos(math.pi * (part - 0.1) / 0.9))
        )


FULL = Settings(
    hidden=((8, 8, 8), (8, 8, 8), (8, 8, 8)), side=32, images=45_000, validation=5000, shift=4, cycles=25,
    cycle=40 * (45_000 // 64), rate=3e-4, every=45_000 // 64, looked_at=8192,
    policy=PaperPolicy(tau=3e-4, alpha=1e-9, prune_fraction=3e-4), candidate_config=CandidateConfig(),
)  # fmt: skip
"""The paper's size, 25 cycles of 40 epochs, with the thresholds of its authors' code: a channel comes that gains more
than 3e-4 of eta and goes if it costs less.

Their code decides on a few channels in every step, ours once an epoch; their blocks have one layer and become deeper,
ours have three and don't; theirs keeps eight channels a layer, ours one.
"""


@dataclass
class Curves:
    """What was seen at each consideration.

    Attributes:
        steps: taken until then.
        widths: channels of each layer afterwards.
        accuracy: on validation images.
        additions: largest relative change of the loss at additions alone.
        removals: and in rounds with removals.
        threads: numbers of threads that computed it.
    """

    steps: list[int] = field(default_factory=list)
    widths: list[tuple[tuple[int, ...], ...]] = field(default_factory=list)
    accuracy: list[float] = field(default_factory=list)
    additions: float = 0.0
    removals: float = 0.0
    threads: list[Record] = field(default_factory=list)


def seen(data: Data, settings: Settings, seed: int) -> Iterator[Pictures]:
    """Yield augmented batches of training images, one epoch after another.

    Args:
        data: the images.
        settings: sizes of the experiment.
        seed: decides everything that is drawn.
    """
    generator = torch.Generator().manual_seed(seed)
    while True:
        for pixels, labels in batches(data.train, settings.batch, generator):
            yield augment(data.standard(pixels), generator, shift=settings.shift), labels


def train(model: DenseConvNet, data: Data, settings: Settings, seed: int, *, grow: bool) -> Curves:
    """Train through all cycles; with `grow`, score growth and removal at every beat.

    Args:
        model: the network.
        data: the images.
        settings: sizes of the experiment.
        seed: decides everything that is drawn.
        grow: True for a network that grows.

    Returns:
        Curves over the steps.
    """
    optimizer = torch.optim.AdamW(
        model.parameters(), settings.rate, betas=(0.9, 0.99), weight_decay=settings.weight_decay
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, settings.relative)
    grower = Grower(
        model, optimizer, F.cross_entropy, settings.policy, samples=settings.images, moves=("width", "prune"),
        candidate_config=settings.candidate_config, birth="silent", seed=seed,
    )  # fmt: skip
    images, looking = (seen(data, settings, 1000 * seed + n) for n in (1, 2))
    curves = Curves()
    with step_threads(model, data.standard(data.train.pixels[:1]), settings.batch) as threads:
        for step in range(settings.steps):
            x, y = next(images)
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            if (step + 1) % settings.every == 0:
                if grow:
                    _consider(grower, looking, settings, curves)
                    threads.follow(step + 1)
                curves.steps.append(step + 1)
                curves.widths.append(model.hidden)
                curves.accuracy.append(
                    accuracy_and_loss(model, data.validation, data.standard)["accuracy"]
                )
    curves.threads = threads.record
    return curves


def _consider(
    grower: Grower, looking: Iterator[Pictures], settings: Settings, curves: Curves
) -> None:
    """Score candidates once, on training images as training sees them."""
    drawn = [next(looking) for _ in range(max(settings.looked_at // settings.batch, 1))]
    joined = torch.cat([x for x, _ in drawn]), torch.cat([y for _, y in drawn])
    events = grower.grow(list(zip(*(torch.split(part, 1024) for part in joined), strict=True)))
    change = max((abs(event.loss_after / event.loss_before - 1) for event in events), default=0.0)
    if any(event.kind == "prune" for event in events):
        curves.removals = max(curves.removals, change)
    else:
        curves.additions = max(curves.additions, change)


def run(
    seed: int, settings: Settings, data_dir: Path | None = None, device: torch.device | str = "cpu"
) -> Record:
    """Train a network that grows, and one of its final size from new random weights, on the same batches.

    Args:
        seed: decides everything that is drawn.
        settings: sizes of the experiment.
        data_dir: folder of the image sets; None for that in `SENN_DATA`, else they are downloaded.
        device: where to compute.

    Returns:
        Accuracies, widths and curves of both.
    """
    data = load(
        "cifar-10", settings.side, settings.images, settings.validation, seed, data_dir, device
    )

    def build(hidden: Sequence[Sequence[int]]) -> DenseConvNet:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return DenseConvNet(data.train.pixels.shape[1], hidden, data.classes).to(device)

    record: Record = {"seed": seed}
    start, model = time.perf_counter(), build(settings.hidden)
    curves = train(model, data, settings, seed, grow=True)
    middle, twin = time.perf_counter(), build(model.hidden)
    fixed = train(twin, data, settings, seed, grow=False)
    for name, part in (("test", data.test), ("validation", data.validation)):
        nets = {"grown": model, "fixed": twin}
        record[name] = {
            net: accuracy_and_loss(nets[net], part, data.standard)["accuracy"] for net in nets
        }
    record |= breathing(curves, settings)
    record |= {
        "largest": max(width for block in model.hidden for width in block),
        "smallest": min(width for block in model.hidden for width in block),
        "parameters": sum(p.numel() for p in model.parameters()),
        "seconds": middle - start, "seconds_fixed": time.perf_counter() - middle,
        "threads": {"grown": curves.threads, "fixed": fixed.threads},
        "change": {"additions": curves.additions, "removals": curves.removals},
        "hidden": [width for block in model.hidden for width in block],
        "curves": {
            "steps": curves.steps, "widths": [[w for block in widths for w in block] for widths in curves.widths],
            "grown": curves.accuracy, "fixed": fixed.accuracy,
        },
    }  # fmt: skip
    return record


def breathing(curves: Curves, settings: Settings) -> dict[str, float]:
    """Measure how the channels of the first block's last layers follow the learning rate over the last cycles.

    Args:
        curves: of the network that grew.
        settings: sizes of the experiment.

    Returns:
        their largest correlation with the rate of some steps before, at most a third of a cycle (`correlation`, `lag`
        in steps), and the mean over cycles of how far they fall, as a fraction of their most (`peak_to_trough`).
    """
    width = np.array([sum(widths[0][1:] or widths[0]) for widths in curves.widths], float)
    steps, per_cycle = np.array(curves.steps), settings.cycle / settings.every
    counted = steps > (settings.cycles - COUNTED) * settings.cycle
    found = []
    for lag in range(int(per_cycle / 3) + 1):
        rate = np.array(
            [settings.relative(step - 1 - lag * settings.every) for step in steps[counted]]
        )
        flat = width[counted].std() == 0
        found.append(
            (0.0 if flat else float(np.corrcoef(width[counted], rate)[0, 1]), lag * settings.every)
        )
    correlation, lag = max(found)
    cycles = [
        width[counted][(steps[counted] - 1) // settings.cycle == c] for c in range(settings.cycles)
    ]
    falls = [1 - one.min() / one.max() for one in cycles if len(one)]
    return {"correlation": correlation, "lag": lag, "peak_to_trough": float(np.mean(falls))}


def main(
    seeds: int,
    out: Path,
    settings: Settings | None = None,
    *,
    data_dir: Path | None = None,
    device: str | None = None,
) -> list[Record]:
    """Run the experiment with several seeds; write `results.json` and `figure.png`, print a table.

    Args:
        seeds: number of seeds: 0, 1, ... are run one after the other.
        out: folder for the results, which exists.
        settings: sizes of the experiment; None for those for two cores.
        data_dir: folder of the image sets; None for that in `SENN_DATA`, else they are downloaded.
        device: cpu, cuda, ...; None for a GPU where there is one, else the CPU.

    Returns:
        A record for each seed.
    """
    settings = settings or Settings()
    place = pick_device(device)
    command = f"senn reproduce cifar-cycles --seeds {seeds}" + " --full" * (settings == FULL)
    runs = []
    for seed in range(seeds):
        runs.append(run(seed, settings, data_dir, place))
        # after each seed, so that a run that is stopped leaves what it has measured
        write_results(runs, out / "results.json", command)
    figure(runs[0], settings, out / "figure.png")
    print(table(runs))
    return runs
