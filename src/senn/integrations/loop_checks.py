"""Checks of the loops of other libraries, before a model grows in them."""

from __future__ import annotations

from collections.abc import Iterable

from senn.errors import SennError, UnsupportedError


def refuse_strategy(name: str) -> None:
    """Refuse a loop that takes a model apart, so that its parameters can't change size.

    Raises:
        UnsupportedError: always.
    """
    raise UnsupportedError(
        f"a network can't grow under {name}: train it in one process or under DistributedDataParallel"
    )


def check_single(callbacks: Iterable[object], kind: type) -> None:
    """Check that a loop has no more than one callback that grows its model.

    Args:
        callbacks: all callbacks of the loop.
        kind: class of those that grow a model.

    Raises:
        SennError: there are several.
    """
    if sum(isinstance(callback, kind) for callback in callbacks) > 1:
        raise SennError(
            "one loop takes one SelfExpansion, and was given several: leave all but one out"
        )
