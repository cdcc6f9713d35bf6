"""Ctrl-C, SIGTERM and their like, which end a run between two steps if a step is short enough.

Python runs a signal's handler between two bytecodes of the main thread, in the middle of a step of training or of a
growth round. An exception there would leave a model half-changed, so the handler only sets a flag, which training reads
after each step. A step or a round may take minutes, though: an alarm then interrupts it, and the run goes on later from
its last checkpoint. Several processes interrupt it together, when they meet.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:  # it imports PyTorch
    from senn.collectives import Communicator

SIGALRM = getattr(signal, "SIGALRM", None)
ENDING = ("SIGINT", "SIGTERM", "SIGHUP", "SIGXCPU")
"""Signals that ask a run to end: of a user, a system, a terminal that is closed, a limit of computing time."""
GRACE_SECONDS = 0.7
"""Seconds that a step may go on after a signal.

Half of it would interrupt steps that end by themselves; twice would leave no time to write the results within two
seconds, after which people press Ctrl-C again.
"""
T = TypeVar("T")
_last: int | None = None


def last_signal() -> int | None:
    """Return the number of the last signal that asked this command to end; None for none."""
    return _last


@contextmanager
def noted_interrupts() -> Iterator[None]:
    """Context that notes Ctrl-C, which raises KeyboardInterrupt as ever; until then `last_signal` is None.

    An exception in the middle of an import can be swallowed or replaced by another: whatever fails after it is then no
    fault to show a traceback of.
    """
    global _last  # signals are of the process, not of an object
    _last, former = None, signal.getsignal(signal.SIGINT)

    def on_interrupt(number: int, frame: FrameType | None) -> None:
        global _last
        _last = number
        signal.default_int_handler(number, frame)

    # Not where a shell has it ignored, an embedding program has a handler, or a thread may not set one.
    is_ours = former is signal.default_int_handler
    is_ours = is_ours and threading.current_thread() is threading.main_thread()
    if is_ours:
        signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield
    finally:
        if is_ours:
            signal.signal(signal.SIGINT, former)


# A KeyboardInterrupt, so that no `except Exception` on its way swallows it.
class Interrupted(KeyboardInterrupt):
    """Raised in the main thread when a signal asks the process to end.

    Attributes:
        code: exit code of the process, 128 plus the number of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        self.code = 128 + number


# A BaseException, since the work may catch Exception and go on.
class _TooLate(BaseException):
    """Raised inside work whose time is up."""


class Signals:
    """Handle the signals in `ENDING`, as a context: the first one raises `Interrupted`, later ones do nothing.

    Inside `between_steps` the first one only sets `stopping`; after `GRACE_SECONDS`, `Interrupted` follows, or
    KeyboardInterrupt where several processes meet next.

    Attributes:
        number: number of the signal that came; None if none has.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._former: dict[int, Any] = {}
        self._came = 0.0
        self._between_steps = self._deferred = self._over = self._limited = False
        self._meets = self._expired = False

    def __enter__(self) -> Signals:
        # Only the main thread may set handlers; elsewhere, as in a notebook's thread, nothing is caught.
        if threading.current_thread() is threading.main_thread():
            for name in ENDING:
                number = getattr(signal, name, None)  # Windows has two of them
                if number is None:
                    continue
                # nohup: the run is to outlive its terminal
                if name == "SIGHUP" and signal.getsignal(number) is signal.SIG_IGN:
                    continue
                self._former[number] = signal.signal(number, self._on_signal)
            if SIGALRM is not None:
                self._former[SIGALRM] = signal.signal(SIGALRM, self._on_alarm)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        # Disarmed first: under SIGALRM's default handler a late alarm would kill the process.
        self._arm(0)
        for number, handler in self._former.items():
            signal.signal(number, handler)

    @property
    def stopping(self) -> bool:
        """True once a stop signal has arrived."""
        return self.number is not None

    @property
    def code(self) -> int:
        """Exit code of the process after a signal."""
        # The shell's convention. Without a signal of its own a process was ended by another rank's.
        return 128 + (self.number or signal.SIGINT)

    def ignore_further(self) -> None:
        """Ignore further signals; the remaining work is short."""
        self._over = True
        self._arm(0)

    def run_interruptible(self, seconds: float, work: Callable[[], T], otherwise: T) -> T:
        """Do some work, but give it up if it takes too long after a signal.

        Args:
            seconds: time since the signal after which the work is given up; without a signal there is no limit.
            work: the work.
            otherwise: returned in its place.

        Returns:
            The work's result, or `otherwise`.
        """
        # Measured from the signal, since the work may begin long after it.
        left = self._came + seconds - time.monotonic()
        if not self.stopping:
            return work()
        if left <= 0:
            return otherwise
        self._limited, self._expired = True, False
        try:
            self._arm(left)
            return work()
        except BaseException:
            # Of another class too: where it ends the initialization of a module in C, it becomes an ImportError.
            if self._expired:
                return otherwise
            raise
        finally:
            self._limited = False
            self._arm(0)

    @contextmanager
    def between_steps(self, communicator: Communicator) -> Iterator[None]:
        """Context of work that reads `stopping` after each step and ends by itself.

        Args:
            communicator: the processes that do the work together.
        """
        self._between_steps, self._meets = True, not communicator.is_single
        communicator.interrupt_when(self._is_overdue)
        try:
            yield
        finally:
            self._between_steps = self._meets = False

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Context of work that must not be interrupted, such as writing a checkpoint."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        # People press Ctrl-C twice, and a terminal sends it to every process of a group.
        if self.stopping or self._over:
            return
        global _last
        self.number, self._came = number, time.monotonic()
        _last = number
        # Without SIGALRM (Windows) nothing could interrupt a long step later: interrupt at once.
        if not self._between_steps or SIGALRM is None:
            raise Interrupted(number)
        if not self._meets:
            self._arm(GRACE_SECONDS)

    def _is_overdue(self) -> bool:
        """Return True once several processes' step has gone on for too long after a signal."""
        is_late = self.stopping and time.monotonic() - self._came > GRACE_SECONDS
        return is_late and self._meets and not self._over

    def _on_alarm(self, number: int, frame: FrameType | None) -> None:
        # Raised rather than returned: nothing else leaves the middle of somebody else's code.
        if self._limited:
            self._expired = True
            raise _TooLate
        if (
            self.number is not None
            and self._between_steps
            and not self._deferred
            and not self._over
        ):
            self._arm(0)
            raise Interrupted(self.number)

    def _arm(self, seconds: float) -> None:
        """Arm the alarm, which re-fires until the main thread can be interrupted; 0 disarms it."""
        if SIGALRM in self._former:
            # One shot could hit a deferred section and be lost, so it repeats every tenth of a second.
            signal.setitimer(signal.ITIMER_REAL, seconds, 0.1 if seconds else 0.0)
