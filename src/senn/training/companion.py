"""What grows a model beside a loop that others own: when, on which batches, and what is told of it."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from senn import batch
from senn.batch import Arguments, Inputs, Output
from senn.errors import SennError, SurgeryError, UnsupportedError
from senn.events import GrowthEvent
from senn.grower import Grower
from senn.proposals import Proposals
from senn.schedule import Rounds
from senn.scoring.global_batch import everyones
from senn.training.callbacks import Callback
from senn.training.learner import resolve_policy
from senn.training.recipe import Recipe
from senn.training.run import (
    Record,
    consideration_record,
    count_parameters,
    event_record,
    fault_record,
    first_line,
    rollback_record,
)

Held = tuple[Inputs, Tensor, Tensor | None]
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


class Companion:
    """Grows a model beside a loop of others; the loop tells it of every step.

    Where several processes train one model by DistributedDataParallel, each has a companion. These grow it together,
    and that of the first tells the callbacks.

    After a batch has passed: `if companion.near(step): companion.keep(one, step)`, where `step` is the number of
    optimizer steps done. After a step: `companion.grow(step)`. Between rounds both compare two numbers.

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
        grower: None before `start`.
        history: records of all events, those of former runs of a resumed one included.
        epoch: what the loop says it is, for records.

    Raises:
        SennError: the recipe isn't one.
    """

    def __init__(
        self,
        recipe: Recipe | None = None,
        *,
        loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
        prepare: Prepare | None = None,
        samples: int | None = None,
        ignore: Sequence[str] = (),
        output: Output | None = None,
        callbacks: Iterable[Callback] = (),
    ) -> None:
        if recipe is not None and not isinstance(recipe, Recipe):
            raise SennError(f"recipe must be a senn.training.Recipe or None, and {recipe!r} is none")
        self.recipe = recipe or Recipe()
        self.loss, self.prepare, self.samples = loss, prepare or pair, samples
        self.ignore, self.output, self.callbacks = tuple(ignore), output, [*callbacks]
        self.grower: Grower | None = None
        self.history: list[Record] = []
        self.epoch = 0
        self._averages: Callable[[], Sequence[nn.Module]] = tuple
        self._wrapper: Callable[[], object] = tuple
        self._steps: int | None = None
        self._rounds = Rounds(self.recipe)
        self._rows = self._kept = 0
        self._held: deque[Held] = deque()
        self._trouble: Exception | None = None
        self._open: list[tuple[GrowthEvent, Record]] = []
        self._warned: set[str] = set()

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
        self.grower = Grower(
            model, optimizer, loss=self.loss, policy=resolve_policy(recipe.policy), samples=self.samples or samples,
            max_params=recipe.max_params, max_width=recipe.max_width, round_to=recipe.round_to, moves=recipe.moves,
            proposals=Proposals(units=recipe.candidates), ignore=self.ignore, output=self.output, seed=recipe.seed,
        )  # fmt: skip
        self._averages, self._wrapper = averages, wrapper
        self._rewrap()
        self._steps = None if steps is None or not math.isfinite(steps) or steps < 1 else int(steps)
        self._rounds, self._rows, self._kept = Rounds(recipe, self._steps), 0, 0
        self.history.clear()
        self._held.clear()
        self._open.clear()
        self._warned.clear()
        self._trouble = None
        if state is None:
            record = {"event": "start", "epoch": self.epoch, "step": 0, "steps": self._steps, **_size(model)}
            self._tell(record)
        else:
            self._load(state, model)

    def near(self, step: int) -> bool:
        """Whether a batch that passes when so many optimizer steps are done will be looked at."""
        following = self._rounds.next
        if following is None:
            return False
        return not self._rows or (following - step) * self._rows < self.recipe.probe

    def keep(self, one: Any, step: int) -> None:
        """Keep a batch for the next round, and no more of those before than `Recipe.probe` samples in all."""
        try:
            inputs, targets, *weights = self.prepare(one)
            if not isinstance(targets, Tensor):
                raise SennError(f"the targets of a batch must be a tensor, not a {type(targets).__name__}")
            own, rows = batch.copied((inputs, targets, weights[0] if weights else None)), len(targets)
        except Exception as error:  # whatever a function of others raises: their training goes on
            self._trouble = error
            return
        rows *= self._grower().ranks.size  # that each keeps as many is a guess, for those that have more or less
        self._rows = rows
        if not self.near(step):  # the first batch came to say how many samples one has
            return
        self._held.append(own)
        self._kept += rows
        while self._kept - self._samples_of(self._held[0]) >= self.recipe.probe:
            self._kept -= self._samples_of(self._held.popleft())

    def grow(self, step: int) -> list[GrowthEvent]:
        """After optimizer step number `step`: a round of growth, if one is due. What fails is told of, and no more."""
        if self._rounds.next is None or step < self._rounds.next:
            return []
        moves = self._rounds.due(step)
        batches = [(inputs, targets) if weights is None else (inputs, targets, weights)
                   for inputs, targets, weights in self._held]  # fmt: skip
        self._held.clear()
        self._kept = 0
        grower = self._grower()
        known, before = len(grower.rejections), grower.consideration
        failures: list[Exception | str] = []
        left_out: list[Exception] = []
        events: list[GrowthEvent] = []
        try:
            troubles, complete = self._troubles(bool(batches))
            if troubles and not complete:
                failures += troubles
            else:
                left_out = troubles
                grower.averaged = tuple(self._averages())  # type: ignore[arg-type]
                events = grower.grow(batches, moves)
        except Exception as error:  # the loop's loss on a batch, the surgery: everything is as it was
            failures.append(error)
        if events:
            self._rewrap()
        if grower.consideration is not None and grower.consideration is not before:
            self._realise()
            round_ = grower.consideration
            self._tell(consideration_record(round_, self.epoch, step))
        for failure in [*failures, *grower.rejections[known:]]:
            self._fail(step, failure)
        for trouble in left_out:
            self._fail(step, trouble, "a batch was left out")
        for event in events:
            record = event_record(event, self.epoch, step, grower.architecture)
            record["size"] = count_parameters(grower.model)
            self._open.append((event, record))
            self._tell(record)
            if self._speaks:
                logger.info("step %d: %s", step, event)
        return events

    def finish(self, step: int) -> None:
        """Training has ended."""
        self._realise()
        self._tell({"event": "end", "epoch": self.epoch, "step": step, **_size(self._grower().model)})

    def state_dict(self) -> dict[str, Any]:
        """What a companion with the same arguments needs to go on, bit for bit: nested plain values and tensors.

        All processes call it; its state is that of one process with the joined batches.
        """
        self._realise()
        return {
            "steps": self._steps,
            "rounds": self._rounds.state_dict(),
            "rows": self._rows,
            "held": [_plain(one) for one in self._joined()],
            "history": [dict(record) for record in self.history],
            "grower": self._grower().state_dict(),
        }

    # -- inside

    def _load(self, state: Mapping[str, Any], model: nn.Module) -> None:
        device = next(model.parameters()).device
        try:
            self._steps, self._rows = state["steps"], state["rows"]
            self._rounds = Rounds(self.recipe, self._steps)
            self._rounds.load_state_dict(state["rounds"])
            self._held.extend(self._part(_unplain(one, device)) for one in state["held"])
            self._kept = sum(map(self._samples_of, self._held))
            self.history[:] = [dict(record) for record in state["history"]]
            grower = state["grower"]
        except (KeyError, TypeError, ValueError) as error:
            raise SennError(f"this isn't the state of a run that grew: {type(error).__name__}: {error}") from error
        self._grower().load_state_dict(grower)
        events = [event for event in self._grower().events if event.realised is None]
        records = [one for one in self.history if one["event"] == "growth" and one["realised"] is None]
        self._open = list(zip(events, records, strict=False))

    def _grower(self) -> Grower:
        if self.grower is None:
            raise SennError("nothing grows before training has begun")
        return self.grower

    @property
    def _speaks(self) -> bool:
        """Whether this process tells of what all do."""
        return self._grower().ranks.rank == 0

    def _rewrap(self) -> None:
        if isinstance(wrapper := self._wrapper(), DistributedDataParallel):
            from senn.distributed import rewrap  # late, since it takes a moment

            rewrap(wrapper)

    def _troubles(self, kept: bool) -> tuple[list[Exception], bool]:
        """What has prevented processes from keeping a batch, and whether all have kept one nevertheless."""
        ranks, mine = self._grower().ranks, None if self._trouble is None else _said(self._trouble)
        self._trouble = None
        said = ranks.exchange("keep a batch", [mine, kept])
        texts = [text if ranks.alone else f"on rank {rank}, {text}" for rank, (text, _) in enumerate(said) if text]
        return [SennError(text) for text in texts], all(one for _, one in said)

    def _samples_of(self, one: Held) -> int:
        """Of all processes, about."""
        return len(one[1]) * self._grower().ranks.size

    def _joined(self) -> list[Held]:
        """The batches kept, each joined of the parts of all processes."""
        ranks, found = self._grower().ranks, list[Held]()
        said = ranks.exchange("keep batches", [len(targets) for _, targets, _ in self._held])
        fewest = min(map(len, said))
        for number, own in enumerate([*self._held][len(self._held) - fewest :], start=-fewest):
            counts = [one[number] for one in said]
            start, count = sum(counts[: ranks.rank]), counts[ranks.rank]
            found.append(everyones(ranks, own, slice(0, count), count, torch.arange(start, start + count)))
        return found

    def _part(self, joint: Held) -> Held:
        """This process's samples of a batch of all."""
        total = len(joint[1])
        part: Held = batch.take(joint, self._grower().ranks.part(total), total)
        return part

    def _realise(self) -> None:
        """What changes really brought is known at the next round."""
        for event, record in self._open:
            record["realised"] = event.realised
        self._open = [(event, record) for event, record in self._open if event.realised is None]

    def _fail(self, step: int, failure: Exception | str, what: str = "the round was skipped") -> None:
        if isinstance(failure, SurgeryError | str):
            record = rollback_record(failure, self.epoch, step)
        else:
            record = fault_record(f"{what}: {_said(failure)}", self.epoch, step)
        if self._speaks and record["text"] not in self._warned:  # what lasts is said once; records have it every time
            self._warned.add(record["text"])
            logger.warning("step %d: %s", step, record["text"])
        self._tell(record)

    def _tell(self, record: Record) -> None:
        self.history.append(record)
        for callback in self.callbacks if self._speaks else ():
            getattr(callback, f"on_{record['event']}")(record)


