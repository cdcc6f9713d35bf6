"""How many threads compute the steps of a run: found by the work of a step, and given back after the run.

Threads that wait for the next small operation keep their cores busy. On a quiet machine that costs nothing; on one that
is shared, each operation waits for a thread that isn't running, and a run of small steps takes many times as long.

The number isn't found by timing, though time is what it is about: sums and eigenvalues differ in their last bits
between one thread and two, so a choice by the clock would give another network for the same seed. The work of a step is
the same in each run, and tells as well where more than one thread pays.

The clock has a say in one case, of which the record tells: steps of a large network have become markedly slower, and
one thread is faster by then. So the same seed gives the same network, bit for bit on the same machine, if `threads` is
given, if no step has work enough for several threads, or if torch was told to be deterministic; otherwise as long as no
change `by` "slower" is recorded.
"""

from __future__ import annotations

import math
import os
import statistics
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, distributed, nn

from senn._records import reading_state
from senn._validate import check, whole
from senn.errors import UnsupportedError
from senn.flops import forward_flops
from senn.graph.model_copy import copy_model
from senn.training.round_records import Record
from senn.training.train_config import TrainConfig

VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
"""Environment variables by which a caller sets the number of threads."""

# Time of a step with two threads over that with one, `benchmarks/threads.py --sizes`, on two cores: to 3 MFLOP 1.0 to
# 1.2, from 3 to 30 between 0.7 and 0.95, above 0.5 to 0.8 (0.94 with a million weights, which memory limits). Where two
# other processes use the cores it is 1.7 to 100, 1.7 to 5, and 1.1 to 1.7 (3.6); with more of them, 2 to 11 even there.
MANY_FLOPS = 32e6
"""Floating-point operations of a step's forward pass, per weight, from which more than one thread pays."""

# Sharing two cores with two others doubles the time of any step, whatever the threads.
SLOWER = 2.0
"""Factor by which steps are markedly slower than they were."""

# A smaller difference is within the noise of a few steps, and isn't worth other bits.
FASTER = 0.8
"""Share of the present time that one thread must stay below to be chosen."""

# The median of eight withstands three steps that a garbage collection or another process held up.
WINDOW = 8
"""Steps whose median is compared."""

_PAIRS = 3
"""Passes with each number of threads when both are timed."""


def threads_for(flops: float, weights: int, most: int) -> int:
    """Choose the number of threads by the work of a step.

    Args:
        flops: floating-point operations of its forward pass, all rows together.
        weights: number of weight matrices and kernels among which they are divided.
        most: number of threads for large operations.

    >>> threads_for(1e6, weights=3, most=8), threads_for(1e9, weights=3, most=8)
    (1, 8)
    """
    return most if flops >= MANY_FLOPS * max(weights, 1) else 1


def step_flops(model: nn.Module, row: Tensor, rows: int, recipe: TrainConfig) -> int:
    """Count the floating-point operations of the forward pass of one step, all rows together.

    Args:
        model: the network.
        row: (1, ...) inputs, as the network takes them.
        rows: training rows.
        recipe: says into how many steps an epoch is divided.
    """
    return forward_flops(model, row) * math.ceil(rows / recipe.plan(rows).batches)


def is_slower(recent: Sequence[float], usual: float) -> bool:
    """Return True if steps are markedly slower than they were.

    Args:
        recent: seconds of the last steps.
        usual: median of those after the number of threads was chosen.
    """
    return statistics.median(recent) > SLOWER * usual


def is_faster_alone(alone: Sequence[float], together: Sequence[float]) -> bool:
    """Return True if one thread is clearly faster than several.

    Args:
        alone: seconds of some passes with one thread.
        together: seconds of the same passes with several.
    """
    return statistics.median(alone) < FASTER * statistics.median(together)


def default_numbers() -> set[int]:
    """Return the numbers that torch may have by itself here: MKL takes all cores, OpenMP all their hardware threads."""
    try:
        allowed = os.sched_getaffinity(0)
    except AttributeError:  # macOS and Windows
        return {os.cpu_count() or 1}
    cores = {_core(number) for number in allowed}
    return {len(allowed), len(cores)}


