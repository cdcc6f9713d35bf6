"""The growing arm of `senn_reproduce.transfer`: rounds of additions and removals, and what is seen of a run."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from senn.grower import Grower
from senn.nn import DenseConvNet
from senn_reproduce.image_runs import Data, accuracy_and_loss
from senn_reproduce.results import Record

if TYPE_CHECKING:
    from senn_reproduce.transfer import Settings


@dataclass
class Trace:
    """What happened while a net was trained.

    Attributes:
        steps: after which the validation accuracy was taken.
        accuracy: on validation images.
        widths: (step, channels of all layers) at the start, after every change and at the end.
        events: every change in words.
        change: largest relative change of the loss on validation images by a round that only added.
        removal: the same by a round with removals.
        seconds: of training and considering.
        considering: seconds of it that considering took.
        threads: numbers of threads that computed it.
    """

    steps: list[int] = field(default_factory=list)
    accuracy: list[float] = field(default_factory=list)
    widths: list[tuple[int, list[int]]] = field(default_factory=list)
    events: list[str] = field(default_factory=list)
    change: float = 0.0
    removal: float = 0.0
    seconds: float = 0.0
    considering: float = 0.0
    threads: list[Record] = field(default_factory=list)


def widths(model: DenseConvNet) -> list[int]:
    """Channels of all layers, in order."""
    return [width for block in model.hidden for width in block]


def size(model: nn.Module) -> int:
    """Return the number of a model's parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


class Growth:
    """Considers a net when that is due.

    Args:
        model: the network.
        optimizer: of its parameters.
        data: training images to look at, and validation images.
        seed: decides what is looked at, and the candidates.
        steps: of the whole training.
        settings: sizes of the experiment.
    """

    def __init__(
        self, model: DenseConvNet, optimizer: torch.optim.Optimizer, data: Data, seed: int, steps: int,
        settings: Settings,
    ) -> None:  # fmt: skip
        self.model, self.data, self.settings = model, data, settings
        self.rounds: dict[int, tuple[str, ...]] = {}
        for moves, fractions in (
            (("prune",), settings.pruning_rounds),
            (("width", "prune"), settings.rounds),
        ):
            self.rounds |= {max(1, round(steps * fraction)): moves for fraction in fractions}
        self.generator = torch.Generator().manual_seed(seed)
        self.grower = Grower(
            model,
            optimizer,
            F.cross_entropy,
            settings.policy,
            samples=len(data.train),
            max_params=int(settings.most * size(model)),
            moves=("width", "prune"),
            candidate_config=settings.candidate_config,
            birth="silent",  # as in the paper
            seed=seed,
        )

    def after(self, step: int, trace: Trace) -> float:
        """Run a round if one is due, and note what it did.

        Args:
            step: number of steps taken.
            trace: where that is noted.

        Returns:
            The seconds that it took to see what it did to the loss, which aren't training's.
        """
        if step not in self.rounds:
            return 0.0
        clock = [time.perf_counter()]
        before = self._loss()
        clock.append(time.perf_counter())
        events = self.grower.grow(self._looked_at(), self.rounds[step])
        clock.append(time.perf_counter())
        if events:
            trace.widths.append((step, widths(self.model)))
            trace.events += [f"step {step}: {event}" for event in events]
            change = abs(self._loss() / before - 1)
            if any(event.kind == "prune" for event in events):
                trace.removal = max(trace.removal, change)
            else:
                trace.change = max(trace.change, change)
        trace.considering += clock[2] - clock[1]
        return clock[1] - clock[0] + time.perf_counter() - clock[2]

    def _loss(self) -> float:
        return accuracy_and_loss(self.model, self.data.validation, self.data.standard)["loss"]

    def _looked_at(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Training images as they are."""
        train = self.data.train
        rows = torch.randperm(len(train), generator=self.generator)[: self.settings.looked_at].to(
            train.labels.device
        )
        for some in torch.split(rows, 256):
            yield self.data.standard(train.pixels[some]), train.labels[some]
