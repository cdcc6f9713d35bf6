"""One transaction: moves applied to a model, its averages and its optimizer, all or nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from senn import _deprecated
from senn.compilation import forget_compiled_sizes, uncompiled
from senn.errors import SennError, SurgeryError, UnsupportedError
from senn.graph.forward_passes import ForwardPass
from senn.graph.types import DependencyGraph
from senn.preserve import ModelState, preserve_model_state
from senn.pytree import Inputs
from senn.surgery.apply import prepare
from senn.surgery.averages import find_copy, follow_names, names_of
from senn.surgery.hooks import check_steps_in_backward, try_gradient_hooks
from senn.surgery.model_config import follow_config
from senn.surgery.moves import Move, Prune, place_of
from senn.surgery.newborn_state import Measure, new_entries, warm_second_moments
from senn.surgery.optimizer_layers import OptimizerLayers, check_holds
from senn.surgery.optimizer_state import Migration, Snapshot
from senn.surgery.outputs import (
    calibrate_batch_norm,
    check_use,
    dtypes_in_pass,
    former_outputs,
    model_digest,
    output_change,
    outputs,
    tolerance_for,
    tolerance_of,
)
from senn.surgery.plan import plan
from senn.surgery.rehearsal import rehearse
from senn.surgery.reindex import NewPositions, new_positions, reindex
from senn.surgery.undo import UndoLog
from senn.surgery.written_sizes import follow_written_sizes, written_sizes

UncarriedState = Literal["refuse", "restart"]
"""What happens where a parameter's state follows its size by no rule."""

WRAPPERS = frozenset(("DataParallel", "DistributedDataParallel", "FullyShardedDataParallel"))
"""Classes that hold a model and remember the sizes of its parameters."""


