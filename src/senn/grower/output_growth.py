"""New outputs and new tokens on demand: what a grower does beside its rounds."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from senn._validate import check_arguments
from senn.collectives import Communicator
from senn.compilation import forget_compiled_sizes
from senn.errors import SennError
from senn.events import GrowthEvent
from senn.graph.output_group import OutputGroup, find_outputs, find_tokens
from senn.grower.ddp_wrapper import stale
from senn.grower.grower_memory import GrowerMemory
from senn.grower.grower_settings import GrowerSettings
from senn.kfac.closed_forms import splits_over_outputs
from senn.kfac.loss_arguments import check_class_weights
from senn.kfac.loss_metric import LossMetric
from senn.kfac.recorder import forward
from senn.pytree import Inputs, Output, Prepare
from senn.scoring.example_inputs import ExampleInputs, few_samples
from senn.scoring.rank_checks import check_batch, check_whole
from senn.surgery import Receipt
from senn.surgery.grown_outputs import (
    RANGES,
    RowStart,
    check_names,
    grow_rows,
    name_classes,
    new_tokens,
    refuse_tied,
)


class OutputGrowth(GrowerSettings, GrowerMemory):
    """The part of a grower that gives its model new outputs and new tokens."""

    # set by Grower
    metric: LossMetric
    prepare: Prepare | None
    output: Output | None
    averaged: tuple[Any, ...]
    communicator: Communicator
    _examples: ExampleInputs
    _wrapper: nn.Module | None

    def add_outputs(
        self,
        count: int,
        names: Sequence[str] | None = None,
        *,
        batch: Any = None,
        start: RowStart | None = None,
    ) -> GrowthEvent:
        """Give a classifier outputs for new classes, with its optimizer and its averages: see `senn.add_outputs`.

        Batches observed since the last round are forgotten: their statistics are of fewer outputs. Prices, limits and
        policies have no say in this.

        Args:
            count: number of new outputs, which come after the old ones.
            names: labels of the new classes, for the record and the configuration of a model of transformers.
            batch: as of `grow`, with targets of the old classes; the loss must take the new outputs with them. None for
                the inputs observed before, and the loss isn't tried.
            start: how new rows begin, `mean` or `zero`; None for what suits the loss: zeros where each output has a
                term of its own in it.

        Returns:
            The event, which `undo` takes back.

        Raises:
            SennError: an argument is out of range, there is no batch, or the loss has weights for the old classes.
            UnsupportedError: the outputs can't be told, or aren't rows of linear maps.
            SurgeryError: the change failed or the old outputs differ. In all three cases everything is as it was.
        """
        start = start or ("zero" if splits_over_outputs(self.metric.function) else "mean")
        check_arguments(RANGES, locals())
        check_names(names, count)

        def change(
            few: list[Inputs], inputs: list[Inputs], **settings: Any
        ) -> tuple[OutputGroup, Receipt]:
            group = find_outputs(self.model, few, self.output)
            refuse_tied(self.model, group)
            check_class_weights(self.metric.function, group.width, group.width + count)
            receipt = grow_rows(self.model, group, count, inputs, start=start, **settings)
            name_classes(self.model, group, names)
            return group, receipt

        shown = ", ".join(repr(str(name)) for name in names or ())
        return self._change_rows("outputs", change, batch, f"for {shown}" if names else "")

    def resize_token_embeddings(
        self,
        vocab_size: int,
        *,
        batch: Any = None,
        embedding: str | None = None,
        heads: Sequence[str] | None = None,
    ) -> GrowthEvent:
        """Give a model rows for new tokens, with its optimizer and its averages: see `senn.resize_token_embeddings`.

        Args:
            vocab_size: number of tokens from now on, larger than before.
            batch: as of `add_outputs`.
            embedding: as of `senn.resize_token_embeddings`.
            heads: as of `senn.resize_token_embeddings`.

        Returns:
            The event, which `undo` takes back.

        Raises:
            SennError: as of `add_outputs`.
        """

        def change(
            few: list[Inputs], inputs: list[Inputs], **settings: Any
        ) -> tuple[OutputGroup, Receipt]:
            group = find_tokens(
                self.model, few, embedding=embedding, heads=heads, output=self.output
            )
            count = new_tokens(group, vocab_size)
            if group.is_output:
                check_class_weights(self.metric.function, group.width, vocab_size)
            return group, grow_rows(self.model, group, count, inputs, **settings)

        return self._change_rows("tokens", change, batch, "")

    # -- inside

    def _change_rows(
        self,
        kind: str,
        change: Callable[..., tuple[OutputGroup, Receipt]],
        batch: Any,
        detail: str,
    ) -> GrowthEvent:
        """Carry a change out on all ranks or on none, and record it."""
        former, receipt = self._graph, None
        parameters = _count(self.model)
        try:
            with self.communicator.fail_together("change the model"):
                check_whole(self.model)
                inputs, loss = self._inputs_and_loss(batch)
                few = [few_samples(self.model, inputs[0]), *inputs[1:]]
                group, receipt = change(
                    few,
                    inputs,
                    graph=former,
                    optimizer=self.optimizer,
                    averaged=self.averaged,
                    on_uncarried_state=self.on_uncarried_state,
                    loss=loss,
                    tentative=True,
                )
        except BaseException:
            if receipt is not None:  # another rank has failed
                receipt.undo()
            raise
        receipt.keep()
        self.recompiles += receipt.recompiles
        if self._wrapper is not None:
            self._wrapper.register_forward_pre_hook(stale)
        self._session = None
        self._layouts.clear()  # how maps can be read depends on sizes
        self._graph = None if former is None else receipt.graph
        for one in self.events:  # they can't be undone any more
            one.forget()
        event = self._event_of_rows(kind, group, receipt, detail, _count(self.model) - parameters)

        def undo() -> None:
            assert receipt is not None
            receipt.undo()
            self._graph, self._session = former, None
            self._layouts.clear()
            self.events = [one for one in self.events if one is not event]
            forget_compiled_sizes()

        event._undo = undo
        self.events.append(event)
        return event

    def _inputs_and_loss(self, batch: Any) -> tuple[list[Inputs], Callable[[], float] | None]:
        """Return inputs of the model, one for each call that it gets, and what computes its loss."""
        if batch is None:
            if not [*self._examples]:
                raise SennError("no batch has been observed: give batch=..., or call observe first")
            return [*self._examples], None
        one = batch if self.prepare is None else self.prepare(batch)
        check_batch(one)
        inputs, targets = one[0], one[1]
        calls = 0

        def loss() -> float:
            nonlocal calls
            calls += 1
            try:
                outputs: Tensor = forward(self.model, inputs, self.output)
                return float(self.metric.loss(outputs, targets))
            except Exception:
                if calls > 1:  # of the changed model
                    raise
                return math.nan  # class weights may have been given for the new classes already

        return [inputs, *self._examples], loss

    def _event_of_rows(
        self, kind: str, group: OutputGroup, receipt: Receipt, detail: str, parameters: int
    ) -> GrowthEvent:
        (move,) = receipt.moves
        count = int(getattr(move, "units", 0))
        return GrowthEvent(
            kind=kind,
            place=group.name,
            detail=detail,
            width_before=group.width,
            width_after=group.width + count,
            units=count,
            parameters=parameters,
            gain=0.0,
            gain_lower_bound=0.0,
            held_out_gain=0.0,
            held_out_stderr=0.0,
            expected_decrease=0.0,
            price=0.0,
            loss_per_nat=1.0,
            eta_before=self.eta,
            eta_after=self.eta,
            score_limit=0.0,
            loss_before=math.nan if receipt.loss_before is None else receipt.loss_before,
            loss_after=math.nan if receipt.loss_after is None else receipt.loss_after,
            output_change=receipt.output_change or 0.0,
            architecture=() if self._graph is None else self.architecture,
            round=0,
        )


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
