"""Ctrl-C and SIGTERM: heard once, between two steps if these are short."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, TypeVar

SIGALRM = getattr(signal, "SIGALRM", None)
GRACE_SECONDS = 0.7
"""Seconds that what is under way may take to come to an end by itself."""
T = TypeVar("T")


class Interrupted(KeyboardInterrupt):
    """Somebody wants the process to end.

    Attributes:
        code: to end it with.
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        self.code = 128 + number


class _TooLate(BaseException):
    """Work is given up."""


class Signals:
    """Listens to SIGINT and SIGTERM, as a context: the first one raises `Interrupted`, later ones do nothing.

    Within `between_steps` it sets `stopping` first, and raises only if nobody has looked at that for `PATIENCE`.

    Attributes:
        number: of the signal that came; None so far.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._former: dict[int, Any] = {}
        self._came = 0.0
        self._patient = self._busy = self._over = self._limited = False

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._former[number] = signal.signal(number, self._hear)
            if SIGALRM is not None:
                self._former[SIGALRM] = signal.signal(SIGALRM, self._alarm)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._arm(0)
        for number, handler in self._former.items():
            signal.signal(number, handler)

    @property
    def stopping(self) -> bool:
        """Whether the process is to end."""
        return self.number is not None

    @property
    def code(self) -> int:
        """To end it with."""
        return 128 + (self.number or signal.SIGINT)

    def ignore_further(self) -> None:
        """From now on nothing is interrupted: what is left takes a moment only."""
        self._over = True
        self._arm(0)

    def run_interruptible(self, seconds: float, work: Callable[[], T], otherwise: T) -> T:
        """What some work gives, or something else where it isn't done so many seconds after the signal that came.

        Without a signal it has all the time.
        """
        left = self._came + seconds - time.monotonic()
        if not self.stopping:
            return work()
        try:
            if left <= 0:
                return otherwise
            self._limited = True
            self._arm(left)
            return work()
        except _TooLate:
            return otherwise
        finally:
            self._limited = False
            self._arm(0)

    @contextmanager
    def between_steps(self) -> Iterator[None]:
        """What looks at `stopping` now and then."""
        self._patient = True
        try:
            yield
        finally:
            self._patient = False

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """What isn't to be interrupted at all."""
        self._busy = True
        try:
            yield
        finally:
            self._busy = False

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if self.stopping or self._over:
            return
        self.number, self._came = number, time.monotonic()
        if not self._patient or SIGALRM is None:
            raise Interrupted(number)
        self._arm(GRACE_SECONDS)

    def _alarm(self, number: int, frame: FrameType | None) -> None:
        if self._limited:
            raise _TooLate
        if self.number is not None and self._patient and not self._busy and not self._over:
            self._arm(0)
            raise Interrupted(self.number)

    def _arm(self, seconds: float) -> None:
        """Ring in so many seconds, and then again and again: it may be that nobody can be interrupted just then."""
        if SIGALRM in self._former:
            signal.setitimer(signal.ITIMER_REAL, seconds, 0.1 if seconds else 0.0)