@_deprecated.aliased
@dataclass(eq=False, kw_only=True)
class Receipt:
    """Result of a transaction, and the way back.

    Attributes:
        moves: as applied.
        output_change: largest relative change of the outputs on the probe batch; None without a probe.
        loss_before: loss before the change; None if no loss was given.
        loss_after: loss after the change; None if no loss was given.
        graph: dependency graph of the model now; None if only a new analysis can tell (after an insertion).
        recompiles: True if compiled code was dropped, so that whatever runs the model next compiles anew.
        new_positions: by widened group, where its new units stand.
        inserted: for each `Insert` and `Append`, in their order, the modules that were put into the model.
    """

    moves: tuple[Move, ...]
    output_change: float | None = None
    loss_before: float | None = None
    loss_after: float | None = None
    graph: DependencyGraph | None = None
    recompiles: bool = False
    new_positions: dict[str, list[NewPositions]] = field(default_factory=dict, repr=False)
    inserted: list[tuple[nn.Module, ...]] = field(default_factory=list, repr=False)
    _models: tuple[nn.Module, ...] = field(default=(), repr=False)
    _logs: list[UndoLog] = field(default_factory=list, repr=False)
    _snapshot: Snapshot | None = field(default=None, repr=False)
    _marks: list[int] = field(default_factory=list, repr=False)
    _restores: list[Callable[[], None]] = field(default_factory=list, repr=False)
    _undone: bool = field(default=False, repr=False)
    _is_copy: bool = field(default=False, repr=False, init=False)

    def keep(self) -> None:
        """Make a tentative change final: a backward pass through a forward pass from before it raises from now on."""
        for log in self._logs:
            if not log.finished:
                log.finish()

    def warm_second_moments(self, optimizer: Any, measure: Measure) -> None:
        """Give new entries of the optimizer's state the second moments that go with their own gradients.

        Until then they have the mean of the old entries, since surgery knows no loss.

        Args:
            optimizer: as it was given to the transaction; its state is undone with the rest.
            measure: measures the gradients of some parameters at given values of theirs; it is called twice.
        """
        layers = OptimizerLayers(optimizer)
        held, resized = layers.parameters, self._logs[0].resized
        masks = {one: new_entries(resized[one]) for one in held if one in resized}
        masks = {one: mask for one, mask in masks.items() if one.requires_grad and mask.any()}
        warm_second_moments(layers, masks, measure)
        self.refresh()

    def refresh(self) -> None:
        """Take numbers that were written to the model on purpose for part of the change, so that it can be undone."""
        self._marks = model_digest(self._watched())

    def first_undo(self, restore: Callable[[], None]) -> None:
        """Let `undo` call a function first, which takes back what is written to tensors that kept their size."""
        self._restores.append(restore)

    def undo(self) -> None:
        """Restore the model, its averages and its optimizer: their former data, gradients and state.

        Raises:
            SurgeryError: the change was undone before, or the model was changed again or trained since.
        """
        where = f"the change of {_places(self.moves)}"
        if self._is_copy:
            raise SurgeryError(f"{where} can't be undone by a copy of its receipt")
        if self._undone:
            raise SurgeryError(f"{where} has been undone already")
        # A loaded state dict, or another change, has put other objects or data where this one's are.
        attached = self._snapshot is None or self._snapshot.attached
        if not attached or not all(log.in_place() for log in self._logs):
            raise SurgeryError(
                f"{where} can't be undone: the model or its optimizer has been changed again since"
            )
        if self._marks != model_digest(self._watched()):
            # Undoing would throw that training away, and only for the resized parameters.
            raise SurgeryError(f"{where} can't be undone: the model has been trained since")
        for restore in self._restores:
            restore()
        _take_back(self._logs, self._snapshot)
        forget_compiled_sizes()
        self._undone = True

    def __getstate__(self) -> dict[str, Any]:
        """State of a copy or pickle: without the way back, which leads to this receipt's model."""
        back: dict[str, Any] = {"_models": (), "_logs": [], "_snapshot": None, "_marks": []}
        back |= {"new_positions": {}, "inserted": [], "_restores": []}
        return {**vars(self), **back, "_is_copy": True}

    def _watched(self) -> list[Tensor]:
        """Return all tensors that training writes to."""
        watched: list[Tensor] = []
        for model in self._models:
            watched += [*model.parameters(), *model.buffers()]
        if self._snapshot is not None:
            watched += self._snapshot.tensors()
        return watched


