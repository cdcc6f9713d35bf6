"""An output folder that is either written whole or left as it was."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import suppress
from math import isfinite
from pathlib import Path
from types import TracebackType
from typing import Any

from senn.errors import SennError

RESULTS, HISTORY, FIGURE = "results.json", "history.jsonl", "growth.png"


class OutputFolder:
    """Collects files beside their destination and moves them there at the end.

    Used as a context: `publish` moves the files; leaving without it removes every trace.

    Args:
        path: the folder to be.
        overwrite: whether another run there may be replaced.

    Raises:
        SennError: if the folder can't be written, or holds another run (or anything else).
    """

    def __init__(self, path: Path, overwrite: bool) -> None:
        self.path = path
        place = Path(os.path.abspath(path))
        self.draft = place.with_name(f".{place.name}.{os.getpid()}.partial")
        self._made: list[Path] = []
        self._refuse_foreign(overwrite)
        try:
            self._made = [parent for parent in place.parents if not parent.exists()]
            self.draft.mkdir(parents=True)
            if path.exists() and not os.access(path, os.W_OK):
                raise PermissionError(13, "Permission denied")
        except OSError as error:
            self._clear()
            raise _unwritable(path, error) from error

    def _refuse_foreign(self, overwrite: bool) -> None:
        try:
            if self.path.exists() and not self.path.is_dir():
                raise SennError(f"{str(self.path)!r} is a file, not a folder")
            found = {entry.name for entry in self.path.iterdir()} if self.path.exists() else set()
        except OSError as error:
            raise _unwritable(self.path, error) from error
        if not found:
            return
        if RESULTS not in found:
            raise SennError(f"{str(self.path)!r} isn't empty and holds no run; choose another folder with --out")
        if not overwrite:
            raise SennError(f"{str(self.path)!r} holds a run already; choose another --out, or replace it: --overwrite")

    def __enter__(self) -> OutputFolder:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._clear()
        if isinstance(error, OSError):
            raise _unwritable(self.path, error) from error

    def _clear(self) -> None:
        shutil.rmtree(self.draft, ignore_errors=True)
        for parent in self._made:  # only those that are empty again
            with suppress(OSError):
                parent.rmdir()

    def write_json(self, name: str, document: Any) -> None:
        """A JSON document."""
        text = json.dumps(plain(document), indent=1, ensure_ascii=False, allow_nan=False)
        (self.draft / name).write_text(text + "\n", encoding="utf-8")

    def write_lines(self, name: str, records: list[Any]) -> None:
        """A JSON document per line."""
        lines = (json.dumps(plain(record), ensure_ascii=False, allow_nan=False) + "\n" for record in records)
        (self.draft / name).write_text("".join(lines), encoding="utf-8")

    def publish(self) -> None:
        """Give the files their place; the results, by which a run is known, come last."""
        self.path.mkdir(exist_ok=True)
        for file in sorted(self.draft.iterdir(), key=lambda file: file.name == RESULTS):
            file.replace(self.path / file.name)


def plain(value: Any) -> Any:
    """The value with null for numbers that JSON doesn't have (NaN, infinity)."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not isfinite(value) else value


def _unwritable(path: Path, error: OSError) -> SennError:
    return SennError(f"{str(path)!r} can't be written: {error.strerror or error}")


def read_run(path: Path) -> dict[str, Any]:
    """The results of a run.

    Raises:
        SennError: if the folder holds none that is intact.
    """
    try:
        document = json.loads((path / RESULTS).read_bytes())
    except OSError as error:
        raise SennError(f"{str(path)!r} holds no run ({RESULTS}: {error.strerror or error})") from error
    except (ValueError, RecursionError) as error:
        raise SennError(f"{str(path / RESULTS)!r} is damaged: it isn't JSON") from error
    if not isinstance(document, dict):
        raise SennError(f"{str(path / RESULTS)!r} is damaged: it isn't a JSON object")
    return document
