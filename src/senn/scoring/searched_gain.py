"""Held-out gain of a step whose length is searched, as a birth searches it: for copies of whole blocks.

A copy's output weights are many, and all of them are new: in a transformer more than the rows that they are fitted on.
Such a step is mostly noise, and at its own length it costs nats on other rows, though a short one helps. Births find
the length on held-out rows (`senn.scoring.births`), so this is what they can be expected to bring.
"""

from __future__ import annotations

import torch

from senn.scoring.formulas import quadratic_decrease
from senn.scoring.gains import LayerGains


def searched_gain(gains: LayerGains) -> tuple[float, float]:
    """Held-out gain of all candidate columns of a map together, at the length that is best on the held-out fold.

    One number is fitted there, so what noise alone would make of it is taken off: on average the gain is the true one.

    Args:
        gains: of a map onto a residual stream, before anything is accepted.

    Returns:
        held-out gain and its standard error, in eta. No length at all has a gain of 0.
    """
    columns = torch.arange(len(gains.damping))[None]
    step, fitted_slope = gains.fitted_step(columns, None)
    flat, length = gains.with_length(step, fitted_slope, columns)
    held_out, flat = gains.held_out, flat * length
    effect = held_out.effect("pseudo_grad", flat, columns)
    slope = float((length * step * held_out.cross[:, columns[0]]).sum())
    curvature = float(held_out.curvature(effect)[0])
    if slope <= 0 or curvature <= 0:
        return 0.0, 0.0
    best = min(slope / curvature, 1.0)
    # Per location, as slope and curvature are; a sample's are summed, since they aren't independent.
    slopes = held_out.effect("output_grad", flat, columns) / gains.locations
    by_sample = quadratic_decrease(slopes, effect.square() / gains.locations, best)
    stderr = float(by_sample.std(correction=0)) / gains.n_held_out**0.5
    noise = float(slopes.var(correction=0)) / gains.n_held_out / curvature if best < 1 else 0.0
    value = 2 * best * slope - best**2 * curvature - noise
    return gains.locations * value, gains.locations * stderr
