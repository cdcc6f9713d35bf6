"""Settings of how many candidates of what kind a round draws."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from senn._validate import Rule, check_fields, fraction, positive, whole
from senn.nn.activations import activation_name


@dataclass(frozen=True)
class CandidateConfig:
    """How many candidates of what kind a consideration draws.

    Args:
        units: candidate units for each space; None for as many as 100,000 weights allow, between 64 and 256, and for
            channels of a convolution a quarter as many as there are (but 8 at least).
        copies: fraction of them that are perturbed copies of existing units.
        smooth: fraction of the random ones whose direction follows the data; the others' are uniform.
        residual: candidate units of a residual layer at each site; 0 offers none.
        identity: random bases for an identity insertion at each site; 0 offers none.
        ascent: steps of ascent of log D' on the candidate units' incoming parameters.
        rate: length of the first step, relative to the length of a unit's incoming parameters; it adapts from there.
        activation: name of the activation of new layers in any case (`ReLU`, `gelu`, `Rational`, ...), one of
            `senn.nn.activations.ACTIVATIONS`; None takes the model's own.

    Raises:
        SennError: an argument is out of range, or the activation is unknown.
    """

    units: int | None = None
    copy_fraction: float = 0.0
    data_direction_fraction: float = 1.0
    residual_units: int = 16
    identity_bases: int = 2
    ascent_steps: int = 0
    ascent_step_size: float = 0.1
    activation: str | None = None

    _RANGES: ClassVar[Mapping[str, Rule]] = {
        "units": whole(low=1).or_none(),
        "copies": fraction(),
        "smooth": fraction(),
        "residual": whole(low=0),
        "identity": whole(low=0),
        "ascent": whole(low=0),
        "rate": positive(),
        "activation": activation_name().or_none(),
    }

    def __post_init__(self) -> None:
        check_fields(self, self._RANGES)
