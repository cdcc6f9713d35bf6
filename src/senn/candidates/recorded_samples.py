"""The first samples of a batch at the linear maps of a model: what candidates are drawn from.

Only live locations count (`senn.kfac.live_locations`), in the number of samples as in the rows that are taken of them.
So what is drawn depends neither on how far a batch is padded, nor on what it is padded with.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from senn import pytree
from senn.candidates.candidate_set import LayerActivations
from senn.errors import DivergenceError
from senn.graph import LinearMap
from senn.kfac.accumulate import chosen_rows
from senn.kfac.batch_layout import BatchLayout
from senn.kfac.capture import layout_of, live_chunks
from senn.kfac.layer_inputs import ConvInput, Kernel, upcast
from senn.kfac.live_locations import live_gradients
from senn.kfac.live_outputs import live_outputs
from senn.kfac.loss_metric import LossMetric
from senn.kfac.recorder import LinearCall, forward, record_linear_calls
from senn.preserve import preserve_model_state
from senn.pytree import Inputs, Output, Targets

SCALE_SAMPLES = 128
"""Samples that are run for the scale of the candidates.

They give the standard deviation of a pre-activation to about 1 / sqrt(2 * 128) = 6 %, half as many to 9 %, twice as
many to 4 %, and training adapts it anyway.
"""

SCALE_ROWS = 4096
"""Rows of each map's activations that are taken from these samples.

Directions are mixtures of these rows, so there should be several times as many as a map has columns; the cost of
sampling grows in proportion.
"""

MOST_ROWS = 4 * SCALE_ROWS
"""Rows of the map that has most, at which no further sample is run: the others have fewer."""


ENOUGH_ROWS = 1024
"""Live rows of every map, at which no further sample is run: texts have many tokens each.

