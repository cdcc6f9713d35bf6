"""Base class of listeners to a training run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from senn import _deprecated


@_deprecated.aliased
class Callback:
    """Listener to a training run; override the methods of interest, the others do nothing.

    Records hold plain JSON-able values only (str, int, float, bool, None, lists and dicts of these) and are the very
    records that end up in `TrainResult.history`. Losses are in nats per sample (classification) or squared error in
    units of the standardized target (regression).

    Example:
        >>> import torch
        >>> from senn.training import Callback, TrainConfig, train
        >>> class Losses(Callback):
        ...     def __init__(self):
        ...         self.losses = []
        ...     def on_epoch(self, record):
        ...         self.losses.append(record["train_loss"])
        >>> listener = Losses()
        >>> x = torch.randn(64, 2)
        >>> y = (x[:, 0] > 0).long()
        >>> result = train(x, y, task="classification", outputs=2, recipe=TrainConfig(epochs=3), callbacks=[listener])
        >>> len(listener.losses)
        3
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Hear overrides of old names too."""
        super().__init_subclass__(**kwargs)
        _deprecated.honor_overrides(cls, "Callback")

    def on_start(self, record: Mapping[str, Any]) -> None:
        """Called when training is about to begin.

        Args:
            record: `event` ("start"), `task`, `epochs`, `steps` (planned totals), `train_rows`, `validation_rows`,
                `architecture` (list of hidden widths), `layers` (their names), `parameters`, `optimizer`, `policy`,
                `flops` (floating-point operations of a forward pass, per row).
        """

    def on_epoch(self, record: Mapping[str, Any]) -> None:
        """Called when an epoch has ended.

        Args:
            record: `event` ("epoch"), `epoch` (from 1), `epochs`, `step`, `steps`, `train_loss`,
                `validation_loss`, `validation_score` (accuracy or R squared; None if there is
                none), `lr`, `architecture`, `parameters`, `flops`, `seconds` (since the start), and with a metric in
                `TrainConfig.monitor` its `validation_metric`.
        """

    def on_growth_round(self, record: Mapping[str, Any]) -> None:
        """Called when a round of growth has been decided; `on_growth` follows for each of its changes.

        Args:
            record: `event` ("growth_round"), `epoch`, `step` and the fields of `senn.events.GrowthRound`, with the
                widths before in `architecture`. `realized_decreases` is what came of each change of the round before,
                `realized_decrease` their sum; their own records say so from now on, too.
        """

    def on_rollback(self, record: Mapping[str, Any]) -> None:
        """Called when a change of size was undone, or when the weights are those of an earlier epoch again.

        Args:
            record: `event` ("rollback"), `epoch`, `step`, `text` (why).
        """

    def on_fault(self, record: Mapping[str, Any]) -> None:
        """Called when a round or a checkpoint went wrong and was left out; training goes on.

        Args:
            record: `event` ("fault"), `epoch`, `step`, `text` (what, and why).
        """

    def on_growth(self, record: Mapping[str, Any]) -> None:
        """Called when the network has changed size by a widening, an insertion or a pruning.

        Args:
            record: `event` ("growth"), `text` (the event in one readable line), `epoch`, `step`, `kind`,
                `place`, `width_before`, `width_after`, `parameters` (net change), `expected_decrease`, `price` (nats
                per sample), `realized_decrease` (nats per sample, or None until it is known), `loss_before`,
                `loss_after` (in the loss's unit), `gain`, `gain_lower_bound`, `held_out_gain`, `eta_before`,
                `eta_after` (in eta's unit, twice the loss's), `architecture`, and the other fields of `GrowthEvent`.
        """

    def on_members(self, record: Mapping[str, Any]) -> None:
        """Called when further networks of the size that was found are about to be trained.

        Args:
            record: `event` ("members"), `epoch`, `step`, `members` (how many will be averaged).
        """

    def on_end(self, record: Mapping[str, Any]) -> None:
        """Called when training has ended, by itself or by an interruption.

        Args:
            record: `event` ("end"), `best_epoch`, `kept` (why that one), `epochs` (trained), `architecture`,
                `parameters`, `seconds`, `validation` (metric to value), `interrupted` (bool), `reason` (why it ended),
                `members` (networks that are averaged),
                `threads` (list of `step`, `number`, `by`, `reason`: how many threads computed, and why),
                `frontier` (`Frontier.to_dict()`, or None).
        """