@_deprecated.keywords
@torch.inference_mode(False)  # data and state that are made in inference mode can't be trained
def transaction(
    model: nn.Module,
    moves: Sequence[Move],
    graph: DependencyGraph,
    *,
    optimizer: Any = None,
    on_uncarried_state: UncarriedState = "refuse",
    averaged: Sequence[Any] = (),
    probe: Inputs | None = None,
    loss: Callable[[], float] | None = None,
    loss_limit: float | None = None,
    tolerance: float | None = None,
    examples: Sequence[Inputs] = (),
    tentative: bool = False,
    rehearses: bool = True,
) -> Receipt:
    """Apply moves to a model, its averages and its optimizer, all or nothing.

    All moves refer to the model as it stands before the call. A graph found before an Insert or an Append is stale
    after it (the map `fc` is then `fc.1`, or further; the block `h.3` is `h.4`); after a Widen or a Prune,
    `Receipt.graph` is the graph of now.

    Args:
        model: changed in place; Parameters stay the same objects, with other data.
        moves: of any kind; several may touch the same tensor.
        graph: of the model.
        optimizer: its groups stay the same objects; its state follows by position. Or a list of several, or an object
            that holds some; None for a model without one.
        on_uncarried_state: what happens where a parameter's state follows its size by no rule: `refuse` the change, or
            `restart` the state of that parameter, as if training began.
        averaged: averages of the model, which change with it: copies, or objects with a copy in them (`AveragedModel`).
        probe: inputs on which outputs before and after are compared in eval mode, and from which new BatchNorm
            channels take their running statistics. With None, nothing is compared: only shapes are certain.
        loss: the model's loss on held-out data, called before and after.
        loss_limit: most by which that loss may rise, in its own unit; None doesn't check.
        tolerance: largest relative change of outputs if nothing is pruned; None for that of the dtype (`TOLERANCE`).
        examples: inputs of other calls of the model, which may take other paths. With a probe, a copy is changed first
            and run on a few samples of the probe and on these, in both modes, in training mode backwards as well.
        tentative: True if the change may be undone before the model is used: graphs from before it, and hooks on their
            nodes (those of DistributedDataParallel), are given up by `Receipt.keep` only.
        rehearses: False to change no copy first, for moves whose carrying out is known to be right: a copy may be as
            large as a frozen model that hardly any of the moves touch.

    Returns:
        A receipt with the measured changes and `undo()`.

    Raises:
        SennError: moves, graph or optimizer don't fit the model; nothing was changed.
        SurgeryError: the change failed or the outputs differ, and everything was rolled back.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> import senn
        >>> from senn.surgery import Prune, transaction
        >>> model, x = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1)), torch.randn(8, 3)
        >>> optimizer = torch.optim.Adam(model.parameters())
        >>> receipt = transaction(model, [Prune("0", (1, 2))], senn.analyze(model, x), optimizer=optimizer, probe=x)
        >>> receipt.graph.group("0").width, model[2].in_features
        (2, 2)
        >>> receipt.undo()
        >>> model[2].in_features
        4
    """
    model = uncompiled(model)
    kind = type(model).__name__
    if kind in WRAPPERS:
        raise UnsupportedError(
            f"a {kind} model can't be resized: change the module inside and wrap it anew"
        )
    operation = _Operation(
        model=model,
        averaged=tuple(averaged),
        copies=tuple(find_copy(model, average) for average in averaged),
        moves=tuple(moves),
        probe=probe,
        loss=loss,
        loss_limit=loss_limit,
        tolerance=tolerance,
        restart=on_uncarried_state == "restart",
        examples=tuple(examples),
        tentative=tentative,
        rehearses=rehearses,
    )
    try:
        with ExitStack() as rollback:
            receipt = operation.run(graph, optimizer, rollback)
            receipt._models = (model, *operation.copies)
            receipt.refresh()
            receipt.recompiles = forget_compiled_sizes()
            rollback.pop_all()  # done: nothing is to be rolled back any more
            return receipt
    except SurgeryError as error:
        raise SurgeryError(f"the change of {_places(moves)} was rolled back: {error}") from error
    except SennError:  # says itself what doesn't fit
        raise
    except Exception as error:
        what = f"{type(error).__name__}: {error}"
        raise SurgeryError(f"the change of {_places(moves)} was rolled back: {what}") from error