They give a spread to 2 %, and their mixtures, the directions of candidates, span the inputs of maps of half as many.
"""

FEWEST_SAMPLES = 8
"""Samples that are run however many rows they have, as far as `MOST_ROWS` allows: rows of one sample are alike."""


@dataclass(frozen=True, kw_only=True, eq=False)
class RecordedPart:
    """Some samples, run together.

    Attributes:
        outputs: outputs of the model, (samples, ...).
        calls: by map, its first call.
        live: by map that isn't grouped, the live locations of this call, (samples, locations); None for all.
        layouts: by map, how its rows belong to samples.
    """

    outputs: Tensor
    calls: Mapping[str, LinearCall]
    live: Mapping[str, Tensor | None]
    layouts: Mapping[str, BatchLayout]

    def rows_by_sample(self, name: str) -> Tensor:
        """Number of live rows of each sample, (samples,), of all calls of a map together where all are live."""
        live = self.live.get(name)
        if live is None:
            return torch.full((len(self.outputs),), self.layouts[name].locations)
        return live.sum(1).cpu()


class RecordedSamples:
    """The first samples of a batch, run through a model.

    Args:
        model: the model, read only.
        maps: linear maps that can be read, by name.
        layouts: by map, how its rows belong to samples.
        inputs: a batch.
        targets: its targets.
        metric: the loss.
        output: finds the outputs in what the model returns; None where that is clear.
        whole: True to run all samples of the batch, however many rows they have.

    Attributes:
        calls: by map, its first call.
        loss: mean loss of the samples, in nats per sample; infinite if it isn't known as a likelihood.

    Raises:
        DivergenceError: the outputs are not finite.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        maps: Mapping[str, LinearMap],
        layouts: Mapping[str, BatchLayout],
        inputs: Inputs,
        targets: Targets,
        metric: LossMetric,
        output: Output | None,
        whole: bool = False,
    ) -> None:
        # fewer at once where maps have many locations, as of large images; a spread needs two samples
        count = pytree.count(targets)
        locations = [one.locations for one in layouts.values()]
        size = max(MOST_ROWS // max(locations), 2)
        # of the map that has fewest rows, all of them live, so many samples have enough
        size = min(size, max(-(-ENOUGH_ROWS // min(locations)), FEWEST_SAMPLES))
        size = count if whole else size  # a loss that couples samples is one of the whole batch
        total = count if whole else min(SCALE_SAMPLES, count)
        self._parts: list[RecordedPart] = []
        taken, wanted = 0, total
        while taken < min(total, wanted):
            chosen = slice(taken, min(taken + size, total))
            samples, labels = pytree.index_batch((inputs, targets), chosen, count)
            self._parts.append(_run(model, maps, layouts, samples, labels, metric, output=output))
            taken = chosen.stop
            wanted = total if whole else self._wanted(taken)
        self._samples = min(taken, wanted)
        self.calls = self._parts[0].calls
        outputs = torch.cat([part.outputs for part in self._parts])[: self._samples]
        # what removing the whole loss would bring is known for likelihoods only: other losses may go below zero
        self.loss = math.inf
        if metric.has_closed_form:
            labels = pytree.index_batch(targets, slice(0, self._samples), count)
            loss = float(metric.loss(outputs, labels))
            # In nats, as the policy's prices are, which it is compared with.
            self.loss = loss / metric.loss_per_nat(loss, outputs, labels)

    def locations(self, name: str) -> int:
        """Rows per sample of a map, of all calls together."""
        return self._parts[0].layouts[name].locations

    def _wanted(self, taken: int) -> int:
        """Number of samples to use, by the first `taken` of them; more than these where others are to be run.

        As many as have `ENOUGH_ROWS` live rows of every map, or `MOST_ROWS` of any.
        """
        enough, most = FEWEST_SAMPLES, taken + 1
        for name in self._parts[0].calls:
            rows = torch.cat([part.rows_by_sample(name) for part in self._parts]).cumsum(0)
            enough = max(enough, int((rows < ENOUGH_ROWS).sum()) + 1)
            if int(rows[-1]) > MOST_ROWS:
                most = min(most, int((rows <= MOST_ROWS).sum()))
        return max(min(enough, most), 2)

    def activations(self, name: str) -> LayerActivations:
        """Take about `SCALE_ROWS` evenly spread live rows of a map that is neither grouped nor transposed.

        Args:
            name: of the map.
        """
        kernel = self.calls[name].kernel
        if kernel is not None:
            x, z = self._patches(name, kernel, with_outputs=True)
            return LayerActivations(x=x, z=z)
        x, z = (
            torch.cat([self._rows(part, of_part, name, key) for part, of_part in self._cut()])
            for key in ("x", "z")
        )
        # Spread evenly: the first rows would be those of a few samples, where each has many.
        step = max(len(x) // SCALE_ROWS, 1)
        return LayerActivations(x=x[::step], z=z[::step])

    def input_patches(self, name: str, kernel: Kernel) -> Tensor:
        """Take about `SCALE_ROWS` evenly spread live patches of a convolution's input.

        Args:
            name: of the convolution.
            kernel: geometry of the patches, which keeps the size of the image.

        Returns:
            (rows, in * taps).
        """
        return self._patches(name, kernel, with_outputs=False)[0]

    def _cut(self) -> list[tuple[RecordedPart, int]]:
        """The parts with the number of first samples to take of each."""
        left, found = self._samples, []
        for part in self._parts:
            found.append((part, min(left, len(part.outputs))))
            left -= found[-1][1]
        return [(part, count) for part, count in found if count]

    def _rows(self, part: RecordedPart, count: int, name: str, key: str) -> Tensor:
        """Live rows of inputs or outputs of a matrix product, (rows, features)."""
        values = getattr(part.calls[name], key).detach()
        layout = layout_of(part.layouts, name, 0)
        rows = layout.by_sample(upcast(values), len(part.outputs))[:count]
        live = part.live[name]
        return rows.flatten(0, 1) if live is None else rows[live[:count]]

    def _patches(self, name: str, kernel: Kernel, *, with_outputs: bool) -> tuple[Tensor, Tensor]:
        """Live patches, and the convolution's outputs there (empty without `with_outputs`)."""
        found = []
        for part, count in self._cut():
            call = part.calls[name]
            patches = ConvInput.of(upcast(call.x.detach()[:count]), False, kernel)
            live = part.live[name]
            if live is not None:
                live = live[:count] if with_outputs else _live_inputs(call, live[:count])
            found.append((patches, live, call))
        counts = [
            torch.full((len(patches.x),), patches.locations) if live is None else live.sum(1).cpu()
            for patches, live, _ in found
        ]
        step = max(int(torch.cat(counts).sum()) // SCALE_ROWS, 1)
        x, z = [], []
        for patches, live, call in found:
            device = patches.x.device
            if live is None:
                places = torch.arange(0, patches.locations, step, device=device)
                x.append(patches.rows(places))
                of_call: tuple[slice | Tensor, ...] = (slice(0, len(patches.x)), places)
            else:
                of_call = chosen_rows(live, torch.arange(0, live.shape[1], step, device=device))
                x.append(patches.rows_at(*of_call))
            if with_outputs:
                assert call.z is not None
                z.append(upcast(call.z).flatten(2).mT[of_call].reshape(len(x[-1]), -1))
        return torch.cat(x), torch.cat(z) if z else torch.empty(0)


def _live_inputs(call: LinearCall, live: Tensor) -> Tensor:
    """Pixels of a convolution's input that a live output reads, (samples, pixels) Boolean."""
    assert call.kernel is not None
    image = ConvInput.of(call.x.detach()[: len(live)], False, call.kernel)
    return image.live_pixels(live).flatten(1)


def _run(
    model: nn.Module,
    maps: Mapping[str, LinearMap],
    layouts: Mapping[str, BatchLayout],
    inputs: Inputs,
    targets: Targets,
    metric: LossMetric,
    *,
    output: Output | None,
) -> RecordedPart:
    names = [*maps]
    with (
        torch.enable_grad(),
        preserve_model_state(model),
        record_linear_calls(model, names, outputs=True) as seen,
    ):
        outputs = forward(model, inputs, output)
        if not torch.isfinite(outputs).all():
            raise DivergenceError(
                "the outputs on this batch are not finite: the network has diverged or the batch holds bad values"
            )
        live = None
        if (
            not metric.coupled
        ):  # such a loss isn't defined on some of a batch, nor is what it ignores
            with torch.no_grad():
                metric.loss(outputs, targets)  # first, since it explains what doesn't fit
            local = metric.local(outputs, targets, curved=metric.has_closed_form)
            live = live_outputs(metric, local, outputs, targets)
        live_rows = _live_by_map(outputs, seen, layouts, live)
    calls = {name: several[0] for name, several in seen.items()}
    return RecordedPart(outputs=outputs.detach(), calls=calls, live=live_rows, layouts=layouts)


def _live_by_map(
    outputs: Tensor,
    seen: Mapping[str, Sequence[LinearCall]],
    layouts: Mapping[str, BatchLayout],
    live: Tensor | None,
) -> dict[str, Tensor | None]:
    """Live locations of the first call of each map, (samples, locations); None for all."""
    found: dict[str, Tensor | None] = dict.fromkeys(seen)
    calls = [(name, several[0]) for name, several in seen.items() if several[0].edge is not None]
    if not calls:
        return found
    edges = [call.edge for _, call in calls if call.edge is not None]
    numbers = live_gradients(outputs, edges, live)
    reached = [
        (one, values) for one, values in zip(calls, numbers, strict=True) if values is not None
    ]
    masks = live_chunks(
        [one for one, _ in reached], [values for _, values in reached], layouts, len(outputs)
    )
    for name, several in masks.items():
        if name in found:
            (mask,) = several
            found[name] = None if mask is None or not bool(mask.any()) else mask
    return found
