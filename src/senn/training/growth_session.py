"""Growth in a training loop of any kind: when rounds take place, on which batches, and their records."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from senn import pytree
from senn._records import reading_state
from senn.candidates.candidate_config import CandidateConfig
from senn.errors import SennError, UnsupportedError
from senn.events import GrowthEvent
from senn.grower import Grower
from senn.pytree import Output
from senn.schedule import GrowthSchedule
from senn.training.callbacks import Callback
from senn.training.recent_batches import RecentBatches
from senn.training.round_records import Record, RoundRecorder, copies, describe_error, failure_record, fault_record
from senn.training.train_config import TrainConfig
from senn.training.train_result import count_parameters
from senn.training.train_step import resolve_policy

Prepare = Callable[[Any], Sequence[Any]]
"""From a batch of the loop: inputs, targets and perhaps weights."""

logger = logging.getLogger("senn")


def pair(one: Any) -> Sequence[Any]:
    """A batch that is inputs, targets and perhaps weights already.

    Raises:
        SennError: it isn't.
    """
    if not isinstance(one, tuple | list) or len(one) not in (2, 3):
        raise SennError(
            f"a batch of this loop is a {type(one).__name__}, not inputs, targets and perhaps weights: "
            "say by prepare=... what they are"
        )
    return one


def refuse(how: str) -> None:
    """Refuse a loop that takes a model apart.

    Raises:
        UnsupportedError: always.
    """
    raise UnsupportedError(
        f"a network can't grow under {how}: train it in one process or under DistributedDataParallel"
    )


def check_single(callbacks: Iterable[object], kind: type) -> None:
    """Refuse several callbacks of a kind in one loop.

    Raises:
        SennError: there are.
    """
    if sum(isinstance(one, kind) for one in callbacks) > 1:
        raise SennError("one loop takes one SelfExpansion, and was given several: leave all but one out")


@dataclass(frozen=True, kw_only=True)
class _Started:
    """What a session has once its loop has begun."""

    grower: Grower
    recorder: RoundRecorder
    batches: RecentBatches


class GrowthSession:
    """Grows a model while a loop of your own, or of another library, trains it.

    Rounds come at fractions of the steps, as `recipe` says, and are computed on the last batches that passed. A round
    that fails is skipped and recorded; training goes on. Between rounds a step costs two comparisons.

    Where several processes train one model by DistributedDataParallel, each has a session. These grow it together, and
    that of the first calls the callbacks.

    Example:
        >>> import torch
        >>> from torch.nn import functional as F
        >>> from senn.training import GrowthSession, Recipe
        >>> x = torch.randn(256, 2, generator=torch.Generator().manual_seed(0))
        >>> y = (x[:, 0] * x[:, 1] > 0).long()
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU(), torch.nn.Linear(2, 2))
        >>> optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        >>> session = GrowthSession(Recipe(rounds=(0.2, 0.4), removals=()), loss=F.cross_entropy)
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

    Args:
        recipe: when, by how much, and what is looked at: `rounds`, `removals`, `growing`, `probe`, `policy`,
            `candidates`, `moves`, `max_params`, `max_width`, `round_to`, `seed`. The rest isn't used.
        loss: the training loss, `loss(outputs, targets)`, a mean over samples.
        prepare: makes inputs, targets and perhaps weights of a batch of the loop.
        samples: number of training samples, for prices.
        ignore: names of modules to leave alone.
        output: finds, in what the model returns, the tensor that the loss takes.
        callbacks: told of every event.

    Attributes:
        history: records of all events, those of former runs of a resumed one included.
        epoch: what the loop says it is, for records.

    Raises:
        SennError: the recipe isn't one.
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
        callbacks: Iterable[Callback] = (),
    ) -> None:
        if recipe is not None and not isinstance(recipe, TrainConfig):
            raise SennError(f"recipe must be a senn.training.Recipe or None, and {recipe!r} is none")
        self.recipe = recipe or TrainConfig()
        self.loss, self.prepare, self.samples = loss, prepare or pair, samples
        self.ignore, self.output, self.callbacks = tuple(ignore), output, [*callbacks]
        self.history: list[Record] = []
        self.epoch = 0
        self._started: _Started | None = None
        self._averages: Callable[[], Sequence[nn.Module]] = tuple
        self._wrapper: Callable[[], object] = tuple
        self._steps: int | None = None
        self._rounds = GrowthSchedule(self.recipe)
        self._rows = 0
        self._trouble: Exception | None = None
        self._warned: set[str] = set()

    @property
    def grower(self) -> Grower | None:
        """Holds the rounds; None before `start`."""
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
        """Training is about to begin, or to go on.

        Args:
            model: what is called with a batch's inputs.
            optimizer: holds its parameters.
            steps: optimizer steps of the whole run; None or infinite where that has no planned end.
            samples: number of training samples, where none was given before.
            averages: gives the averages of the model that there are now.
            wrapper: gives what trains the model; a DistributedDataParallel is made anew when the model has grown.
            state: of the run that goes on; the model and the optimizer have the sizes it was saved with.

        Raises:
            SennError: the optimizer doesn't hold the model's parameters, the wrapper can't be made anew, or the state
                isn't one.
        """
        recipe = self.recipe
        grower = Grower(
            model,
            optimizer,
            loss=self.loss,
            policy=resolve_policy(recipe.policy),
            samples=self.samples or samples,
            max_params=recipe.max_params,
            max_width=recipe.max_width,
            round_to=recipe.round_to,
            moves=recipe.moves,
            candidate_config=CandidateConfig(units=recipe.candidates_per_layer),
            ignore=self.ignore,
            output=self.output,
            seed=recipe.seed,
        )
        self._started = _Started(
            grower=grower,
            recorder=RoundRecorder(grower, self._tell, changed=self._rewrap),
            batches=RecentBatches(recipe.max_scoring_samples, grower.communicator),
        )
        self._averages, self._wrapper = averages, wrapper
        self._rewrap()
        self._steps = None if steps is None or not math.isfinite(steps) or steps < 1 else int(steps)
        self._rounds, self._rows = GrowthSchedule(recipe, self._steps), 0
        self.history.clear()
        self._warned.clear()
        self._trouble = None
        if state is None:
            self._tell({"event": "start", "epoch": self.epoch, "step": 0, "steps": self._steps, **_size(model)})
        else:
            self._load(state, model)

    def needs_batch(self, step: int) -> bool:
        """True if a batch that passes when so many optimizer steps are done is one for the next round."""
        following = self._rounds.next
        if following is None:
            return False
        return not self._rows or (following - step) * self._rows < self.recipe.max_scoring_samples

    def add_batch(self, one: Any, step: int) -> None:
        """Keep a copy of a batch for the next round, up to `TrainConfig.max_scoring_samples` samples in all.

        Args:
            one: a batch of the loop, which `prepare` understands.
            step: optimizer steps that are done.
        """
        try:
            inputs, targets, *weights = self.prepare(one)
            if not isinstance(targets, Tensor):
                raise SennError(f"the targets of a batch must be a tensor, not a {type(targets).__name__}")
            own = pytree.clone((inputs, targets, weights[0] if weights else None))
        except Exception as error:  # whatever a function of others raises: their training goes on
            self._trouble = error
            return
        kept = self._running.batches
        self._rows = kept.samples_of(own)
        if self.needs_batch(step):  # the first batch came to say how many samples one has
            kept.add(own)

    def grow(self, step: int) -> list[GrowthEvent]:
        """Run a round of growth if one is due; whatever fails in it is recorded, and training goes on.

        Args:
            step: optimizer steps that are done.

        Returns:
            The changes of size.
        """
        if not self._rounds.waiting(step):
            return []
        moves = self._rounds.due(step)
        running = self._running
        grower, batches = running.grower, running.batches.take()
        try:
            troubles, complete = self._troubles(bool(batches))
        except Exception as error:  # another process has ended, or does something else
            self._tell(failure_record(error, self.epoch, step))
            return []
        for trouble in troubles:
            what = "a batch was left out" if complete else "the round was skipped"
            self._tell(fault_record(f"{what}: {trouble}", self.epoch, step))
        if troubles and not complete:
            return []

        def grow() -> list[GrowthEvent]:
            grower.averaged = tuple(self._averages())  # type: ignore[arg-type]
            return grower.grow(batches, moves)

        # The loop's loss on a batch may raise anything; everything is as it was then.
        return running.recorder.run(grow, epoch=self.epoch, step=step, survives=lambda error: True)

    def record_epoch(
        self, step: int, *, train_loss: float, validation_loss: float | None = None, lr: float | None = None
    ) -> None:
        """Record the losses of an epoch, or of any other stretch of steps, and tell the callbacks.

        Args:
            step: optimizer steps that are done.
            train_loss: mean loss of this stretch.
            validation_loss: None if there is none.
            lr: learning rate; None leaves it out of the record's charts.
        """
        losses = {"train_loss": train_loss, "validation_loss": validation_loss, "validation_score": None, "lr": lr}
        record = {"event": "epoch", "epoch": self.epoch, "step": step, **losses, **_size(self._running.grower.model)}
        # The widths are known from the first round on; every record since then has them.
        known = next((one["architecture"] for one in reversed(self.history) if "architecture" in one), None)
        self._tell(record if known is None else {**record, "architecture": known})

    def close(self, step: int) -> None:
        """Complete the records when training has ended.

        Args:
            step: optimizer steps that were made.
        """
        running = self._running
        running.recorder.settle()
        self._tell({"event": "end", "epoch": self.epoch, "step": step, **_size(running.grower.model)})

    def state_dict(self) -> dict[str, Any]:
        """What a session with the same arguments needs to go on, bit for bit: nested plain values and tensors.

        All processes call it; its state is that of one process with the joined batches.
        """
        running = self._running
        running.recorder.settle()
        return {
            "steps": self._steps,
            "rounds": self._rounds.state_dict(),
            "rows": self._rows,
            "held": running.batches.state(),
            "history": copies(self.history),
            "grower": running.grower.state_dict(),
        }

    # -- inside

    def _load(self, state: Mapping[str, Any], model: nn.Module) -> None:
        running, device = self._running, next(model.parameters()).device
        with reading_state("this isn't the state of a run that grew"):
            self._steps, self._rows = state["steps"], state["rows"]
            self._rounds = GrowthSchedule(self.recipe, self._steps)
            self._rounds.load_state_dict(state["rounds"])
            running.batches.load(state["held"], device)
            self.history[:] = copies(state["history"])
            running.grower.load_state_dict(state["grower"])
            running.recorder.resume(self.history)

    @property
    def _running(self) -> _Started:
        if self._started is None:
            raise SennError("nothing grows before training has begun")
        return self._started

    @property
    def _speaks(self) -> bool:
        """Whether this process tells of what all do."""
        return self._running.grower.communicator.rank == 0

    def _rewrap(self) -> None:
        if isinstance(wrapper := self._wrapper(), DistributedDataParallel):
            from senn.distributed import rewrap_ddp  # late, since it takes a moment

            rewrap_ddp(wrapper)

    def _troubles(self, kept: bool) -> tuple[list[str], bool]:
        """What has prevented processes from keeping a batch, and whether all have kept one nevertheless."""
        communicator, mine = (
            self._running.grower.communicator,
            None if self._trouble is None else describe_error(self._trouble),
        )
        self._trouble = None
        said = communicator.all_gather_object("keep a batch", [mine, kept])
        texts = [
            text if communicator.is_single else f"on rank {rank}, {text}" for rank, (text, _) in enumerate(said) if text
        ]
        return texts, all(one for _, one in said)

    def _tell(self, record: Record) -> None:
        if record["event"] == "growth":
            record["size"] = count_parameters(self._running.grower.model)
        self.history.append(record)
        if not self._speaks:
            return
        for callback in self.callbacks:
            getattr(callback, f"on_{record['event']}")(record)
        if record["event"] == "growth":
            logger.info("step %d: %s", record["step"], record["text"])
        # What lasts is warned of once; the records have it every time.
        if record["event"] in ("rollback", "fault") and record["text"] not in self._warned:
            self._warned.add(record["text"])
            logger.warning("step %d: %s", record["step"], record["text"])


def _size(model: nn.Module) -> Record:
    return {"parameters": count_parameters(model)}
