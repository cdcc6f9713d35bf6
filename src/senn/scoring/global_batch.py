"""One batch of all ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from senn import pytree
from senn.collectives import BatchShare, Communicator
from senn.errors import SennError
from senn.kfac.folds import LocalSlice
from senn.kfac.layer_statistics import LocationCount
from senn.kfac.loss_metric import LossMetric
from senn.kfac.pseudo_grad import Among
from senn.kfac.recorder import forward
from senn.preserve import preserve_model_state
from senn.pytree import Inputs, Output, Targets
from senn.scoring.batch_statistics import BatchStatistics

Key = TypeVar("Key")

Samples = tuple[Inputs, Targets, Tensor | None]
"""Inputs, targets and weights of some samples."""


@dataclass(frozen=True, eq=False, kw_only=True)
class GlobalBatch:
    """One batch of all ranks in a joint order, as a rule a random one: this rank's samples of it, in that order.

    Folds are slices of the joint order, so they are those of one process that sees the joined batch.

    Attributes:
        communicator: the processes.
        share: which samples of the joint order are this rank's.
        inputs: their inputs.
        targets: their targets.
        weights: their weights, with mean 1 over the samples of all ranks; None for ones.
        is_whole: True if the batch can't be cut into samples.
    """

    communicator: Communicator
    share: BatchShare
    inputs: Inputs
    targets: Targets
    weights: Tensor | None
    is_whole: bool = False

    @classmethod
    def permuted(
        cls,
        communicator: Communicator,
        inputs: Inputs,
        targets: Targets,
        weights: Tensor | None,
        *,
        generator: torch.Generator,
        keeps_order: bool = False,
        is_whole: bool = False,
    ) -> GlobalBatch:
        """Permute a batch.

        Args:
            communicator: the processes.
            inputs: this rank's inputs, (samples, ...) or any nesting of such tensors.
            targets: this rank's targets, (samples, ...) or any nesting of such tensors.
            weights: this rank's sample weights, (samples,), or None.
            generator: source of the permutation, in the same state on all ranks.
            keeps_order: True to leave the samples in the order in which they are.
            is_whole: True if the batch can't be cut into samples (a graph); then it keeps its order, too.

        Raises:
            SennError: there are fewer than two samples, or inputs, targets and weights don't fit each other.
        """
        with communicator.fail_together("observe a batch"):
            count = pytree.count_samples(inputs, targets)
        own_weight = 0.0 if weights is None else float(weights.sum())
        by_rank = communicator.all_gather_object(
            "observe a batch", [count, weights is not None, own_weight]
        )
        counts = [one[0] for one in by_rank]
        total_weight = sum(one[2] for one in by_rank)
        # Steps are fitted on one half and valued on the other.
        if sum(counts) < 2:
            raise SennError(
                "a batch of one sample cannot be split into a half to fit on and a half to value on"
            )
        if len({one[1] for one in by_rank}) > 1:
            raise SennError(
                "some ranks give sample weights with a batch and others don't: all must, or none"
            )
        if weights is not None and not total_weight > 0:
            raise SennError("the sample weights of the batch do not sum to more than zero")
        # One joint permutation: a sorted batch would have one class in each fold.
        share = communicator.batch_share(counts, generator)
        if keeps_order or is_whole:
            share = replace(share, local=torch.arange(count))
        share = replace(share, local=share.local.to(pytree.tensor_leaves(targets)[0].device))
        if weights is not None:
            # Weights have mean 1 over all ranks, so gains keep the unit of the loss.
            mean = weights.mean() if communicator.is_single else total_weight / share.total
            weights = weights[share.local] / mean
        return cls(
            communicator=communicator,
            share=share,
            inputs=pytree.index_batch(inputs, share.local, count),
            targets=pytree.index_batch(targets, share.local, count),
            weights=weights,
            is_whole=is_whole,
        )

    @property
    def count(self) -> int:
        """Number of this rank's samples."""
        return len(self.share.local)

    def first(self, number: int, start: int = 0) -> Samples:
        """Samples of the joint order, all of them on every rank.

        Args:
            number: how many, at most.
            start: position of the first one.
        """
        if self.is_whole:
            start, number = 0, self.share.total
        own = self.share.within(start, min(start + number, self.share.total))
        count = self.count
        everything = self.inputs, self.targets, self.weights
        positions = self.share.positions
        found: Samples
        if positions is None:
            found = pytree.index_batch(everything, own, count)
        else:
            found = gather_samples(
                self.communicator, everything, own=own, count=count, positions=positions[own]
            )
        return found

    def local(self, which: slice, stand_in: Samples) -> tuple[Samples, Among | None]:
        """This rank's samples at some positions of the joint order.

        Args:
            which: the positions.
            stand_in: one sample to run the model on where this rank has none: every rank must take part.

        Returns:
            the samples, and which of all samples at these positions they are; None for a rank alone.
        """
        own = self.share.within(which.start, which.stop)
        among = None
        if self.share.positions is not None:
            is_empty = own.start == own.stop
            places = (
                torch.zeros(1, dtype=torch.long)
                if is_empty
                else self.share.positions[own] - which.start
            )
            # Every sample gets the pseudo-gradient that it has when one process sees all of them.
            among = Among(
                total=which.stop - which.start,
                places=places,
                joined=lambda own: self._joined(own, places, which.stop - which.start, is_empty),
            )
            if is_empty:
                return stand_in, among
        weights = None if self.weights is None else self.weights[own]
        return (
            *pytree.index_batch((self.inputs, self.targets), own, self.count),
            weights,
        ), among

    def _joined(self, own: Tensor, places: Tensor, total: int, is_empty: bool) -> Tensor:
        """Numbers of this rank's samples joined to those of all ranks, (total,)."""
        sent = ([], []) if is_empty else (places.tolist(), own.tolist())
        joint = torch.zeros(total, dtype=own.dtype)
        for positions, numbers in self.communicator.all_gather_object("observe a batch", sent):
            joint[torch.tensor(positions, dtype=torch.long)] = torch.tensor(
                numbers, dtype=own.dtype
            )
        return joint

    def local_slice(self, which: slice, fold: slice) -> LocalSlice:
        """This rank's samples of a fold of some samples.

        Args:
            which: positions of the samples in the joint order.
            fold: those of them that are in the fold, counted from the first.
        """
        first, last = which.start + fold.start, which.start + fold.stop
        if self.share.positions is None:
            return LocalSlice(samples=fold, count=last - first)
        # Positions count from this rank's first sample of the part.
        before = self.share.within(which.start, which.stop).start
        own = self.share.within(first, last)
        positions = self.share.positions[own] - first
        return LocalSlice(
            samples=slice(own.start - before, own.stop - before),
            count=last - first,
            positions=positions,
        )

    def used(self, parts: Sequence[BatchStatistics]) -> Tensor | None:
        """Find this rank's samples that can change the loss, as the batch was given.

        Args:
            parts: statistics of all parts of the batch, in order.

        Returns:
            Ascending positions of the samples; None if all samples of all ranks can, or too few of them.
        """
        own = [
            torch.ones(part.samples, dtype=torch.bool) if part.used is None else part.used.cpu()
            for part in parts
            if part.samples
        ]
        used = torch.cat([*own, torch.empty(0, dtype=torch.bool)])
        by_rank = [(len(used), int(used.sum()))]
        if not self.communicator.is_single:
            by_rank = self.communicator.all_gather_object("observe a batch", by_rank[0])
        samples, count = (sum(column) for column in zip(*by_rank, strict=True))
        if count == samples or count < 2:
            return None
        return self.share.local[used.to(self.share.local.device)].sort().values

    def joint_counts(
        self, counts: Mapping[Key, Sequence[LocationCount]], samples: int
    ) -> dict[Key, list[LocationCount]]:
        """Numbers of live locations over the samples of all ranks.

        Args:
            counts: by linear map, those of its calls over this rank's samples.
            samples: how many these are; 0 for a rank that ran a stand-in.
        """
        if self.communicator.is_single:
            return {name: list(of) for name, of in counts.items()}
        # by position: maps come in the same order on all ranks, and keys needn't be names
        own = [[[one.most, one.mean] for one in of] for of in counts.values()]
        by_rank = self.communicator.all_gather_object("observe a batch", (samples, own))
        total = sum(rank for rank, _ in by_rank)
        joint = {}
        for number, (name, of) in enumerate(counts.items()):
            calls = [
                [(n, found[number][call]) for n, found in by_rank if n] for call in range(len(of))
            ]
            joint[name] = [
                LocationCount(
                    most=max(most for _, (most, _) in call),
                    mean=sum(n * mean for n, (_, mean) in call) / total,
                )
                for call in calls
            ]
        return joint

    def loss(
        self, model: nn.Module, metric: LossMetric, output: Output | None, start: int = 0
    ) -> float:
        """Mean loss of a model, as it is now, on the samples of all ranks.

        Args:
            model: the model, which is run in eval mode and left as it was.
            metric: the loss.
            output: finds the outputs in what the model returns.
            start: position in the joint order of the first sample that counts.
        """
        own, loss = self.share.within(start, self.share.total), 0.0
        everything: Samples = self.inputs, self.targets, self.weights
        if start:
            everything = pytree.index_batch(everything, own, self.count)
        count = own.stop - own.start
        if count:
            inputs, targets, weights = everything
            with torch.no_grad(), preserve_model_state(model):
                loss = float(metric.loss(forward(model, inputs, output), targets, weights))
        if self.communicator.is_single:
            return loss
        return float(
            sum(self.communicator.all_gather_object("compare losses", loss * count))
            / (self.share.total - start)
        )


