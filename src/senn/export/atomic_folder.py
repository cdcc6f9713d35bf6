"""Atomic writes of exports: a file or folder is written whole, checked, and only then renamed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from senn.errors import SennError

MARK = "net.py"
"""The file by which a folder is recognized as an earlier export."""


@contextmanager
def atomic_folder(path: str | Path, *, folder: bool, overwrite: bool) -> Iterator[Path]:
    """Offer a temporary place to write to, which is renamed at the end, or removed if anything fails.

    Args:
        path: the final name; missing folders above it are created.
        folder: True to write a folder, False to write a file.
        overwrite: True if it may replace a file, or a folder that an earlier export wrote.

    Yields:
        The temporary path, next to the final one; a folder exists already.

    Raises:
        SennError: something is there already, or it can't be written.
    """
    final = Path(os.path.abspath(path))
    _check_final(path, final, folder, overwrite)
    # Next to the final name, since renaming across file systems would copy; with the process id, since another process
    # may export to the same name.
    draft = final.with_name(f".{final.name}.{os.getpid()}.partial")
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        if folder:
            draft.mkdir()
        yield draft
        _rename(draft, final)
    except OSError as error:
        raise SennError(f"{str(path)!r} can't be written: {error.strerror or error}") from error
    finally:
        _remove(draft)


def _check_final(
    path: str | Path,
    final: Path,
    folder: bool,
    overwrite: bool,
) -> None:
    """Refuse a name that is taken by something that must not be replaced: a user's own folder, above all."""
    shown = repr(str(path))
    if not final.name:
        raise SennError(f"{shown} can't be written: it has no name")
    if not final.exists():
        return
    if final.is_dir() != folder:
        raise SennError(
            f"{shown} is a {'file' if folder else 'folder'} already; choose another name"
        )
    if not folder and not final.is_file():
        raise SennError(f"{shown} is a device or a pipe, which an export can't replace")
    is_empty = folder and not any(final.iterdir())
    if is_empty:
        return
    if folder and not (final / MARK).is_file():
        raise SennError(f"{shown} isn't empty and holds no export; choose another name")
    if not overwrite:
        raise SennError(
            f"{shown} is there already; choose another name, or replace it (--overwrite, overwrite=True)"
        )


def _rename(draft: Path, final: Path) -> None:
    """Give a draft its name; an old folder steps aside first, and comes back if that fails."""
    if not final.is_dir():
        draft.replace(final)
        return
    # No system call replaces a folder that isn't empty.
    aside = final.with_name(f".{final.name}.{os.getpid()}.old")
    final.replace(aside)
    try:
        draft.replace(final)
    except OSError:
        aside.replace(final)
        raise
    # The export is in place by now: leftovers of the old one are no failure.
    shutil.rmtree(aside, ignore_errors=True)


def _remove(draft: Path) -> None:
    with suppress(OSError):
        if draft.is_dir():
            shutil.rmtree(draft)
        else:
            draft.unlink(missing_ok=True)
