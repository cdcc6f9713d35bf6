"""Files and folders that are written whole, checked, and only then given their name."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from senn.errors import SennError


@contextmanager
def atomic_folder(path: str | Path, *, folder: bool, overwrite: bool) -> Iterator[Path]:
    """A place to write to, that takes the name of `path` in the end, or is gone if anything fails.

    Args:
        path: what it is to be called; folders above it are made.
        folder: whether it is a folder.
        overwrite: whether it may take the place of a file, or of a folder that an earlier export wrote.

    Raises:
        SennError: there is something already, or it can't be written.
    """
    final = Path(os.path.abspath(path))
    _check(path, final, folder, overwrite)
    draft = final.with_name(f".{final.name}.{os.getpid()}.partial")
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        if folder:
            draft.mkdir()
        yield draft
        _exchange(draft, final)
    except OSError as error:
        raise SennError(f"{str(path)!r} can't be written: {error.strerror or error}") from error
    finally:
        _remove(draft)


def _check(path: str | Path, final: Path, folder: bool, overwrite: bool) -> None:
    if not final.name:
        raise SennError(f"{str(path)!r} can't be written: it has no name")
    if not final.exists():
        return
    if final.is_dir() != folder:
        raise SennError(f"{str(path)!r} is a {'file' if folder else 'folder'} already; choose another name")
    if folder and not (final / MARK).is_file() and any(final.iterdir()):
        raise SennError(f"{str(path)!r} isn't empty and holds no export; choose another name")
    if not overwrite and (not folder or any(final.iterdir())):
        raise SennError(
            f"{str(path)!r} is there already; choose another name, or replace it (--overwrite, overwrite=True)"
        )


MARK = "net.py"
"""By this file a folder is known as an export."""


def _exchange(draft: Path, final: Path) -> None:
    """Rename; an old folder steps aside first and comes back if that fails."""
    if not final.is_dir():
        draft.replace(final)
        return
    aside = final.with_name(f".{final.name}.{os.getpid()}.old")
    final.replace(aside)
    try:
        draft.replace(final)
    except OSError:
        aside.replace(final)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _remove(draft: Path) -> None:
    with suppress(OSError):
        if draft.is_dir():
            shutil.rmtree(draft)
        else:
            draft.unlink(missing_ok=True)
