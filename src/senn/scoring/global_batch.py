"""A batch of which each rank has some samples, and what the ranks' folds say together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from senn import pytree
from senn.collectives import BatchShare, Communicator
from senn.errors import SennError
from senn.kfac.folds import Fold, LocalSlice
from senn.kfac.loss_metric import Among
from senn.pytree import Inputs

Key = TypeVar("Key")

Some = tuple[Inputs, Tensor, Tensor | None]
"""Inputs, targets and weights of some samples."""


@dataclass(frozen=True, eq=False)
class Joint:
    """One batch of all ranks in random order: this rank's samples of it, in that order.

    Attributes:
        communicator: the processes.
        share: which samples these are.
        inputs: of these.
        targets: of these.
        weights: of these, with mean 1 over the samples of all ranks; None for ones.
    """

    communicator: Communicator
    share: BatchShare
    inputs: Inputs
    targets: Tensor
    weights: Tensor | None

    @classmethod
    def of(
        cls,
        communicator: Communicator,
        inputs: Inputs,
        targets: Tensor,
        weights: Tensor | None,
        generator: torch.Generator,
    ) -> Joint:
        """Permute a batch.

        Raises:
            SennError: there are fewer than two samples, or inputs, targets and weights don't fit each other.
        """
        count = len(targets)
        with communicator.fail_together("look at a batch"):
            if pytree.count(inputs) != count:
                raise SennError(f"the batch has inputs for {pytree.count(inputs)} samples and targets for {count}")
        total = 0.0 if weights is None else float(weights.sum())
        said = communicator.all_gather_object("look at a batch", [count, weights is not None, total])
        counts = [one[0] for one in said]
        if sum(counts) < 2:
            raise SennError("a batch of one sample cannot be split into a half to fit on and a half to value on")
        if len({one[1] for one in said}) > 1:
            raise SennError("some ranks give sample weights with a batch and others don't: all must, or none")
        if weights is not None and not sum(one[2] for one in said) > 0:
            raise SennError("the sample weights of the batch do not sum to more than zero")
        share = communicator.batch_share(counts, generator)
        share = replace(share, local=share.local.to(targets.device))
        if weights is not None:
            mean = weights.mean() if communicator.is_single else sum(one[2] for one in said) / share.total
            weights = weights[share.local] / mean
        return cls(communicator, share, pytree.index_batch(inputs, share.local, count), targets[share.local], weights)

    def first(self, number: int, start: int = 0) -> Some:
        """So many samples of the joint order, on every rank."""
        own, count = self.share.within(start, min(start + number, self.share.total)), len(self.targets)
        every = self.inputs, self.targets, self.weights
        positions = self.share.positions
        found: Some = (
            pytree.index_batch(every, own, count)
            if positions is None
            else everyones(self.communicator, every, own, count, positions[own])
        )
        return found

    def head(self, which: slice, sample: Some) -> tuple[Some, Among | None]:
        """The own samples at those positions, and which they are of them; without any, this sample instead."""
        own = self.share.within(which.start, which.stop)
        among = None
        if self.share.positions is not None:
            empty = own.start == own.stop
            places = torch.zeros(1, dtype=torch.long) if empty else self.share.positions[own] - which.start
            among = which.stop - which.start, places
            if empty:
                return sample, among
        weights = None if self.weights is None else self.weights[own]
        return (pytree.index_batch(self.inputs, own, len(self.targets)), self.targets[own], weights), among

    def own(self, which: slice, fold: slice) -> LocalSlice:
        """Of the samples at the positions `which`, those of a fold that is some of them, counted from the first."""
        first, last = which.start + fold.start, which.start + fold.stop
        if self.share.positions is None:
            return LocalSlice(samples=fold, count=last - first)
        before = self.share.within(which.start, which.stop).start
        own = self.share.within(first, last)
        positions = self.share.positions[own] - first
        return LocalSlice(samples=slice(own.start - before, own.stop - before), count=last - first, positions=positions)


def first_of(communicator: Communicator, inputs: Inputs, number: int = 2) -> Inputs:
    """The first inputs of all ranks' batches, one batch after the other."""
    if communicator.is_single:
        return pytree.head(inputs, number)
    counts = communicator.all_gather_object("look at a batch", pytree.count(inputs))
    own, start = min(counts[communicator.rank], number), sum(counts[: communicator.rank])
    positions = torch.arange(start, start + own)
    return pytree.head(everyones(communicator, inputs, slice(0, own), counts[communicator.rank], positions), number)


def everyones(communicator: Communicator, tree: Any, own: slice, count: int, positions: Tensor) -> Any:
    """A nesting of tensors with samples of all ranks, in order: here are `count`, and these of them are this rank's."""

    def is_cut(tensor: Tensor) -> bool:  # asked before the cut: a part may be as long as a tensor that is none
        return bool(tensor.dim()) and len(tensor) == count

    cut = [tensor[own] for tensor in pytree.tensor_leaves(tree) if is_cut(tensor)]
    found = iter(communicator.all_gather("share samples", [(positions, cut)])[0])
    return pytree.map_leaves(lambda tensor: next(found) if is_cut(tensor) else tensor, tree)


def joined(communicator: Communicator, folds: Mapping[Key, Fold]) -> dict[Key, Fold]:
    """The folds of all ranks together, by key: sums of their moments, and all samples that they keep, in order."""
    if communicator.is_single or not folds:
        return dict(folds)
    said = communicator.all_gather_object(
        "sum the moments", [[fold.factors.rows, fold.factors.n_rows_read] for fold in folds.values()]
    )
    numbers = [[sum(column) for column in zip(*one, strict=True)] for one in zip(*said, strict=True)]
    every = [fold.factors for fold in folds.values()]
    sums = iter(
        communicator.all_reduce(
            "sum the moments", [x for one in every for x in (one.input_cov, one.cross_cov, one.grad_cov)]
        )
    )
    groups = [(_positions(fold), fold.samples.tensors) for fold in folds.values()]
    samples = communicator.all_gather("gather the kept samples", groups)
    found: dict[Key, Fold] = {}
    for (key, fold), kept, (rows, read) in zip(folds.items(), samples, numbers, strict=True):
        moments = replace(
            fold.factors, rows=rows, n_rows_read=read, input_cov=next(sums), cross_cov=next(sums), grad_cov=next(sums)
        )
        found[key] = Fold(factors=moments, samples=fold.samples.of(kept))
    return found


def _positions(fold: Fold) -> Tensor:
    assert fold.positions is not None
    return fold.positions
