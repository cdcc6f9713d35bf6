"""Samples of a round: in two folds, with the factors of each adapted map and the losses of the model as it is."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from senn import pytree
from senn.errors import SennError, UnsupportedError
from senn.kfac.batch_layout import BatchLayout, infer_batch_layouts
from senn.kfac.capture import capture
from senn.kfac.factors import KroneckerFactors, kronecker_factors
from senn.kfac.layer_statistics import LayerStatistics
from senn.kfac.loss_metric import LossMetric
from senn.kfac.recorder import forward, record_linear_calls
from senn.peft.directions import directional_derivatives
from senn.peft.pairs import LowRankPair
from senn.preserve import preserve_model_state
from senn.pytree import Inputs, Output, Prepare, Targets
from senn.surgery.newborn_state import GradientMoments

Samples = tuple[Inputs, Targets, Tensor | None]
Layouts = Mapping[str, BatchLayout]

MOST_NUMBERS = 1 << 26
"""Numbers of the pairs' rows that are held at once, 256 MiB in float32: samples pass in parts of so many."""

LOSS_SAMPLES = 16
"""Samples of each half on which the length of a step is searched and changes are checked: a dozen forward passes."""

MINIBATCHES, MINIBATCH = 4, 8
"""Minibatches on which the gradients of new entries are measured, for their second moments, and the samples of each."""


