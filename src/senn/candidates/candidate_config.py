"""Settings: how many candidates of what kind a round samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from senn import _deprecated
from senn._validate import Rule, check_fields, fraction, one_of, positive, whole
from senn.candidates.initializers import Initializer, initializer_rule
from senn.errors import SennError
from senn.nn.activations import activation_name

if not TYPE_CHECKING:
    __getattr__ = _deprecated.old_names(__name__)


@_deprecated.aliased
@dataclass(frozen=True, kw_only=True)
class CandidateConfig:
    """How many candidates of what kind a growth round samples.

    Args:
        units: candidate units per channel group. None for as many as have 200,000 weights together, between 64 and 256,
            and for the channels of convolutions at most a quarter as many as exist (but 8 at least).
        max_columns: most columns that a group's candidate units have together at a map that reads them, but one unit in
            any case; None for no limit. An attention head has as many columns as units, so the default of 64 candidate
            heads of 64 units makes 4,096 of them.
        copy_fraction: fraction of the units that are perturbed copies of existing ones.
        data_direction_fraction: fraction of the others whose direction follows the data; the rest is uniform.
        residual_units: candidate units of a residual layer at each insertion point; 0 for no such layers.
        identity_bases: random bases of an identity insertion at each insertion point; 0 for no such layers. None for
            two, or as many as have 2,048 columns together (128 where a sample has several locations, such as tokens):
            none before wide maps, where the moments of so many columns cost more than training does. In any case there
            are none before maps with more than 8,192 outputs, such as heads over a vocabulary.
        ascent_steps: steps of gradient ascent of log D' on the incoming parameters of candidate units.
        ascent_step_size: length of the first step, relative to the norm of a unit's incoming parameters; adapted later.
        new_blocks: weights inside a block that is added after a residual one: `copied`, those of that block; or
            `shuffled`, the same numbers in random order, a random block of the same scale.
        stream_units: candidate units of each residual stream behind norms (of transformers), with random columns that
            read them and silent rows that write them, 16 for instance; 0 for none. They are scored by a further pass
            forwards and two backwards through a wider copy of the model. A unit of a stream brings weights in every
            block, several times those of a feed-forward unit.
        activation: name of the activation of new layers in any case (`ReLU`, `gelu`, `Rational`, ...), one of
            `senn.nn.activations.ACTIVATIONS`; None for the one that the model uses nearby.

        initializer: what draws the candidate units of channel groups, an object with a method
            `sample(place, count, generator)` as `senn.candidates.initializers` has them; None for `DataDirections` with
            the two fractions above. Layers are drawn by these fractions in any case.

    Raises:
        SennError: an argument is out of range, the activation is unknown, or there are copies beside an initializer.

    >>> config = CandidateConfig(units=32, activation="gelu")
    >>> config.units, config.residual_units
    (32, 16)
    >>> CandidateConfig(units=0)
    Traceback (most recent call last):
    senn.errors.SennError: units must be a whole number of at least 1 or None, not 0
    """

    units: int | None = None
    max_columns: int | None = None
    copy_fraction: float = 0.0
    data_direction_fraction: float = 0.5
    residual_units: int = 16
    identity_bases: int | None = None
    ascent_steps: int = 0
    ascent_step_size: float = 0.1
    new_blocks: Literal["copied", "shuffled"] = "copied"
    stream_units: int = 0
    activation: str | None = None
    initializer: Initializer | None = None

    _RANGES: ClassVar[Mapping[str, Rule]] = {
        "units": whole(low=1).or_none(),
        "max_columns": whole(low=1).or_none(),
        "copy_fraction": fraction(),
        "data_direction_fraction": fraction(),
        "residual_units": whole(low=0),
        "identity_bases": whole(low=0).or_none(),
        "ascent_steps": whole(low=0),
        "ascent_step_size": positive(),
        "new_blocks": one_of("copied", "shuffled"),
        "stream_units": whole(low=0),
        "activation": activation_name().or_none(),
        "initializer": initializer_rule().or_none(),
    }

    def __post_init__(self) -> None:
        check_fields(self, self._RANGES)
        if self.copy_fraction and self.initializer is not None:
            raise SennError(
                "copy_fraction belongs to the default initializer: give DataDirections(copy_fraction=...) instead"
            )
