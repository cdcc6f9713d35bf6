"""Errors and warnings of senn: one sentence each, which names what is wrong."""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = [
    "DivergenceError",
    "SennError",
    "SurgeryError",
    "UnsupportedError",
]


class SennError(ValueError):
    """Bad input or an impossible request; the message is one sentence for the user.

    Every error that a user can cause is one of these, and a `ValueError`. The command line prints the sentence to
    stderr and exits with code 2.

    >>> import senn
    >>> try:
    ...     senn.PricePolicy(kappa=-1)
    ... except senn.SennError as error:
    ...     print(error)
    kappa must be a number above 0, not -1
    """


class UnsupportedError(SennError):
    """A part of a model, loss or optimizer that senn doesn't understand; the message names it.

    >>> import senn, torch
    >>> senn.Grower(torch.nn.Linear(2, 1), loss=torch.nn.MSELoss(reduction="sum"))
    Traceback (most recent call last):
    senn.errors.UnsupportedError: MSELoss has reduction='sum', and a mean over samples is needed
    """


class DivergenceError(SennError):
    """A loss, gradient, step or output that is NaN or infinite; nothing was changed."""


class SurgeryError(SennError):
    """A change of the network that failed its verification; it was rolled back completely.

    >>> import senn
    >>> issubclass(senn.SurgeryError, senn.SennError)
    True
    """


EVERYDAY = (
    RuntimeError,
    TypeError,
    ValueError,
    IndexError,
    KeyError,
    AttributeError,
    NotImplementedError,
)
"""Errors that calls with wrong arguments raise."""


def warn(sentence: str) -> None:
    """Give a warning at the line of the caller's own code, the first frame outside of this package.

    Args:
        sentence: what the user should know.
    """
    import torch  # not above: errors are needed where torch isn't, in the terminal's help

    # This package, and what decorates its functions. `skip_file_prefixes` does the same from Python 3.12 on.
    inner = (str(Path(__file__).parent), str(Path(torch.__file__).parent), contextlib.__file__)
    frame, depth = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_code.co_filename.startswith(inner):
        frame, depth = frame.f_back, depth + 1
    warnings.warn(sentence, UserWarning, stacklevel=depth)


def in_one_line(error: BaseException) -> str:
    """Return an error's class and the first line of its text, without a full stop."""
    text = str(error).strip().split("\n")[0].rstrip(".")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Turn everyday errors of foreign code inside into a sentence.

    Running out of memory, numerical errors and interrupts pass through.

    Args:
        what: beginning of the sentence.

    Raises:
        SennError: foreign code raised an everyday error.
    """
    try:
        yield
    except EVERYDAY as error:
        if type(error) not in EVERYDAY:  # such as OutOfMemoryError, a RuntimeError
            raise
        raise SennError(f"{what}: {in_one_line(error)}") from error