@dataclass(frozen=True, eq=False, kw_only=True)
class RoundSamples:
    """Samples of a round, those that steps are fitted on before those that they are valued on.

    Attributes:
        model: the model, which is only read.
        metric: the loss.
        output: finds the outputs in what the model returns.
        fit: one half of the samples of each batch.
        held_out: the other half.
    """

    model: nn.Module
    metric: LossMetric
    output: Output | None
    fit: tuple[Samples, ...]
    held_out: tuple[Samples, ...]

    @classmethod
    def of(
        cls,
        model: nn.Module,
        metric: LossMetric,
        batches: Iterable[Any],
        *,
        prepare: Prepare | None,
        output: Output | None,
    ) -> RoundSamples:
        """Split each batch in two halves.

        Args:
            model: the model.
            metric: the loss.
            batches: tuples of inputs, targets and perhaps weights, or what `prepare` makes them of.
            prepare: makes inputs, targets and perhaps weights of a batch; None if a batch is a tuple of these.
            output: finds the outputs in what the model returns.

        Raises:
            SennError: there are no batches, or one has fewer than two samples.
        """
        fit: list[Samples] = []
        held_out: list[Samples] = []
        for batch in batches:
            given = tuple(batch if prepare is None else prepare(batch))
            if len(given) not in (2, 3):
                raise SennError("a batch must be a tuple of inputs, targets and perhaps weights")
            samples: Samples = (given[0], given[1], given[2] if len(given) == 3 else None)
            count = pytree.count_samples(samples[0], samples[1])
            if count < 2:
                raise SennError(
                    "a batch needs two samples, one to fit steps on and one to value them on"
                )
            fit.append(pytree.index_batch(samples, slice(0, count // 2), count))
            held_out.append(pytree.index_batch(samples, slice(count // 2, count), count))
        if not fit:
            raise SennError("no batches were given to score ranks on")
        return cls(
            model=model, metric=metric, output=output, fit=tuple(fit), held_out=tuple(held_out)
        )

    def loss(self, *, held_out: bool = False) -> float:
        """Mean loss of the model as it is, on some of the samples, always the same ones.

        Args:
            held_out: True for the samples on which steps are valued alone.
        """
        total = count = 0.0
        halves = (self.held_out,) if held_out else (self.fit, self.held_out)
        with torch.no_grad(), preserve_model_state(self.model):
            for inputs, targets, weights in (one for half in halves for one in _first(half)):
                number = pytree.count_samples(inputs, targets)
                found = self.metric.loss(forward(self.model, inputs, self.output), targets, weights)
                total, count = total + number * float(found), count + number
        return total / count

    @property
    def probe(self) -> Inputs:
        """Two samples, on which outputs are compared."""
        return pytree.head(self.held_out[0][0])

    def layouts(self, pairs: Sequence[LowRankPair]) -> Layouts:
        """Find out how the rows of the pairs' maps belong to samples.

        Raises:
            UnsupportedError: that can't be told of one; the sentence names it.
        """
        names = [name for pair in pairs for name in (pair.down, pair.up)]
        inputs = pytree.clone(self.probe)
        with (
            torch.no_grad(),
            preserve_model_state(self.model),
            record_linear_calls(self.model, names) as seen,
        ):
            forward(self.model, inputs, self.output)
        uses = {name: len(seen.get(name, ())) for name in names}
        missing = next((name for name, number in uses.items() if not number), None)
        if missing is not None:
            raise UnsupportedError(f"{missing} was not reached by the forward pass")
        found = infer_batch_layouts(self.model, uses, self.fit[0][0], self.output)
        for reason in found.values():
            if isinstance(reason, str):
                raise UnsupportedError(reason)
        return {name: one for name, one in found.items() if isinstance(one, BatchLayout)}

    def factors(
        self, pairs: Sequence[LowRankPair], layouts: Layouts
    ) -> dict[str, KroneckerFactors]:
        """Sum up the Kronecker factors of the adapted maps on the samples that steps are fitted on.

        Args:
            pairs: the pairs.
            layouts: of their maps.

        Returns:
            By name of the pair: moments of the first factor's inputs, and of the gradients behind the second.
        """
        found: dict[str, KroneckerFactors] = {}
        for seen, samples, weights in self._captured(pairs, layouts, self.fit):
            for pair in pairs:
                own = _factors(seen, pair, samples, weights)
                found[pair.name] = own if pair.name not in found else found[pair.name] + own
        return found

    def derivatives(
        self,
        pairs: Sequence[LowRankPair],
        layouts: Layouts,
        steps: Mapping[str, tuple[Tensor, Tensor]],
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """Measure the loss along steps of the adapted maps, on the samples that steps are valued on.

        Args:
            pairs: the pairs.
            layouts: of their maps.
            steps: by pair, rows (k, d) and columns (m, k) of k steps of rank one, column_i row_i^T.

        Returns:
            By pair, the slopes (k,) and the exact curvatures (k,) of the mean loss along them.
        """
        sums: dict[str, Tensor] = {}
        total = 0.0
        for seen, samples, weights in self._captured(pairs, layouts, self.held_out):
            total += float(samples) if weights is None else float(weights.sum())
            for pair in pairs:
                a, makes = seen.rows[pair.down].a, seen.rows[pair.up]
                rows, columns = steps[pair.name]
                slopes = directional_derivatives(
                    a, makes.output_grad, rows, columns, makes.locations
                ).sum(0)
                roots = directional_derivatives(
                    a, makes.pseudo_grad, rows, columns, makes.locations
                )
                own = torch.stack([slopes, roots.square().sum(0)])
                sums[pair.name] = own if pair.name not in sums else sums[pair.name] + own
        return {name: (own[0] / total, own[1] / total) for name, own in sums.items()}

    def _captured(
        self, pairs: Sequence[LowRankPair], layouts: Layouts, batches: Sequence[Samples]
    ) -> Iterator[tuple[LayerStatistics, int, Tensor | None]]:
        """Record the pairs' maps part by part, with the number of samples and their weights."""
        names = [name for pair in pairs for name in (pair.down, pair.up)]
        # A generator of its own: random signs don't touch the global state, and are the same in every round.
        generator = torch.Generator().manual_seed(0)
        for inputs, targets, weights in self._parts(pairs, layouts, batches):
            seen = capture(
                self.model, names, inputs, targets, self.metric,
                generator=generator, weights=weights, find=self.output, layouts=layouts,
            )  # fmt: skip
            yield seen, pytree.count_samples(inputs, targets), weights

    def _parts(
        self, pairs: Sequence[LowRankPair], layouts: Layouts, batches: Sequence[Samples]
    ) -> Iterator[Samples]:
        per_sample = sum(
            layouts[pair.up].locations * (pair.inputs + 2 * pair.outputs) for pair in pairs
        )
        most = max(1, MOST_NUMBERS // per_sample)
        for samples in batches:
            count = pytree.count_samples(samples[0], samples[1])
            for start in range(0, count, most):
                yield pytree.index_batch(samples, slice(start, min(start + most, count)), count)

    def gradient_moments(
        self, values: Mapping[nn.Parameter, Tensor]
    ) -> dict[nn.Parameter, GradientMoments]:
        """Measure gradients of some parameters on minibatches, at given values of theirs.

        Args:
            values: of the parameters, which have their own again afterwards.
        """
        own = {one: one.detach().clone() for one in values}
        seen: dict[nn.Parameter, list[Tensor]] = {one: [] for one in values}
        try:
            for one, value in values.items():
                one.data.copy_(value)
            with preserve_model_state(self.model):
                for samples in itertools.islice(self._minibatches(), MINIBATCHES):
                    for one, gradient in zip(
                        values, self._gradients([*values], samples), strict=True
                    ):
                        seen[one].append(gradient)
        finally:
            for one, value in own.items():
                one.data.copy_(value)
        return {one: _moments(torch.stack(gradients)) for one, gradients in seen.items()}

    def _minibatches(self) -> Iterator[Samples]:
        for samples in self.fit + self.held_out:
            count = pytree.count_samples(samples[0], samples[1])
            for start in range(0, count, MINIBATCH):
                yield pytree.index_batch(
                    samples, slice(start, min(start + MINIBATCH, count)), count
                )

    def _gradients(self, parameters: list[nn.Parameter], samples: Samples) -> list[Tensor]:
        inputs, targets, weights = samples
        with torch.enable_grad():
            outputs = forward(self.model, pytree.clone(inputs), self.output)
            loss = self.metric.loss(outputs, targets, weights)
            found = torch.autograd.grad(loss, parameters, allow_unused=True)
        return [
            torch.zeros_like(one)
            if gradient is None
            else gradient.detach().nan_to_num(0.0, 0.0, 0.0)
            for one, gradient in zip(parameters, found, strict=True)
        ]


def _first(half: Sequence[Samples]) -> Iterator[Samples]:
    """Yield the first samples of a half, `LOSS_SAMPLES` of them or all."""
    left = LOSS_SAMPLES
    for samples in half:
        count = pytree.count_samples(samples[0], samples[1])
        if left:
            yield pytree.index_batch(samples, slice(0, min(left, count)), count)
        left = max(left - count, 0)


def _moments(gradients: Tensor) -> GradientMoments:
    variance = gradients.double().var(0) if len(gradients) > 1 else torch.zeros_like(gradients[0])
    return GradientMoments(mean=gradients.double().mean(0), variance=variance)


def _factors(
    seen: LayerStatistics, pair: LowRankPair, samples: int, weights: Tensor | None
) -> KroneckerFactors:
    reads, makes = seen.rows[pair.down], seen.rows[pair.up]
    if reads.locations != makes.locations:
        raise UnsupportedError(f"the factors of '{pair.name}' are applied at different locations")
    a, dz, s, live = reads.a, makes.output_grad, makes.pseudo_grad, makes.live
    by_row = None if weights is None else weights.repeat_interleave(makes.locations)
    if live is not None:
        a, dz, s = a[live], dz[live], s[live]
        by_row = None if by_row is None else by_row[live]
    found = kronecker_factors(a, dz, s, weights=by_row)
    total = float(samples) if weights is None else float(weights.sum())
    return replace(found, samples=total)
