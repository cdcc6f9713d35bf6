"""Read a run's folder; nothing in it is believed unless its checksum is right."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from senn import atomic_files
from senn.errors import SennError
from senn.events.run_schema import check_details, check_history, check_results
from senn.runs.fit_options import FitOptions
from senn.runs.record_names import current_record

RESULTS, HISTORY, FIGURE, REPORT = "results.json", "history.jsonl", "growth.png", "report.html"
UNFINISHED, RUN, STATE, NUMBERS = "unfinished", "run.json", "state.json", "state.safetensors"
FOLDS = "folds.json"
"""Scores of the folds of a cross-validation that are finished."""
TEST = "test.json"
"""What is kept of the test beside its scores: predictions to draw, the wrongest images, the baselines."""
FORMAT, CHECKPOINT, FOLDS_FORMAT = "senn-run", "senn-checkpoint", "senn-folds"
TEST_FORMAT = "senn-test"
VERSION, VERSIONS = 2, (1, 2)
"""Version of the files that are written, and all that are read."""

NAME = re.compile(r"checkpoint-(\d{3,9})")
"""Name of a checkpoint's folder once it is complete."""
LONGEST = 1 << 28
"""Upper limit of the bytes of a history, so that a damaged folder can't exhaust the memory."""
MOST_WEIGHTS = 1 << 40
"""Upper limit of the bytes of a network: 2^40 are more than any that is trained here."""


@dataclass(frozen=True, kw_only=True)
class SavedRun:
    """Content of a run's folder.

    Attributes:
        path: the folder.
        results: content of `results.json`; None as long as no run in the folder has ended.
        history: records of the run that `results` belongs to, or else of the unfinished one.
        unfinished: True if a run in the folder can be resumed. If `results` says `interrupted` it is the same run, else
            one that is to replace it.
        options: options of the unfinished run; None if there is none.
    """

    path: Path
    results: dict[str, Any] | None
    history: list[dict[str, Any]] = field(repr=False)
    unfinished: bool
    options: FitOptions | None = field(default=None, repr=False)


def read(path: str | Path) -> SavedRun:
    """Read a run's folder.

    Args:
        path: the folder.

    Returns:
        Its content.

    Raises:
        SennError: it holds no run, or one that is damaged or of another version.
    """
    path = Path(path)
    home, place = path / UNFINISHED, complete(path)
    has_results = os.path.lexists(place / RESULTS)
    # Checkpoints without run.json are a damaged run, which `read_about` refuses, and no empty folder.
    unfinished = os.path.lexists(home / RUN) or (home.is_dir() and bool(checkpoints(home)))
    if not has_results and not unfinished:
        raise SennError(f"{str(path)!r} holds no run (there is no {RESULTS})")
    about = read_about(home) if unfinished else {}
    if has_results:
        results = read_results(place)
        with open_intact(place, results, HISTORY, LONGEST) as file:
            history = _parse_history(file.read(), place / HISTORY, torn=False)
    else:
        results, history = None, _read_unfinished_history(home, about)
    options = read_options(about, home) if unfinished else None
    return SavedRun(
        path=path,
        results=results,
        history=history,
        unfinished=unfinished,
        options=options,
    )


@dataclass(frozen=True, kw_only=True)
class RunStart:
    """How an unfinished run began: with which hidden layers, and by version 0.1, which encoded otherwise, or not."""

    widths: tuple[int, ...] | None
    is_original: bool


def read_start(path: str | Path) -> RunStart | None:
    """Read how an unfinished run began.

    Args:
        path: folder of the run.

    Returns:
        Its start; None if the record is damaged: a checkpoint has the history, too.
    """
    home = Path(path) / UNFINISHED
    try:
        about = read_about(home)
        history = _read_unfinished_history(home, about)
    except SennError:
        return None
    versions = about.get("versions")
    own = versions.get("senn") if isinstance(versions, Mapping) else None
    widths = history[0].get("architecture") if history else None
    # bool is an int, and must not pass for a width.
    sound = isinstance(widths, list) and all(type(one) is int and one > 0 for one in widths)
    return RunStart(
        widths=tuple(widths) if sound and widths is not None else None,
        is_original=str(own).startswith("0.1."),
    )


