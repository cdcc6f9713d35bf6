"""What a run's folder holds, believed only if it is intact."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from senn import atomic_files
from senn.errors import SennError
from senn.runs.fit_options import FitOptions
from senn.runs.record_names import current_record

RESULTS, HISTORY, FIGURE, REPORT = "results.json", "history.jsonl", "growth.png", "report.html"
UNFINISHED, RUN, STATE, NUMBERS = "unfinished", "run.json", "state.json", "state.safetensors"
FORMAT, CHECKPOINT = "senn-run", "senn-checkpoint"
VERSION, VERSIONS = 2, (1, 2)
"""Version of the files that are written, and all that are read."""

NAME = re.compile(r"checkpoint-(\d{3,9})")
"""Of a checkpoint that is complete."""
LONGEST = 1 << 28
"""Bytes of a history at most."""


@dataclass(frozen=True)
class SavedRun:
    """What a run's folder holds.

    Attributes:
        path: the folder.
        results: the content of `results.json`; None while no run there has come to an end.
        history: records of the run that `results` is of, or else of the unfinished one.
        unfinished: a run there can be gone on with. Beside results that are `interrupted` it is the same run, else one
            that would replace them.
        options: of an unfinished run; None for one that is complete.
    """

    path: Path
    results: dict[str, Any] | None
    history: list[dict[str, Any]] = field(repr=False)
    unfinished: bool
    options: FitOptions | None = field(default=None, repr=False)


def read(path: str | Path) -> SavedRun:
    """What a run's folder holds.

    Raises:
        SennError: it holds no run, or one that is damaged or of another version.
    """
    path = Path(path)
    home, place = path / UNFINISHED, complete(path)
    goes_on = os.path.lexists(home / RUN) or (home.is_dir() and bool(checkpoints(home)))
    if not os.path.lexists(place / RESULTS) and not goes_on:
        raise SennError(f"{str(path)!r} holds no run (there is no {RESULTS})")
    about = about_of(home) if goes_on else {}
    if os.path.lexists(place / RESULTS):
        results = opened(place / RESULTS, FORMAT)
        history = _records(intact(place, results, HISTORY, LONGEST), place / HISTORY, torn=False)
    else:
        results, history = None, _history_so_far(home, about)
    options = options_of(about, home) if goes_on else None
    return SavedRun(path, results, history, goes_on, options)


def _history_so_far(home: Path, about: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The history of an unfinished run, of which the last checkpoint tells how it begins."""
    text = atomic_files.read_limited(home / HISTORY, LONGEST) if os.path.lexists(home / HISTORY) else b""
    for document in documents(home, about, []):
        told = document.get("history")
        size = told.get("bytes") if isinstance(told, dict) else None
        is_told = isinstance(told, dict) and type(size) is int and 0 <= size <= len(text)
        if told is None or not is_told or atomic_files.bytes_digest(text[:size]) != told["sha256"]:
            raise SennError(f"{str(home / HISTORY)!r} is damaged: it isn't the history that the run has written")
        break
    records = _records(text, home / HISTORY, torn=True)
    if any((record["event"] == "start") != (number == 0) for number, record in enumerate(records)):
        raise SennError(f"{str(home / HISTORY)!r} is damaged: it isn't one run's history from its start")
    return realized(records)


def realized(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A history as it was written down record by record, with what came of each change in the change's record, too."""
    changes: list[dict[str, Any]] = []
    for record in history:
        if record["event"] == "growth":
            changes.append(record)
        elif record["event"] == "growth_round":
            for change in changes:
                change["realized_decrease"] = record.get("realized_decrease", change.get("realized_decrease"))
            changes = []
    return history


def checkpoints(home: Path) -> dict[int, Path]:
    """Those of an unfinished run, by number."""
    found = {entry: NAME.fullmatch(entry.name) for entry in home.iterdir()}
    return {int(match[1]): entry for entry, match in found.items() if match}


def documents(home: Path, about: Mapping[str, Any], reasons: list[str]) -> Iterator[dict[str, Any]]:
    """The intact documents of a run's checkpoints, the newest first; why others aren't goes into the list.

    Raises:
        SennError: one is of another run.
    """
    for number, folder in sorted(checkpoints(home).items(), reverse=True):
        try:
            document = opened(folder / STATE, CHECKPOINT, most=8 * LONGEST)
            if document.get("number") != number:
                raise SennError(f"{str(folder)!r} is damaged: it is another checkpoint")
        except SennError as error:
            reasons.append(str(error))
            continue
        if document.get("run") != about["checksum"]:
            raise SennError(f"{str(folder)!r} and {RUN} are not of one run")
        yield document


def complete(path: Path) -> Path:
    """Where the files of a finished run lie: in its folder, or where a kill left them on their way there."""
    on_the_way = path / UNFINISHED / "finished"
    return on_the_way if (on_the_way / RESULTS).exists() else path


def check(path: Path, names: Sequence[str]) -> None:
    """Hold some files of a finished run against its results.

    Raises:
        SennError: one isn't what was written with them.
    """
    results = opened(path / RESULTS, FORMAT)
    for name in names:
        intact(path, results, name, 1 << 40)


def intact(folder: Path, results: Mapping[str, Any], name: str, most: int) -> bytes:
    """A file's bytes, which must be those that its run's results tell of."""
    files = results.get("files")
    return atomic_files.verify_file(folder / name, files.get(name) if isinstance(files, dict) else None, most, RESULTS)


def about_of(home: Path) -> dict[str, Any]:
    """How an unfinished run was begun."""
    about = opened(home / RUN, FORMAT)
    options_of(about, home)
    return about


def options_of(about: Mapping[str, Any], home: Path) -> FitOptions:
    """Options of an unfinished run; version 1 kept them as arguments of the command.

    Raises:
        SennError: there are none.
    """
    what = repr(str(home / RUN))
    if about["version"] > 1:
        return FitOptions.from_dict(about.get("options"), what)
    arguments = about.get("arguments")
    if not isinstance(arguments, list) or not all(isinstance(one, str) for one in arguments):
        raise SennError(f"{what} is damaged: its arguments are none")
    return FitOptions.from_arguments(arguments, what)


def opened(path: Path, kind: str, most: int = atomic_files.MOST) -> dict[str, Any]:
    """Read a document of a run, of this version or an older one.

    Raises:
        SennError: it isn't there, is of another format or version, or was altered.
    """
    return atomic_files.parse_checksummed_json(atomic_files.read_limited(path, most), path, kind, VERSIONS)


def _records(text: bytes, path: Path, torn: bool) -> list[dict[str, Any]]:
    """A history's records; with `torn` the last line may be half of one."""
    lines = text.splitlines()
    if torn and text and not text.endswith(b"\n"):
        lines.pop()
    try:
        records = [atomic_files.parse(line) for line in lines]
    except ValueError as error:
        raise SennError(f"{str(path)!r} is damaged: it doesn't hold a JSON record per line") from error
    if not all(isinstance(record, dict) and isinstance(record.get("event"), str) for record in records):
        raise SennError(f"{str(path)!r} is damaged: it doesn't hold a record per line")
    return [current_record(record) for record in records]
