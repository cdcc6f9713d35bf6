"""State of a run between two steps, and where it is kept: an interrupted run goes on bit for bit."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from senn.checkpoint.model_state import State, load_model_state, model_state
from senn.collectives import Communicator
from senn.errors import SennError
from senn.training.round_records import Record, copies
from senn.training.train_config import ResolvedConfig, TrainConfig
from senn.training.validation import Validation, rank


class Checkpointer(Protocol):
    """Keeps the state of a run where a kill can't reach it.

    Attributes:
        state: state from which the run goes on; None for one that begins.
        communicator: processes that make the same run together.
    """

    state: Mapping[str, Any] | None
    communicator: Communicator

    def record(self, record: Record) -> None:
        """Append one record to the history that is kept."""

    def restart(self, history: list[Record]) -> None:
        """Replace the history that is kept by that of the resumed state."""

    def is_due(self) -> bool:
        """Return True if the state should be saved now; called between steps."""

    @property
    def stopping(self) -> bool:
        """True if the run should save its state and end."""

    def save(self, state: State) -> None:
        """Save the state in place of the one before.

        Raises:
            SennError, OSError: it can't be saved; the one before still is.
        """

    def end(self) -> None:
        """Ignore further interrupts: training has ended, and little remains to be done."""


@dataclass(kw_only=True, eq=False)
class BestModel:
    """Best network of some epochs.

    Attributes:
        model: a copy.
        epoch: epoch it is of; 0 for the network as it started.
        validation: what it makes of the validation rows; None without any.
    """

    model: nn.Module
    epoch: int
    validation: Validation | None

    @property
    def figures(self) -> dict[str, float]:
        """Its validation figures; empty without validation rows."""
        return {} if self.validation is None else dict(self.validation.figures)

    def state_dict(self) -> State:
        """Return nested plain values and tensors."""
        rows = self.validation
        return {
            "model": model_state(self.model),
            "epoch": self.epoch,
            "validation": self.figures,
            "rows": None
            if rows is None
            else {
                "losses": rows.row_losses,
                "misses": rows.misses,
                "weight": rows.weight,
                "outputs": rows.outputs,
            },
        }

    def loaded(self, state: Mapping[str, Any], device: torch.device) -> BestModel:
        """Return the network that `state_dict` was taken of; this one has the sizes that the run began with."""
        model = copy.deepcopy(self.model)
        load_model_state(model, state["model"])
        figures, validation = dict(state["validation"]), None
        if figures:
            empty = torch.zeros(0)
            # senn 0.1 kept none
            rows = state.get("rows") or {"losses": empty, "misses": None, "weight": empty}
            misses: Tensor | None = rows["misses"]
            outputs, own = rows.get("outputs"), self.validation
            validation = Validation(
                figures=figures,
                row_losses=rows["losses"].to(device),
                misses=None if misses is None else misses.to(device),
                weight=rows["weight"].to(device),
                metric=None if own is None else own.metric,
                outputs=None if outputs is None else outputs.to(device),
                targets=None if own is None else own.targets,
            )
        return BestModel(model=model, epoch=int(state["epoch"]), validation=validation)


@dataclass(kw_only=True)
class RunState:
    """Position of a run between two steps.

    Attributes:
        config: resolved configuration; it changes when a run is cut short.
        best: best network so far.
        since_change: best network since the last change of size; None until an epoch has ended since then.
        order_generator: state of the generator before it drew the order of this epoch's rows.
        step: optimizer steps made.
        epoch: epochs begun.
        epoch_step: optimizer steps made in this epoch.
        losses: training losses of these.
        reason: why training ends, unless something else ends it first.
        history: all records so far.
        started: time at which the run began, on the clock, in seconds.
        clock: says what time it is, in seconds since any moment.
    """

    config: ResolvedConfig
    best: BestModel
    order_generator: Tensor
    since_change: BestModel | None = None
    step: int = 0
    epoch: int = 0
    epoch_step: int = 0
    losses: list[Tensor] = field(default_factory=list)
    reason: str = "all epochs done"
    history: list[Record] = field(default_factory=list)
    # Shifted on resumption, so that the seconds of former parts of the run count.
    started: float
    clock: Callable[[], float] = time.perf_counter

    def __post_init__(self) -> None:
        self.since_change = self.since_change or self.best

    @property
    def seconds(self) -> float:
        """Seconds since the run began, former parts of a resumed run included."""
        return self.clock() - self.started

    def draw_order(self, rows: int, generator: torch.Generator) -> Tensor:
        """Begin an epoch with an order of the rows, or draw the order again in the middle of a resumed epoch.

        Args:
            rows: number of training rows.
            generator: source of the draw.

        Returns:
            (rows,) row numbers.
        """
        if not self.epoch_step:
            self.epoch += 1
            self.order_generator = generator.get_state()
            return torch.randperm(rows, generator=generator)
        # From a generator of its own: this run's has gone on since then.
        again = torch.Generator()
        again.set_state(self.order_generator)
        return torch.randperm(rows, generator=again)

    def consider(self, model: nn.Module, validation: Validation | None, monitor: str) -> None:
        """Keep a copy of the network of an epoch that has ended, if it is the best so far or since the last change.

        Args:
            model: the network.
            validation: what it makes of the validation rows; None without any: then the last one counts as the best.
            monitor: figure that makes an epoch the best.
        """

        def beats(former: BestModel | None) -> bool:
            if former is None or validation is None:
                return True
            return rank(validation.figures, monitor) < rank(former.figures, monitor)

        is_best, is_newest = beats(self.best), beats(self.since_change)
        if is_best or is_newest:
            # A deep copy, since later rounds change its sizes in place.
            found = BestModel(model=copy.deepcopy(model), epoch=self.epoch, validation=validation)
            self.best = found if is_best else self.best
            self.since_change = found if is_newest else self.since_change

    def better_before(self, validation: Validation | None, monitor: str) -> BestModel | None:
        """Find the best network of the present size, if the network is worse by more than noise.

        Args:
            validation: what the network makes of the validation rows; None without any.
            monitor: figure that makes an epoch the best.

        Returns:
            The better network; None if there is none.
        """
        best = self.since_change
        if best is None or best.validation is None or validation is None:
            return None
        return None if validation.is_level_with(best.validation, monitor) else best

    @property
    def best_epoch(self) -> int:
        """Last epoch that was the best, of all or since the last change of size."""
        newest = 0 if self.since_change is None else self.since_change.epoch
        return max(self.best.epoch, newest)

    def kept(self, monitor: str) -> tuple[BestModel, str]:
        """Choose the network that is kept, and say why.

        It is the one whose size was found: the best since the last change of size, unless an epoch before was better by
        more than the noise of the validation rows.

        Args:
            monitor: figure that makes an epoch the best.
        """
        best, newest = self.best, self.since_change
        if best.validation is None:
            return best, "the last network is kept: there are no validation rows"
        if newest is None or newest.validation is None or newest.epoch == best.epoch:
            return (
                best,
                f"the network of epoch {best.epoch} is kept, the best on the validation rows",
            )
        if newest.validation.is_level_with(best.validation, monitor):
            return newest, (
                f"the network of epoch {newest.epoch} is kept, the best since the last change of size: epoch "
                f"{best.epoch} before it is no better than chance could make it on the validation rows"
            )
        return best, (
            f"the network of epoch {best.epoch} is kept: none since the last change of size is as good on the "
            "validation rows"
        )

    def cut_short(self, recipe: TrainConfig, monitor: str) -> bool:
        """Let the learning rate fall from now on, as at the end of a shorter run.

        Args:
            recipe: schedule of the learning rate.
            monitor: figure that has become no better.

        Returns:
            True if the schedule has no tail to fall in, and the run is to stop instead.
        """
        tail = recipe.tail
        has_tail = recipe.schedule == "tail" and 0 < tail < 1
        if has_tail and self.step >= (1 - tail) * self.config.steps:
            return False  # it falls already
        self.reason = f"no better validation {monitor} for {self.config.patience:g} epochs"
        if not has_tail:
            return True
        # A run of E epochs whose tail begins now: epoch = (1 - tail) E.
        epochs = math.ceil(self.epoch / (1 - tail))
        self.config = replace(self.config, epochs=epochs, steps=epochs * self.config.batches)
        return False

    def state_dict(self) -> State:
        """Return nested plain values and tensors that training doesn't change any more.

        The keys are those of version 0.1, so that its checkpoints can be resumed.
        """
        newest = self.since_change
        return {
            "step": self.step,
            "epoch": self.epoch,
            "at": self.epoch_step,
            "losses": torch.stack(self.losses) if self.losses else None,
            "before_order": self.order_generator,
            "plan": asdict(self.config),
            "reason": self.reason,
            "seconds": self.seconds,
            "history": copies(self.history),
            "best": self.best.state_dict(),
            "since_change": None if newest is None else newest.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Go on where `state_dict` was taken; the best model still has the sizes that the run began with.

        Args:
            state: what `state_dict` returned.
            device: where the run trains.

        Raises:
            SennError: the state is of a run whose epochs have another number of steps.
        """
        losses, newest = state["losses"], state.get("since_change")  # senn 0.1 had none
        first = self.best
        self.best = first.loaded(state["best"], device)
        self.since_change = None if newest is None else first.loaded(newest, device)
        config = ResolvedConfig(**state["plan"])
        # The position within an epoch would mean other rows.
        if config.batches != self.config.batches:
            raise SennError(
                f"this isn't the state of such a run: its epochs have {config.batches} steps"
            )
        self.config = config
        self.reason = str(state["reason"])
        self.step = int(state["step"])
        self.epoch = int(state["epoch"])
        self.epoch_step = int(state["at"])
        self.losses = [] if losses is None else [*losses.to(device)]
        self.history = copies(state["history"])
        self.order_generator = state["before_order"]
        self.started = self.clock() - float(state["seconds"])