def _read_unfinished_history(home: Path, about: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Read the history of an unfinished run, whose beginning the last checkpoint vouches for."""
    text = (
        atomic_files.read_limited(home / HISTORY, LONGEST)
        if os.path.lexists(home / HISTORY)
        else b""
    )
    newest = next(intact_checkpoints(home, about, []), None)
    if newest is not None and not _begins_as_noted(text, newest.get("history")):
        raise SennError(
            f"{str(home / HISTORY)!r} is damaged: it isn't the history that the run has written"
        )
    # A kill may have torn the last line; whatever came before it was flushed whole.
    records = _parse_history(text, home / HISTORY, torn=True)
    if any((record["event"] == "start") != (number == 0) for number, record in enumerate(records)):
        raise SennError(
            f"{str(home / HISTORY)!r} is damaged: it isn't one run's history from its start"
        )
    return fill_realized(records)


def _begins_as_noted(text: bytes, note: object) -> bool:
    """Return True if a history begins with the bytes that a checkpoint has noted."""
    if not isinstance(note, dict):
        return False
    # bool is an int, and must not pass for a size.
    size = note.get("bytes")
    if type(size) is not int or not 0 <= size <= len(text):
        return False
    return atomic_files.bytes_digest(text[:size]) == note.get("sha256")


def fill_realized(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Copy the decreases that a round measured into the records of the changes before it.

    A finished run's history has it there already; one written record by record can't.

    Returns:
        The same records, changed in place.
    """
    changes: list[dict[str, Any]] = []
    for record in history:
        if record["event"] == "growth":
            changes.append(record)
        elif record["event"] == "growth_round":
            # senn 0.1 had one figure for all
            alike = (
                [record["realized_decrease"]] * len(changes)
                if "realized_decrease" in record
                else []
            )
            for change, value in zip(
                changes, record.get("realized_decreases", alike), strict=False
            ):
                change["realized_decrease"] = value
            changes = []
    return history


def checkpoints(home: Path) -> dict[int, Path]:
    """Return the folders of an unfinished run's checkpoints, by number."""
    found = {entry: NAME.fullmatch(entry.name) for entry in home.iterdir()}
    return {int(match[1]): entry for entry, match in found.items() if match}


def intact_checkpoints(
    home: Path, about: Mapping[str, Any], reasons: list[str]
) -> Iterator[dict[str, Any]]:
    """Yield the documents of a run's intact checkpoints, the newest first.

    Args:
        home: folder of the unfinished run.
        about: content of its `run.json`.
        reasons: list to which a sentence is added for each checkpoint that isn't intact.

    Raises:
        SennError: a checkpoint belongs to another run.
    """
    for number, folder in sorted(checkpoints(home).items(), reverse=True):
        try:
            # A checkpoint repeats the history, so it may be several times as long.
            document = read_document(folder / STATE, CHECKPOINT, most=8 * LONGEST)
            # Somebody may have renamed the folders; the older state would be taken for the newer.
            if document.get("number") != number:
                raise SennError(f"{str(folder)!r} is damaged: it is another checkpoint")
        except SennError as error:
            reasons.append(str(error))
            continue
        # Not merely skipped: files of two runs in one folder are no accident of a kill.
        if document.get("run") != about["checksum"]:
            raise SennError(f"{str(folder)!r} and {RUN} belong to different runs")
        yield document


def complete(path: Path) -> Path:
    """Return where a finished run's files are: in its folder, or where a kill left them on their way there.

    Raises:
        SennError: what is unfinished there holds a link, or what is neither a file nor a folder.
    """
    refuse_links(path / UNFINISHED)
    # A kill while the files are copied leaves the folder a mixture of two runs.
    on_the_way = path / UNFINISHED / "finished"
    return on_the_way if (on_the_way / RESULTS).exists() else path


def refuse_links(home: Path) -> None:
    """Refuse an unfinished run with links and the like: senn makes none, and they lead to files of whoever resumes it.

    Args:
        home: folder of the unfinished run; it needn't exist.

    Raises:
        SennError: naming the first of them.
    """
    left = [home] if os.path.lexists(home) else []
    while left:
        path = left.pop()
        try:
            mode = os.lstat(path).st_mode
            if stat.S_ISDIR(mode):
                left += sorted(path.iterdir())
                continue
        except FileNotFoundError:  # the run is at work, and has removed it meanwhile
            continue
        if not stat.S_ISREG(mode):
            what = "a link" if stat.S_ISLNK(mode) else "neither a file nor a folder"
            raise SennError(f"{str(path)!r} is {what}, which no unfinished run holds")


def check(path: Path, names: Sequence[str]) -> None:
    """Compare files of a finished run with the checksums in its results.

    Args:
        path: folder of the run.
        names: names of the files.

    Raises:
        SennError: a file isn't the one that was written with the results.
    """
    results = read_results(path)
    for name in names:
        open_intact(path, results, name, MOST_WEIGHTS).close()


def read_results(place: Path) -> dict[str, Any]:
    """Read the `results.json` of a run, and check every field.

    Args:
        place: where a finished run's files are, by `complete`.

    Returns:
        Its content.

    Raises:
        SennError: it is missing, damaged, or not what `senn fit` writes.
    """
    results = read_document(place / RESULTS, FORMAT)
    check_results(results, repr(str(place / RESULTS)))
    return results


def read_test(path: str | Path) -> dict[str, Any] | None:
    """Read what a finished run's folder holds of its test beside the scores.

    Args:
        path: folder of the run.

    Returns:
        Its content, as `senn.events.run_schema.TestDetails` has it; None for a run without, as of an older version.

    Raises:
        SennError: it is damaged.
    """
    place = complete(Path(path))
    results = read_results(place) if (place / RESULTS).exists() else {}
    if TEST not in (results.get("files") or {}):
        return None
    with open_intact(place, results, TEST, atomic_files.MOST) as file:
        document = atomic_files.parse_checksummed_json(
            file.read(), place / TEST, TEST_FORMAT, VERSIONS
        )
    check_details(document, repr(str(place / TEST)))
    return document


def open_intact(folder: Path, results: Mapping[str, Any], name: str, most: int) -> BinaryIO:
    """Open a file that must have the checksum noted in its run's results.

    Args:
        folder: folder of the run.
        results: content of its `results.json`.
        name: name of the file.
        most: upper limit of its bytes.

    Returns:
        The open file.

    Raises:
        SennError: it is missing, too large, or another file.
    """
    files = results.get("files")
    note = files.get(name) if isinstance(files, dict) else None
    return atomic_files.verified(folder / name, note, most, RESULTS)


def read_about(home: Path) -> dict[str, Any]:
    """Read the `run.json` of an unfinished run: its options, versions and the checksum of its data."""
    about = read_document(home / RUN, FORMAT)
    read_options(about, home)  # refuse it now if it has none
    return about


def read_options(about: Mapping[str, Any], home: Path) -> FitOptions:
    """Read the options of an unfinished run; version 1 kept them as arguments of the command.

    Args:
        about: content of its `run.json`.
        home: its folder, for errors.

    Returns:
        The options.

    Raises:
        SennError: there are none, or they are damaged.
    """
    what = repr(str(home / RUN))
    if about["version"] > 1:
        return FitOptions.from_dict(about.get("options"), what)
    # Version 1, written by senn 0.1.
    arguments = about.get("arguments")
    if not isinstance(arguments, list) or not all(isinstance(one, str) for one in arguments):
        raise SennError(f"{what} is damaged: its arguments aren't a list of texts")
    return FitOptions.from_arguments(arguments, what)


def read_document(path: Path, kind: str, most: int = atomic_files.MOST) -> dict[str, Any]:
    """Read a checksummed document of a run, of this version or an older one.

    Args:
        path: the file.
        kind: its `format`.
        most: upper limit of its bytes.

    Returns:
        The document.

    Raises:
        SennError: it is missing, of another format or version, or was altered.
    """
    return atomic_files.parse_checksummed_json(
        atomic_files.read_limited(path, most), path, kind, VERSIONS
    )


def _parse_history(text: bytes, path: Path, *, torn: bool) -> list[dict[str, Any]]:
    """Parse a history, a JSON record per line; with `torn` the last line may be incomplete."""
    lines = text.splitlines()
    if torn and text and not text.endswith(b"\n"):
        # A kill in the middle of a write.
        lines.pop()
    try:
        records = [atomic_files.parse(line) for line in lines]
    except ValueError as error:
        raise SennError(
            f"{str(path)!r} is damaged: it doesn't hold a JSON record per line"
        ) from error
    if not all(isinstance(record, dict) for record in records):
        raise SennError(f"{str(path)!r} is damaged: it doesn't hold a record per line")
    current = [current_record(record) for record in records]
    check_history(current, repr(str(path)))
    return current
