"""What reaches the terminal: text of foreign files is shown rather than obeyed, and a reader may go away.

Names of columns, classes and files come from data that somebody else may have made. A terminal obeys control characters
among them (it clears its screen, takes another title, types for its user), so they are written as escapes. A line that
can't be written is an error of commands that only print; it ends no training.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

from senn._text import printable


class GuardedStream(io.TextIOBase):
    """Standard output or error, with control characters as escapes.

    Args:
        stream: where to.
        name: of the stream, for `on_failure`.

    Attributes:
        stream: the stream itself, for what draws on the terminal and for data that another program reads.
        on_failure: called with the name and the error if the stream takes no more, once; what is written from then on
            goes nowhere. None raises the error.
    """

    def __init__(self, stream: TextIO, name: str) -> None:
        self.stream, self.name = stream, name
        self.on_failure: Callable[[str, OSError], None] | None = None
        self.failed = False

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """Encoding of the stream."""
        return self.stream.encoding

    @property
    def unescaped(self) -> GuardedStream:
        """The same stream for rich, which writes control characters of its own."""
        return _UnescapedStream(self)

    def writable(self) -> bool:
        """Return True."""
        return True

    def isatty(self) -> bool:
        """Return True for a terminal."""
        return not self.failed and self.stream.isatty()

    def fileno(self) -> int:
        """Return the number of the file behind it."""
        return self.stream.fileno()

    def write(self, text: str) -> int:
        """Write text, with escapes for control characters."""
        return self.write_unchanged(printable(text))

    def write_unchanged(self, text: str) -> int:
        """Write text as it is."""
        self._guard(lambda: self.stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Flush the stream."""
        self._guard(self.stream.flush)

    def _guard(self, work: Callable[[], Any]) -> None:
        if self.failed:
            return
        try:
            work()
        except OSError as error:
            if self.on_failure is None:
                raise
            self.mute()
            self.on_failure(self.name, error)

    def mute(self) -> None:
        """Send everything nowhere: what is still buffered would fail again at the end of the process."""
        self.failed = True
        # under pytest or in a notebook there is no file behind it
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())


class _UnescapedStream(GuardedStream):
    """A stream of which rich draws lines and bars: no escapes, and failures are those of the other."""

    def __init__(self, other: GuardedStream) -> None:
        super().__init__(other.stream, other.name)
        self.other = other

    def isatty(self) -> bool:
        """Return True for a terminal."""
        return self.other.isatty()

    def write(self, text: str) -> int:
        """Write text as it is."""
        return self.other.write_unchanged(text)

    def flush(self) -> None:
        """Flush the stream."""
        self.other.flush()


@contextmanager
def guarded_streams() -> Iterator[None]:
    """Context in which standard output and error are `GuardedStream`s that can write any text."""
    _open_closed_descriptors()
    former = sys.stdout, sys.stderr
    for stream in former:
        # Names needn't be valid in the encoding of the terminal. What a surrogate stands for would reach it as a byte.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    sys.stdout, sys.stderr = (
        stream if isinstance(stream, GuardedStream) else GuardedStream(stream, name)
        for stream, name in zip(former, ("standard output", "standard error"), strict=True)
    )
    try:
        yield
    finally:
        sys.stdout, sys.stderr = former


def _open_closed_descriptors() -> None:
    """Open what the caller has closed: the next file would get its number, and what is printed would land in there."""
    if sys.stdout is None or sys.stderr is None:
        for number in (0, 1, 2):
            try:
                os.fstat(number)
            except OSError:
                os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
        sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
        sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115


@contextmanager
def outliving_readers() -> Iterator[None]:
    """Context of work that goes on when nobody can read what it prints; one sentence on standard error says so."""
    streams = [one for one in (sys.stdout, sys.stderr) if isinstance(one, GuardedStream)]

    def tell(name: str, error: OSError) -> None:
        why = error.strerror or error
        print(f"senn: {name} takes no more ({why}), so the run goes on in silence", file=sys.stderr)

    for stream in streams:
        stream.on_failure = tell
    try:
        yield
        for stream in streams:
            stream.flush()
    finally:
        for stream in streams:
            stream.on_failure = None


def console(*, quiet: bool = False) -> Any:
    """Return a console of rich on standard output, whose lines may hold colors.

    Args:
        quiet: print nothing.
    """
    from rich.console import Console

    class PlainConsole(Console):
        def show_cursor(self, show: bool = True) -> bool:
            """Leave the cursor: after Ctrl-Z or a kill the terminal would stay without one."""
            return False

        def on_broken_pipe(self) -> None:
            """Raise the error, which rich would make an exit without a word."""
            raise

    stream: Any = sys.stdout.unescaped if isinstance(sys.stdout, GuardedStream) else sys.stdout
    # highlight=False: rich would color numbers, also in the names of columns and files.
    return PlainConsole(file=stream, quiet=quiet, highlight=False)


def write_data(text: str) -> None:
    """Write to standard output what another program may read: unchanged, unless a terminal shows it."""
    stream = sys.stdout
    if isinstance(stream, GuardedStream) and getattr(stream.stream, "name", "") == os.devnull:
        # The caller has closed standard output: words may go nowhere then, but not data.
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    if isinstance(stream, GuardedStream) and not stream.isatty():
        stream.write_unchanged(text)
    else:
        stream.write(text)
