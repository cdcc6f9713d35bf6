"""Errors that senn raises: one clear sentence each, naming what is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = [
    "DivergenceError",
    "SennError",
    "SurgeryError",
    "UnsupportedError",
]


class SennError(ValueError):
    """Bad input or an impossible request; the message is one sentence for the user.

    A command-line face turns it into that sentence on stderr and exit code 2.
    """


class UnsupportedError(SennError):
    """Something in a model, loss or optimizer that senn does not understand, by name."""


class DivergenceError(SennError):
    """A loss, gradient, step or output is NaN or infinite; nothing was changed."""


class SurgeryError(SennError):
    """A change of the network failed its verification and was rolled back whole."""


EVERYDAY = (RuntimeError, TypeError, ValueError, IndexError, KeyError, AttributeError, NotImplementedError)
"""What calls with wrong arguments raise."""


def in_one_line(error: Exception) -> str:
    """Return an error's class and the first line of its text, without a full stop."""
    text = str(error).strip().split("\n")[0].rstrip(".")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Say what failed where a call of others' code inside does; memory, numerics and interrupts pass as they are.

    Args:
        what: the beginning of the sentence.

    Raises:
        SennError: from an everyday error inside.
    """
    try:
        yield
    except EVERYDAY as error:
        if type(error) not in EVERYDAY:  # such as OutOfMemoryError, a RuntimeError
            raise
        said = [type(error).__name__, *str(error).strip().splitlines()[:1]]
        raise SennError(f"{what}: {': '.join(said)}") from error
