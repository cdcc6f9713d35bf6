"""What an extra installs: parts of senn that are distributions of their own, and packages of others."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from senn.errors import SennError


def reproduce_module(name: str, user: str) -> ModuleType:
    """Import a module of the package `senn_reproduce`: the paper's experiments and the public image sets.

    Args:
        name: the module's name inside the package.
        user: the command or option that needs it; the error's sentence begins with it.

    Returns:
        The imported module.

    Raises:
        SennError: the package isn't installed.
    """
    try:
        return importlib.import_module(f"senn_reproduce.{name}")
    except ModuleNotFoundError as error:
        if error.name != "senn_reproduce":
            raise
        raise SennError(
            f"{user} needs the package 'senn-reproduce', which isn't installed: pip install 'senn[reproduce]', "
            "or in a checkout pip install -e ./reproduce"
        ) from error


@contextmanager
def importing(user: str, extra: str) -> Iterator[None]:
    """Context of imports from packages that an extra installs.

    Args:
        user: what needs them; the error's sentence begins with it.
        extra: name of the extra.

    Raises:
        SennError: a package isn't installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package == "senn":
            raise
        raise SennError(
            f"{user} needs the package {package!r}, which isn't installed: pip install 'senn[{extra}]'"
        ) from error