def _core(number: int) -> str:
    """Return the hardware threads of one core, of which `number` is one."""
    path = Path(f"/sys/devices/system/cpu/cpu{number}/topology/thread_siblings_list")
    try:
        return path.read_text().strip()
    except OSError:
        return str(number)


def caller_setting() -> str | None:
    """Return by what the caller has set the number of threads, or None if it is torch's own.

    torch doesn't say whether `torch.set_num_threads` was called: a number that it can't have by itself was set. On a
    machine whose default isn't known, the number counts as set, and is left alone.
    """
    for variable in VARIABLES:
        if os.environ.get(variable):
            return f"{variable} is set"
    return None if torch.get_num_threads() in default_numbers() else "torch.set_num_threads"


def saved_number(state: Mapping[str, Any]) -> int:
    """Return the number of threads that computed the last step of a saved run, from `RunThreads.state_dict`."""
    with reading_state("this isn't the state of such a run"):
        return int(state["changes"][-1]["number"])


def resumed_number(state: Mapping[str, Any] | None, given: int | None) -> int:
    """Return the number of threads that will compute the next step of a saved run.

    Args:
        state: from `RunThreads.state_dict`; None for a run of a version that left threads alone.
        given: number that the user wanted for the run.
    """
    if given is not None:
        return given
    if state is None or caller_setting() is not None:
        return torch.get_num_threads()
    return saved_number(state)


