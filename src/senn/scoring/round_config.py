"""Settings: how much of a model a round scores, and in what precision processes add up what they have seen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from senn._validate import Rule, check_fields, fraction


def _floating_point() -> Rule:
    """Build the rule for floating-point types."""

    def allows(value: Any) -> bool:
        return isinstance(value, torch.dtype) and value.is_floating_point

    return Rule(expected="a floating-point torch.dtype", allows=allows)


@dataclass(frozen=True, kw_only=True)
class RoundConfig:
    """How much of a model one growth round scores, and how its processes add up what they have seen.

    The defaults change nothing: all maps, and the figures of one process with the joint batch. Other settings are for
    large models in many processes, where sums of Kronecker factors cost more than passes through the model.

    Args:
        maps_per_round: fraction of the linear maps that a round scores, above 0; the others have their turn in the next
            rounds. Maps that read the candidates of one group have one turn. `eta` is that of the maps in turn, units
            that maps of several turns read (a residual stream's) aren't removed, and additions whose readers have
            another turn in the next round have no `realized_decrease`. The policy must not compare gains with the
            network's own score.
        reduce_dtype: floating-point type in which processes send gradients that are summed, as of FSDP; None for that
            of the model. Rounding to `torch.bfloat16` passes for gain where gradients are large beside what candidates
            add: it has changed decisions in every net that was measured (docs/several_processes.md). Covariances keep
            the model's type: they are inverted, and rounded ones have negative eigenvalues.

    Raises:
        SennError: an argument is out of range.

    >>> RoundConfig(maps_per_round=0.125).n_turns
    8
    """

    maps_per_round: float = 1.0
    reduce_dtype: torch.dtype | None = None

    _RANGES: ClassVar[Mapping[str, Rule]] = {
        "maps_per_round": fraction(open_low=True),
        "reduce_dtype": _floating_point().or_none(),
    }

    def __post_init__(self) -> None:
        check_fields(self, self._RANGES)

    @property
    def n_turns(self) -> int:
        """Number of rounds in which every map is scored once."""
        # less a rounding error: 1 / (1 / 49) is a little more than 49
        return -int(-(1 / self.maps_per_round - 1e-9) // 1)
