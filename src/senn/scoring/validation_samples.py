"""Removals verified on samples that the model isn't trained on."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from senn.collectives import Communicator
from senn.errors import SurgeryError
from senn.kfac.loss_metric import LossMetric
from senn.kfac.recorder import forward
from senn.preserve import preserve_model_state
from senn.pytree import Output
from senn.scoring.births import LOSS_ROUNDING
from senn.scoring.global_batch import GlobalBatch
from senn.scoring.rank_checks import check_batch

PARTS = 32
"""Parts of the samples, whose losses give the standard error of a difference."""

STANDARD_ERRORS = 2.0
"""By how many standard errors a removal may raise the loss: less than that the samples can't tell from none.

With a quarter of one, nets for tables score the same, but how many units go is a matter of luck: over folds and seeds
their sizes vary by 37 % on bike and california, where two let them vary by 10 to 18 % (`benchmarks/table_sizes.py
--tuning --seeds 3 --first-seed 300`).
"""


@dataclass(frozen=True, eq=False, kw_only=True)
class ValidationSamples:
    """Samples that a model isn't trained on.

    A removal's cost is estimated on samples that the model was trained on. One that has learned these by heart seems to
    need a unit that serves nothing else, or hardly any unit at all.

    Attributes:
        batch: the samples of all ranks.
    """

    batch: GlobalBatch

    @classmethod
    def of(
        cls, communicator: Communicator, given: Any, prepare: Callable[[Any], Any] | None
    ) -> ValidationSamples | None:
        """Take a batch as a loop has it.

        Args:
            communicator: the processes.
            given: this rank's inputs, targets and perhaps weights, or what `prepare` makes them of; None for
                none.
            prepare: makes inputs, targets and perhaps weights of a batch; None if a batch is a tuple of these.

        Raises:
            SennError: it is no such batch, or has fewer than two samples.
        """
        if given is None:
            return None
        with communicator.fail_together("take the validation samples"):
            given = given if prepare is None else prepare(given)
            check_batch(given)
        inputs, targets, *weights = given
        batch = GlobalBatch.permuted(
            communicator,
            inputs,
            targets,
            weights[0] if weights else None,
            # Not the grower's: what is drawn next doesn't depend on whether there are such samples.
            generator=torch.Generator(),
            keeps_order=True,
        )
        return cls(batch=batch)

    def losses(self, model: nn.Module, metric: LossMetric, output: Output | None) -> Tensor:
        """Mean losses of a model, as it is now, on parts of nearly equal length, all of them on every rank.

        Args:
            model: the model, which is run in eval mode and left as it was.
            metric: the loss.
            output: finds the outputs in what the model returns.

        Returns:
            (parts,) losses, in the loss's own unit; one where the loss couples samples.
        """
        total = self.batch.share.total
        parts = 1 if metric.coupled else min(PARTS, total)
        ends = [total * part // parts for part in range(parts + 1)]
        losses = []
        with torch.no_grad(), preserve_model_state(model):
            for start, stop in itertools.pairwise(ends):
                inputs, targets, weights = self.batch.first(stop - start, start)
                loss = metric.loss(forward(model, inputs, output), targets, weights)
                losses.append(float(loss))
        return torch.tensor(losses, dtype=torch.float64)


def check_rise(before: Tensor, after: Tensor) -> None:
    """Refuse removals that raise the validation loss by more than its samples could by chance.

    Args:
        before: (parts,) losses of the model before.
        after: (parts,) those of the model after.

    Raises:
        SurgeryError: it rose by more.
    """
    rises = after - before
    rise, limit = float(rises.mean()), LOSS_ROUNDING * float(before.abs().mean())
    if len(rises) > 1:  # paired: what is hard for both networks cancels
        limit += STANDARD_ERRORS * float(rises.std()) / math.sqrt(len(rises))
    # Written so that NaN fails: it compares as False.
    if not rise <= limit:
        raise SurgeryError(f"it raised the validation loss by {rise:.4g}, more than {limit:.4g}")
