"""Settings of how many candidates of what kind a round draws."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from senn import _deprecated
from senn._validate import Rule, check_fields, fraction, positive, whole
from senn.nn.activations import activation_name

if not TYPE_CHECKING:
    __getattr__ = _deprecated.old_names(__name__)


@_deprecated.aliased
@dataclass(frozen=True)
class CandidateConfig:
    """How many candidates of what kind a consideration draws.

    Args:
        units: candidate units for each space; None for as many as 100,000 weights allow, between 64 and 256, and for
            channels of a convolution a quarter as many as there are (but 8 at least).
        copy_fraction: fraction of them that are perturbed copies of existing units.
        data_direction_fraction: fraction of the random ones whose direction follows the data; the others' are uniform.
        residual_units: candidate units of a residual layer at each site; 0 offers none.
        identity_bases: random bases for an identity insertion at each site; 0 offers none.
        ascent_steps: steps of ascent of log D' on the candidate units' incoming parameters.
        ascent_step_size: length of the first step, relative to the length of a unit's incoming parameters; it adapts
            from there.
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
        "copy_fraction": fraction(),
        "data_direction_fraction": fraction(),
        "residual_units": whole(low=0),
        "identity_bases": whole(low=0),
        "ascent_steps": whole(low=0),
        "ascent_step_size": positive(),
        "activation": activation_name().or_none(),
    }

    def __post_init__(self) -> None:
        check_fields(self, self._RANGES)
