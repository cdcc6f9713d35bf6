"""Records of what a round did with the ranks of adapters."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class RankEvent:
    """Change of one adapter's rank.

    Attributes:
        place: full name of the adapted layer.
        rank_before: its rank.
        rank: its rank now.
        added: number of new units.
        removed: number of units that went.
        gain: exact K-FAC gain of the new units in eta, on the samples that they were fitted to.
        expected_decrease: of the loss by the new units' natural step, valued on other samples, less the costs of
            removal, in the loss's own unit. Several adapters, and units of one, can expect the same decrease:
            `RankRound.decrease` is what all of them bring together.
        parameters: change of the number of parameters.
    """

    place: str
    rank_before: int
    rank: int
    added: int
    removed: int
    gain: float
    expected_decrease: float
    parameters: int

    def __str__(self) -> str:
        """One line."""
        return (
            f"{self.place}: rank {self.rank_before} -> {self.rank} ({self.added} new, {self.removed} gone), "
            f"{self.parameters:+,} parameters, expected {-self.expected_decrease:+.3g} of the loss"
        )


@dataclass(frozen=True, kw_only=True)
class RankRound:
    """One round of a `RankAllocator`.

    Attributes:
        events: a change for each adapter whose rank, or whose units, have changed.
        loss_before: loss on the round's samples.
        loss_after: the same right after the change.
        decrease: of the held-out loss by the best part of the new units' step.
        step_length: how much of that step these were given.
    """

    events: tuple[RankEvent, ...]
    loss_before: float
    loss_after: float
    decrease: float
    step_length: float