def first_inputs(communicator: Communicator, inputs: Inputs, count: int, number: int = 2) -> Inputs:
    """First inputs of all ranks' batches, one batch after the other.

    Args:
        communicator: the processes.
        inputs: this rank's inputs.
        count: number of this rank's samples.
        number: how many are wanted, at most.
    """
    if communicator.is_single:
        return pytree.index_batch(inputs, slice(0, number), count)
    # Ranks may have batches of different lengths.
    counts = communicator.all_gather_object("observe a batch", count)
    own, start = min(counts[communicator.rank], number), sum(counts[: communicator.rank])
    positions = torch.arange(start, start + own)
    gathered = gather_samples(
        communicator, inputs, own=slice(0, own), count=count, positions=positions
    )
    return pytree.head(gathered, number)


def gather_samples(
    communicator: Communicator, tree: Any, *, own: slice, count: int, positions: Tensor
) -> Any:
    """Gather samples of all ranks, in order, on every rank.

    Args:
        communicator: the processes.
        tree: nesting of tensors, of which those with `count` entries are cut into samples.
        own: this rank's samples that are wanted.
        count: number of samples that this rank has.
        positions: (own,) where its samples stand among those of all ranks.
    """

    def is_cut(tensor: Tensor) -> bool:
        return bool(tensor.dim()) and len(tensor) == count

    # decided on the uncut tree: a cut one may be as long as a tensor that isn't one of samples
    cut = [tensor[own] for tensor in pytree.tensor_leaves(tree) if is_cut(tensor)]
    found = iter(communicator.all_gather("share samples", [(positions, cut)])[0])
    return pytree.map_leaves(lambda tensor: next(found) if is_cut(tensor) else tensor, tree)
