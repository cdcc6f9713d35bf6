"""What a training run tells the world while it goes on: named events with do-nothing defaults."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from senn import _deprecated


@_deprecated.aliased
class Callback:
    """Listens to a training run; override what is of interest.

    Records hold plain JSON-able values only (str, int, float, bool, None, lists and dicts of these) and
    are the very records that end up in `Run.history`. Losses are in nats per sample (classification)
    or squared error in units of the standardised target (regression).
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Hear overrides of old names too."""
        super().__init_subclass__(**kwargs)
        _deprecated.honor_overrides(cls, "Callback")

    def on_start(self, record: Mapping[str, Any]) -> None:
        """Training is about to begin.

        Args:
            record: `event` ("start"), `task`, `epochs`, `steps` (planned totals), `train_rows`, `validation_rows`,
                `architecture` (list of hidden widths), `parameters`, `optimizer`, `policy`, `flops` (floating-point
                operations of a forward pass, per row).
        """

    def on_epoch(self, record: Mapping[str, Any]) -> None:
        """An epoch has ended.

        Args:
            record: `event` ("epoch"), `epoch` (from 1), `epochs`, `step`, `steps`, `train_loss`,
                `validation_loss`, `validation_score` (accuracy or R squared; None if there is
                none), `lr`, `architecture`, `parameters`, `flops`, `seconds` (since the start).
        """

    def on_growth_round(self, record: Mapping[str, Any]) -> None:
        """A round of growth has been decided, and changes that it made follow.

        Args:
            record: `event` ("growth_round"), `epoch`, `step` and the fields of `senn.events.GrowthRound`, with the
                widths before in `architecture`; `realised` is what came of the changes before, whose own records say
                so too from now on.
        """

    def on_rollback(self, record: Mapping[str, Any]) -> None:
        """A change of size failed its verification, and everything is as it was before.

        Args:
            record: `event` ("rollback"), `epoch`, `step`, `text` (why).
        """

    def on_fault(self, record: Mapping[str, Any]) -> None:
        """Something went wrong and was left out, a round or a checkpoint; training goes on.

        Args:
            record: `event` ("fault"), `epoch`, `step`, `text` (what, and why).
        """

    def on_growth(self, record: Mapping[str, Any]) -> None:
        """The network has changed size: a widening, an insertion or a pruning.

        Args:
            record: `event` ("growth"), `text` (the event in one readable line), `epoch`, `step`, `kind`,
                `place`, `before`, `after` (sizes), `parameters` (net change), `promised`, `price`
                (nats per sample), `realised` (nats per sample, or None until it is known), `loss_before`,
                `loss_after` (in the loss's unit), `gain`, `bound`, `heldout`, `eta_before`, `eta_after` (in
                eta's unit), `architecture`, and the other fields of `GrowthEvent`.
        """

    def on_end(self, record: Mapping[str, Any]) -> None:
        """Training has ended, by itself or by an interruption.

        Args:
            record: `event` ("end"), `best_epoch`, `epochs` (trained), `architecture`, `parameters`,
                `seconds`, `validation` (metric to value), `interrupted` (bool), `reason` (why it ended).
        """