def _size(model: nn.Module) -> Record:
    return {"parameters": count_parameters(model)}


def _said(error: Exception) -> str:
    """What went wrong, in one line."""
    return f"{'' if isinstance(error, SennError) else f'{type(error).__name__}: '}{first_line(error)}"


def _plain(one: Held) -> dict[str, Any]:
    """A batch as nested plain containers and tensors."""
    inputs, targets, weights = one
    args, kwargs = batch.arguments(inputs)
    kind = "tensor" if isinstance(inputs, Tensor) else "tuple" if isinstance(inputs, tuple) else "mapping"
    kind = "arguments" if isinstance(inputs, Arguments) else kind
    return {"kind": kind, "args": [*args], "kwargs": kwargs, "targets": targets, "weights": weights}


def _unplain(saved: Mapping[str, Any], device: torch.device) -> Held:
    """The batch that `_plain` was given, on the model's device."""
    on = batch.map_tensors(lambda tensor: tensor.to(device), dict(saved))
    args, kwargs = tuple(on["args"]), dict(on["kwargs"])
    made: dict[str, Any] = {"tensor": args[0] if args else None, "tuple": args, "mapping": kwargs}
    inputs = Arguments(*args, **kwargs) if saved["kind"] == "arguments" else made[saved["kind"]]
    return inputs, on["targets"], on["weights"]
