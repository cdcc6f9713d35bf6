"""Growth in a training loop of any kind: when rounds take place, on which batches, and their records."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from senn._records import reading_state
from senn.errors import SennError
from senn.events import GrowthEvent
from senn.grower import Grower
from senn.kfac.output_metric import HessianFunction
from senn.pytree import Output, Prepare
from senn.schedule import GrowthSchedule
from senn.training.builders import build_grower
from senn.training.callbacks import Callback
from senn.training.recent_batches import RecentBatches, unpack
from senn.training.round_records import Record, RoundRecorder, copies, failure_record, fault_record
from senn.training.train_config import TrainConfig
from senn.training.train_result import count_parameters

logger = logging.getLogger("senn")


@dataclass(frozen=True, kw_only=True)
class _Started:
    """Parts of a session that need a model, which it has once its loop has begun."""

    grower: Grower
    recorder: RoundRecorder
    batches: RecentBatches


class GrowthSession:
    """Grows a model while a loop of your own, or of another library, trains it.

    Rounds come at fractions of the steps, as `recipe` says, and are computed on the last batches that passed. A round
    that fails is skipped and recorded; training goes on. Between rounds a step costs two comparisons.

    Where several processes train one model by DistributedDataParallel, each has a session. Together they grow it, and
    the session of the first process calls the callbacks.

    Args:
        recipe: settings of growth; None for the defaults. Used are `addition_rounds`, `pruning_rounds`, `growth_steps`,
            `grow`, `max_scoring_samples`, `policy`, `birth`, `candidates_per_layer`, `moves`, `max_params`,
            `max_flops`, `max_width`, `round_to` and `seed`; the rest belongs to the loop.
        loss: the training loss, `loss(outputs, targets)`, a mean over samples.
        prepare: makes inputs, targets and perhaps weights of a batch; None if a batch is a tuple of these.
        samples: number of training samples, for prices; None for the number given to `start`.
        ignore: names of modules that keep their sizes.
        output: finds the tensor that the loss takes in what the model returns; None if it returns that tensor, or a
            single one in some container.
        metric: metric of the outputs, as of `Grower`.
        loss_hessian: as of `Grower`.
        coupled: as of `Grower`; a round needs two batches, so `max_scoring_samples` must be larger than one.
        callbacks: listeners to the records.

    Attributes:
        history: all records so far, those of former parts of a resumed run included.
        epoch: number of the epoch, for the records; set it as your loop counts.

    Raises:
        SennError: `recipe` isn't a `TrainConfig`.

    Example:
        >>> import torch
        >>> from torch.nn import functional as F
        >>> from senn.training import GrowthSession, TrainConfig
        >>> x = torch.randn(256, 2, generator=torch.Generator().manual_seed(0))
        >>> y = (x[:, 0] * x[:, 1] > 0).long()
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU(), torch.nn.Linear(2, 2))
        >>> optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        >>> session = GrowthSession(TrainConfig(addition_rounds=(0.2, 0.4), pruning_rounds=()), loss=F.cross_entropy)
        >>> session.start(model, optimizer, steps=50, samples=len(x))
        >>> for step in range(1, 51):
        ...     optimizer.zero_grad()
        ...     F.cross_entropy(model(x), y).backward()
        ...     optimizer.step()
        ...     if session.needs_batch(step):
        ...         session.add_batch((x, y), step)
        ...     events = session.grow(step)
        >>> session.close(50)
        >>> [record["step"] for record in session.history if record["event"] == "growth_round"]
        [10, 20]
        >>> sum(parameter.numel() for parameter in model.parameters()) > 12
        True
    """

    def __init__(
        self,
        recipe: TrainConfig | None = None,
        *,
        loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
        prepare: Prepare | None = None,
        samples: int | None = None,
        ignore: Sequence[str] = (),
        output: Output | None = None,
        metric: Literal["fisher", "euclidean"] = "fisher",
        loss_hessian: HessianFunction | None = None,
        coupled: bool = False,
        callbacks: Iterable[Callback] = (),
    ) -> None:
        if recipe is not None and not isinstance(recipe, TrainConfig):
            raise SennError(f"recipe must be a senn.training.TrainConfig or None, not {recipe!r}")
        self.recipe = recipe or TrainConfig()
        self.loss, self.prepare, self.samples = loss, prepare or unpack, samples
        self.ignore, self.output, self.callbacks = tuple(ignore), output, [*callbacks]
        self._metric = {"metric": metric, "loss_hessian": loss_hessian, "coupled": coupled}
        self.history: list[Record] = []
        self.epoch = 0
        self._started: _Started | None = None
        self._averages: Callable[[], Sequence[nn.Module]] = tuple
        self._wrapper: Callable[[], object] = tuple
        self._steps: int | None = None
        self._schedule = GrowthSchedule(self.recipe)
        self._warned: set[str] = set()

    @property
    def grower(self) -> Grower | None:
        """Grower of the model; None before `start`."""
        return None if self._started is None else self._started.grower

    def start(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        steps: float | None = None,
        samples: int | None = None,
        averages: Callable[[], Sequence[nn.Module]] = tuple,
        wrapper: Callable[[], object] = tuple,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        """Begin, or resume, growing a model; call it before the first step.

        Args:
            model: called with the inputs of a batch.
            optimizer: holds the model's parameters.
            steps: optimizer steps of the whole run; None or infinite if it has no planned end.
            samples: number of training samples, unless the constructor was given one.
            averages: returns the averages of the model that exist at present; they grow along.
            wrapper: returns what trains the model; a DistributedDataParallel is rebuilt in place when the model has
                grown.
            state: state of the run to resume; model and optimizer have the sizes that it was saved with.

        Raises:
            SennError: the optimizer doesn't hold the model's parameters, the wrapper can't be rebuilt, or the state
                isn't that of a session.
        """
        grower = build_grower(
            model,
            optimizer,
            self.recipe,
            loss=self.loss,
            samples=self.samples or samples,
            ignore=self.ignore,
            output=self.output,
            **self._metric,
        )
        self._started = _Started(
            grower=grower,
            recorder=RoundRecorder(grower, self._tell, changed=self._rewrap),
            batches=RecentBatches(self.recipe.max_scoring_samples, grower.communicator),
        )
        self._averages, self._wrapper = averages, wrapper
        # A model that was resized to a checkpoint may have been wrapped before.
        self._rewrap()
        # Loops without an end say so in different ways: None, infinity, -1.
        planned = steps is not None and math.isfinite(steps) and steps >= 1
        self._steps = int(steps) if planned and steps is not None else None
        self._schedule = GrowthSchedule(self.recipe, self._steps)
        # In place: callers hold on to `history`.
        self.history.clear()
        self._warned.clear()
        if state is None:
            self._tell(
                {
                    "event": "start",
                    "epoch": self.epoch,
                    "step": 0,
                    "steps": self._steps,
                    **_size(model),
                }
            )
        else:
            self._load(state, model)

    def needs_batch(self, step: int) -> bool:
        """Return True if a batch should be passed to `add_batch`: a round is near.

        Args:
            step: optimizer steps done.

        Raises:
            SennError: the session has not been started.
        """
        next_round = self._schedule.next
        return next_round is not None and self._running.batches.needed(next_round - step)

    def add_batch(self, one: Any, step: int) -> None:
        """Keep a copy of a batch for the next round, up to `TrainConfig.max_scoring_samples` samples in all.

        Args:
            one: a batch of the loop, as `prepare` takes it.
            step: optimizer steps done.

        Raises:
            SennError: the session has not been started.
        """
        batches = self._running.batches
        own = batches.read(one, self.prepare)
        if own is not None and self.needs_batch(step):
            batches.add(own)

    def grow(self, step: int) -> list[GrowthEvent]:
        """Run a round of growth if one is due; whatever fails in it is recorded, and training goes on.

        Args:
            step: optimizer steps done.

        Returns:
            Changes of size.

        Raises:
            SennError: the session has not been started.
        """
        if not self._schedule.waiting(step):
            return []
        moves = self._schedule.due(step)
        running = self._running
        grower = running.grower
        try:
            troubles, complete = running.batches.exchange_troubles()
        except Exception as error:  # another process has ended, or does something else
            self._tell(failure_record(error, self.epoch, step))
            return []
        finally:
            batches = running.batches.take()
        for trouble in troubles:
            what = "a batch was left out" if complete else "the round was skipped"
            self._tell(fault_record(f"{what}: {trouble}", self.epoch, step))
        if troubles and not complete:
            return []

        def grow() -> list[GrowthEvent]:
            # Asked for anew: callbacks may begin to average in the middle of a run.
            grower.averaged = tuple(self._averages())
            return grower.grow(batches, moves)

        # The loss is the user's and may raise anything; the grower leaves everything as it was then.
        return running.recorder.run(grow, epoch=self.epoch, step=step, survives=lambda error: True)

    def change(self, make: Callable[[Grower], GrowthEvent], step: int) -> GrowthEvent:
        """Make a change beside the rounds, and record it: new outputs or tokens.

        Args:
            make: makes it, such as `lambda grower: grower.add_outputs(2, batch=batch)`.
            step: optimizer steps done.

        Returns:
            The event.

        Raises:
            SennError: the session has not been started, or the change can't be made.
        """
        running = self._running
        running.grower.averaged = tuple(self._averages())
        event = make(running.grower)
        self._rewrap()
        running.recorder.record([event], epoch=self.epoch, step=step)
        return event

    def record_epoch(
        self,
        step: int,
        *,
        train_loss: float,
        validation_loss: float | None = None,
        lr: float | None = None,
    ) -> None:
        """Record the losses of an epoch, or of any other stretch of steps, and tell the callbacks.

        Args:
            step: optimizer steps done.
            train_loss: mean loss of this stretch.
            validation_loss: loss on validation samples; None if there is none.
            lr: learning rate; None if it isn't recorded.

        Raises:
            SennError: the session has not been started.
        """
        record = {
            "event": "epoch",
            "epoch": self.epoch,
            "step": step,
            "train_loss": train_loss,
            "validation_loss": validation_loss,
            "validation_score": None,
            "lr": lr,
            **_size(self._running.grower.model),
        }
        # Widths are known from the first round on; every record since then has them.
        known = next((one for one in reversed(self.history) if "architecture" in one), {})
        self._tell(record | {key: known[key] for key in ("architecture", "layers") if key in known})

    def close(self, step: int) -> None:
        """Complete the records; call it when training has ended.

        Args:
            step: optimizer steps made.

        Raises:
            SennError: the session has not been started.
        """
        running = self._running
        running.recorder.settle()
        self._tell(
            {"event": "end", "epoch": self.epoch, "step": step, **_size(running.grower.model)}
        )

    def state_dict(self) -> dict[str, Any]:
        """Return nested plain values and tensors from which a session of the same arguments goes on, bit for bit.

        All processes call it; the state is that of one process with the joined batches.

        Raises:
            SennError: the session has not been started.
        """
        running = self._running
        running.recorder.settle()
        return {
            "steps": self._steps,
            "rounds": self._schedule.state_dict(),
            "rows": running.batches.samples_per_batch,
            "held": running.batches.state(),
            "history": copies(self.history),
            "grower": running.grower.state_dict(),
        }

    def _load(self, state: Mapping[str, Any], model: nn.Module) -> None:
        running, device = self._running, next(model.parameters()).device
        with reading_state("this isn't the state of a run that grew"):
            self._steps, running.batches.samples_per_batch = state["steps"], state["rows"]
            self._schedule = GrowthSchedule(self.recipe, self._steps)
            self._schedule.load_state_dict(state["rounds"])
            running.batches.load(state["held"], device)
            self.history[:] = copies(state["history"])
            running.grower.load_state_dict(state["grower"])
            running.recorder.resume(self.history)

    @property
    def _running(self) -> _Started:
        if self._started is None:
            raise SennError("nothing grows before training has begun")
        return self._started

    def _rewrap(self) -> None:
        wrapper = self._wrapper()
        if isinstance(wrapper, DistributedDataParallel):
            from senn.distributed import rewrap_ddp  # late: it takes a moment to import

            rewrap_ddp(wrapper)

    def _tell(self, record: Record) -> None:
        if record["event"] == "growth":
            record["size"] = count_parameters(self._running.grower.model)
        self.history.append(record)
        if self._running.grower.communicator.rank != 0:
            return
        # One process speaks for all: their records are the same.
        for callback in self.callbacks:
            getattr(callback, f"on_{record['event']}")(record)
        if record["event"] == "growth":
            logger.info("step %d: %s", record["step"], record["text"])
        # A reason that lasts is warned of once; the records have it every time.
        if record["event"] in ("rollback", "fault") and record["text"] not in self._warned:
            self._warned.add(record["text"])
            logger.warning("step %d: %s", record["step"], record["text"])


def _size(model: nn.Module) -> Record:
    return {"parameters": count_parameters(model)}
