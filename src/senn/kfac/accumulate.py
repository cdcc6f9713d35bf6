"""What is kept of one linear map on some samples: sums over all of them, and some of them one by one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from senn.kfac.capture import RowChunk
from senn.kfac.factors import KroneckerFactors, gram, input_covariance
from senn.kfac.per_sample import PerSampleFactors, PerSampleGrads, Samples

READ = 2048
"""Rows of a map with many locations whose outer products make its input moment, or `READ_PER_COLUMN` a column."""

READ_PER_COLUMN = 8


def accumulate(
    parts: Sequence[RowChunk],
    places: Sequence[Tensor | None],
    *,
    keep: int,
    weights: Tensor | None = None,
    known: int = 0,
    inputs: bool = True,
) -> tuple[KroneckerFactors, Samples]:
    """Sum up what passed through one linear map.

    Args:
        parts: its applications to the same samples.
        places: by application, the locations whose rows enter the moment of the inputs; None for all.
        keep: number of first samples that are kept one by one.
        weights: (samples,) theirs, which dz and s carry already; None for ones.
        known: number of first columns whose mutual moment isn't needed.
        inputs: whether the moment of the inputs is needed at all.
    """
    samples = len(parts[0].output_grad)
    keep = min(keep, samples)
    locations = sum(part.layer_input.locations for part in parts)
    total = float(samples) if weights is None else float(weights.sum())
    first = slice(0, max(keep, 1))  # a convolution of no samples can't be formed
    kept = _kept([part.select(first) for part in parts], None if weights is None else weights[first])
    if not keep:
        kept = kept.first(0)
    rest = [part.select(slice(keep, samples)) for part in parts] if isinstance(kept, PerSampleGrads) else parts
    crosses = [part.layer_input.cross(part.output_grad) for part in rest if len(part.output_grad)]
    if isinstance(kept, PerSampleGrads):
        crosses.append(kept.output_grad.sum(0))
    cross = sum(crosses[1:], crosses[0])
    moment, read = cross.new_empty(0), 0.0
    for part, some in zip(parts, places if inputs else (), strict=inputs):
        a = part.layer_input.rows(some)
        count = len(a) // samples
        own = input_covariance(a, None if weights is None else weights.repeat_interleave(count).to(a), known)
        moment = own if not read else moment + own
        read += count * total
    signs = sum((_gram_of(part.pseudo_grad) for part in parts[1:]), _gram_of(parts[0].pseudo_grad))
    found = KroneckerFactors(
        rows=locations * total, locations=locations, input_cov=moment, cross_cov=cross, grad_cov=signs, n_rows_read=read
    )
    return found, kept


def accumulate_empty(
    parts: Sequence[RowChunk],
    places: Sequence[Tensor | None],
    *,
    weights: Tensor | None = None,
    known: int = 0,
    inputs: bool = True,
) -> tuple[KroneckerFactors, Samples]:
    """The same of no samples, of the shapes that these parts and weights would give."""
    one = slice(0, 1)
    weights = None if weights is None else weights[one]
    found, kept = accumulate(
        [part.select(one) for part in parts], places, keep=1, weights=weights, known=known, inputs=inputs
    )
    a, cross, outputs = (torch.zeros_like(sums) for sums in (found.input_cov, found.cross_cov, found.grad_cov))
    return KroneckerFactors(
        rows=0.0, locations=found.locations, input_cov=a, cross_cov=cross, grad_cov=outputs, n_rows_read=0.0
    ), kept.first(0)


def _gram_of(s: Tensor) -> Tensor:
    """Sum of s s^T over samples and locations, (m, m), for s (samples, locations, m) of any strides."""
    return gram(s[:, 0]) if s.shape[1] == 1 else (s.mT @ s).sum(0)


def _kept(parts: Sequence[RowChunk], weights: Tensor | None) -> Samples:
    """Samples one by one, in the form that has fewer numbers."""
    outputs = parts[0].output_grad.shape[2]
    locations, columns = sum(part.layer_input.locations for part in parts), parts[0].layer_input.columns
    if locations > 1 and locations * (outputs + columns) > outputs * columns:
        # locations last, as convolutions have them: nothing is copied twice
        both = [
            part.layer_input.by_sample(torch.cat([part.pseudo_grad.mT, part.output_grad.mT], 1).mT) for part in parts
        ]
        s, dz = torch.split(sum(both[1:], both[0]), outputs, 1)
        return PerSampleGrads(pseudo_grad=s, output_grad=dz, locations=locations, weight=weights)
    a = torch.cat([part.layer_input.rows().view(*part.output_grad.shape[:2], -1) for part in parts], 1).flatten(0, 1)
    s, dz = (
        torch.cat([getattr(part, kind) for part in parts], 1).flatten(0, 1) for kind in ("pseudo_grad", "output_grad")
    )
    return PerSampleFactors(
        a=a,
        pseudo_grad=s,
        output_grad=dz,
        locations=locations,
        weight=None if weights is None else weights.repeat_interleave(locations).to(a),
    )


def sampled_locations(
    parts: Sequence[RowChunk], columns: int, samples: int, generator: torch.Generator
) -> list[Tensor | None]:
    """Random locations, the same for all samples, of which `samples` samples have rows enough for so many columns."""
    locations = sum(part.layer_input.locations for part in parts)
    share = max(READ, READ_PER_COLUMN * columns) / (samples * locations)
    found: list[Tensor | None] = []
    for part in parts:
        own = part.layer_input.locations
        wanted = -int(-own * share // 1)
        some = torch.randperm(own, generator=generator)[:wanted].sort().values if wanted < own else None
        found.append(None if some is None else some.to(part.output_grad.device))
    return found