class RunThreads(AbstractContextManager["RunThreads"]):
    """Number of threads of a run; as a context it gives back the former number, also after an exception.

    Args:
        given: number that the user wants; None to choose one.
        device: where the steps are computed.
        is_single: False for one of several processes, whose threads are left alone.

    Attributes:
        changes: JSON-able records, the present number last: `step` from which on it holds, `number`, `by` what it was
            chosen (`given`, `work`, `slower`, or `caller`, `processes`, `device` where it was left alone), `reason`.
    """

    def __init__(self, given: int | None, device: torch.device, *, is_single: bool = True) -> None:
        self.changes: list[Record] = []
        self._most = torch.get_num_threads()
        self._former: int | None = None
        self._given = given
        self._left_alone = None if given else _why_left_alone(device, is_single)
        self._times: deque[float] = deque(maxlen=WINDOW)
        self._usual: float | None = None

    def __enter__(self) -> Self:
        """Set the number that was given, or note why the present one stays."""
        if self._given is not None:
            self._set(self._given, 0, "given", "as the setting `threads` says")
        elif self._left_alone is not None:
            self._note(0, *self._left_alone)
        return self

    def __exit__(self, *_: object) -> None:
        """Give back the number from before."""
        if self._former is not None:
            torch.set_num_threads(self._former)
            self._former = None

    @property
    def is_open(self) -> bool:
        """True if the number follows the work of a step."""
        return not self.changes or self.changes[-1]["by"] == "work"

    def choose(self, count: Callable[[], float], model: nn.Module, step: int) -> None:
        """Choose by the work of a step; nothing changes where the number was left alone, given, or fell to one.

        Args:
            count: counts the floating-point operations of a step's forward pass, all rows together.
            model: the network of now.
            step: steps made.
        """
        if not self.is_open:
            return
        flops, weights = count(), sum(parameter.dim() > 1 for parameter in model.parameters())
        number = threads_for(flops, weights, self._most)
        if self.changes and number == self.changes[-1]["number"]:
            self._restart_clock()
            return
        size = f"{flops / max(weights, 1) / 1e6:.3g} MFLOP per weight"
        side = "at least" if number > 1 or flops >= MANY_FLOPS * max(weights, 1) else "less than"
        reason = f"the forward pass of a step has {size}, {side} {MANY_FLOPS / 1e6:g}"
        self._set(number, step, "work", reason)

    def notice(self, seconds: float, step: int, stand_in: Callable[[], Callable[[], None]]) -> None:
        """Note how long a step took, and look again at the threads if steps have become markedly slower.

        Where torch was told to be deterministic (`torch.use_deterministic_algorithms`), the clock has no say.

        Args:
            seconds: time of the step.
            step: steps made.
            stand_in: returns a pass like that of a step, which may be timed and touches nothing of the run.
        """
        if not self.is_open or not self.changes or self.changes[-1]["number"] == 1:
            return
        self._times.append(seconds)
        if len(self._times) < WINDOW or torch.are_deterministic_algorithms_enabled():
            return
        if self._usual is None:
            # The first window has the first pass of all, which sets things up.
            self._usual = statistics.median(self._times)
        elif is_slower(self._times, self._usual):
            self._look(step, stand_in)
            return
        else:
            return
        self._times.clear()

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs to compute with the same number of threads."""
        return {"changes": [dict(change) for change in self.changes]}

    def load_state_dict(self, state: Mapping[str, Any] | None, step: int) -> None:
        """Go on with the number of a saved run; a caller's setting of now stays as it is, and is noted.

        Args:
            state: from `state_dict`; None for a run of a version that left threads alone.
            step: steps made.
        """
        if state is None:
            if self.is_open:
                self._apply(self._most)
                self._note(step, "caller", "the run began with a version that left threads alone")
            return
        now, self.changes = self.changes, [dict(change) for change in state["changes"]]
        if self._left_alone is None:
            number = saved_number(state)
            check("threads", number, whole(low=1))
            self._apply(number)
        elif now[-1]["by"] != self.changes[-1]["by"] or now[-1]["number"] != saved_number(state):
            self.changes.append({**now[-1], "step": step})

    def _look(self, step: int, stand_in: Callable[[], Callable[[], None]]) -> None:
        """Time passes of a stand-in with one thread and with the present number, and keep the faster."""
        recent, number = statistics.median(self._times), self.changes[-1]["number"]
        self._times.clear()
        # If one thread isn't faster either, the slower steps are the usual ones from now on.
        self._usual = recent
        try:
            run = stand_in()
        except UnsupportedError:  # it can't be copied
            return
        alone, together = self._timed(run, number)
        if is_faster_alone(alone, together):
            times = f"{statistics.median(alone):.2g} s instead of {statistics.median(together):.2g}"
            self._set(1, step, "slower", f"steps became slower, and a pass takes {times}")

    def _timed(self, run: Callable[[], None], number: int) -> tuple[list[float], list[float]]:
        """Return the seconds of passes with one thread, and with `number`, in turn: load comes and goes."""
        seconds: dict[int, list[float]] = {1: [], number: []}
        try:
            for _ in range(_PAIRS):
                for threads in seconds:
                    torch.set_num_threads(threads)
                    run()  # threads that were asleep wake up
                    began = time.perf_counter()
                    run()
                    seconds[threads].append(time.perf_counter() - began)
        finally:
            torch.set_num_threads(number)
        return seconds[1], seconds[number]

    def _set(self, number: int, step: int, by: str, reason: str) -> None:
        self._apply(number)
        self._note(step, by, reason)

    def _apply(self, number: int) -> None:
        """Compute with a number of threads from now on."""
        if self._former is None:
            self._former = torch.get_num_threads()
        # Also where it is the number already: torch then stops MKL from taking fewer, as it does after any change.
        torch.set_num_threads(number)
        self._restart_clock()

    def _note(self, step: int, by: str, reason: str) -> None:
        number = torch.get_num_threads()
        self.changes.append({"step": step, "number": number, "by": by, "reason": reason})

    def _restart_clock(self) -> None:
        """Forget the times of other steps."""
        self._times.clear()
        self._usual = None


def _why_left_alone(device: torch.device, is_single: bool) -> tuple[str, str] | None:
    """Return by what, and why, the number of threads stays as it is; None if it may be chosen."""
    grouped = distributed.is_available() and distributed.is_initialized()
    if not is_single or grouped:
        return "processes", "left alone: several processes share the cores"
    if device.type != "cpu":
        return "device", f"left alone: steps are computed on {device.type}"
    setting = caller_setting()
    return None if setting is None else ("caller", f"left alone: {setting}")


def pass_of(
    model: nn.Module, loss: Callable[..., Tensor], batch: Sequence[Tensor]
) -> Callable[[], None]:
    """Return a forward and backward pass of a throw-away copy; it leaves random numbers, gradients and buffers alone.

    Args:
        model: the network, which is copied.
        loss: of outputs and the rest of a batch.
        batch: inputs, and what the loss takes.

    Raises:
        UnsupportedError: the network can't be copied.
    """
    stand_in = copy_model(model)

    def run() -> None:
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            loss(stand_in(batch[0]), *batch[1:]).backward()  # type: ignore[no-untyped-call]

    return run
