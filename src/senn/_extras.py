"""Parts of senn that are distributions of their own, installed by an extra."""

from __future__ import annotations

import importlib
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