@dataclass(eq=False, kw_only=True)
class _Operation:
    """Arguments of one transaction, and its steps."""

    model: nn.Module
    averaged: tuple[Any, ...]
    copies: tuple[nn.Module, ...]
    moves: tuple[Move, ...]
    probe: Inputs | None
    loss: Callable[[], float] | None
    loss_limit: float | None
    tolerance: float | None
    restart: bool
    examples: tuple[Inputs, ...]
    tentative: bool
    rehearses: bool

    def run(self, graph: DependencyGraph, optimizer: Any, rollback: ExitStack) -> Receipt:
        everyone = (self.model, *self.copies)
        # An interrupt may come while a pass restores what it changed: then this does it again.
        rollback.callback(ModelState(everyone).restore)
        if optimizer is not None:
            check_holds(optimizer, self.model)
        todo = plan(self.model, self.moves, graph)
        kept_names = [names_of(copy) for copy in self.copies]
        before = [] if self.probe is None else [outputs(one, self.probe) for one in everyone]
        if self.probe is not None and self.rehearses:
            keeps = not any(isinstance(move, Prune) for move in self.moves)
            rehearse(
                self.model,
                todo,
                self.probe,
                self.examples,
                keeps=keeps,
                tolerance=self.tolerance,
            )
        loss_before = self._loss()
        sizes = [written_sizes(one, graph, todo) for one in everyone]
        # Everything that can fail for want of memory or by a bad shape fails here, with nothing exchanged yet.
        logs = [prepare(one, todo) for one in everyone]
        migration = None
        if optimizer is not None:
            migration = Migration(OptimizerLayers(optimizer), self.model, self.restart)
        snapshot = None if migration is None else migration.snapshot
        # Before the first exchange, so that there is no moment without a way back.
        rollback.callback(_take_back, logs, snapshot)
        for log in logs:
            log.commit()
        if migration is not None:
            migration.run(logs[0])
        for average, log, kept in zip(self.averaged, logs[1:], kept_names, strict=True):
            log.exchange(follow_names(average, log.model, kept))
        try_gradient_hooks(logs[0])
        check_steps_in_backward(logs[0])
        receipt = Receipt(moves=self.moves, loss_before=loss_before, _logs=logs, _snapshot=snapshot)
        receipt.graph = reindex(graph, todo)
        resized = {change.name: tensor for tensor, change in logs[0].resized.items()}
        receipt.new_positions = new_positions(graph, todo, resized)
        receipt.inserted = [one.modules for one in logs[0].inserted]
        if self.probe is not None:
            receipt.output_change = self._compare(everyone, logs, before, todo.new_outputs)
        probe = self.probe
        follow_written_sizes(
            sizes, logs, None if probe is None else lambda: outputs(self.model, probe)
        )
        for log in logs:
            follow_config(log)
        receipt.loss_after = self._loss()
        self._check_loss(receipt)
        if not self.tentative:
            receipt.keep()
        return receipt

    def _compare(
        self,
        everyone: Sequence[nn.Module],
        logs: Sequence[UndoLog],
        before: list[list[Tensor]],
        new_outputs: int,
    ) -> float:
        """Return the largest change of all copies' outputs; refuse one that function-preserving moves can't make."""
        changes, probe = [], self.probe
        assert probe is not None
        for one, log, old in zip(everyone, logs, before, strict=True):
            calibrate_batch_norm(one, log, probe)
            new = former_outputs(old, outputs(one, probe), new_outputs)
            changes.append(output_change(old, new))
            check_use(one, log, probe)
        limit = tolerance_for(self.model, before[0]) if self.tolerance is None else self.tolerance
        # A removal changes the function, by as much as the policy has agreed to.
        removes = any(isinstance(move, Prune) for move in self.moves)
        if max(changes) > limit and not removes and self.tolerance is None:
            # A step in lower precision on the way (a norm that computes in float32) makes outputs as coarse as it is.
            # Only now, since watching all operations costs more than the pass.
            dtypes = dtypes_in_pass(self.model, ForwardPass(inputs=probe))
            limit = max(limit, tolerance_of(dtypes))
        if max(changes) > limit and not removes:
            raise SurgeryError(
                f"it changed the outputs by {max(changes):.2g} of their size, more than {limit:.2g}"
            )
        return max(changes)

    def _loss(self) -> float | None:
        if self.loss is None:
            return None
        with torch.no_grad(), preserve_model_state(self.model):
            return float(self.loss())

    def _check_loss(self, receipt: Receipt) -> None:
        if self.loss_limit is None or receipt.loss_before is None or receipt.loss_after is None:
            return
        rise = receipt.loss_after - receipt.loss_before
        # Written so that NaN fails: it compares as False.
        if not rise <= self.loss_limit:
            raise SurgeryError(f"it raised the loss by {rise:.4g}, more than {self.loss_limit:.4g}")


def _take_back(logs: Sequence[UndoLog], snapshot: Snapshot | None) -> None:
    for log in reversed(logs):
        log.undo()
    if snapshot is not None:
        snapshot.restore()


def _places(moves: Sequence[Move]) -> str:
    places = dict.fromkeys(map(place_of, moves))
    return ", ".join(f"'{place}'" for place in places) or "nothing"
