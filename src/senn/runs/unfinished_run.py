"""Write what an unfinished run needs to be resumed: its options, its history so far, and its checkpoints."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from json import dumps
from pathlib import Path
from typing import Any, BinaryIO

from senn import atomic_files
from senn.errors import SennError
from senn.events.run_schema import check_folds
from senn.runs.fit_options import FitOptions
from senn.runs.saved_run import (
    CHECKPOINT,
    FOLDS,
    FOLDS_FORMAT,
    FORMAT,
    HISTORY,
    MOST_WEIGHTS,
    NUMBERS,
    RUN,
    STATE,
    VERSION,
    checkpoints,
    intact_checkpoints,
    read_about,
    read_document,
)

_KEPT = 2
"""Checkpoints that are kept: the newest, and one in case that it is damaged."""


class UnfinishedRun:
    """Folder `unfinished` of a run that goes on.

    Args:
        home: the folder.
        has_checkpoint: True for a run that is resumed.

    Attributes:
        home: the folder.
        about: content of `run.json`.
        has_checkpoint: True if the run can be resumed from a checkpoint, so that the folder must stay.
    """

    def __init__(self, home: Path, has_checkpoint: bool) -> None:
        self.home = home
        self.about: dict[str, Any] = {}
        self.has_checkpoint = has_checkpoint
        self._written = hashlib.sha256(), 0  # of the history as far as it is written

    def begin(self, options: FitOptions, **about: Any) -> None:
        """Write `run.json`, from which the run can be resumed.

        Args:
            options: options of the run.
            **about: what else is compared when it is resumed, JSON-able.
        """
        document = {"format": FORMAT, "version": VERSION, "options": options.to_dict(), **about}
        atomic_files.write(self.home / RUN, atomic_files.to_checksummed_json(document))
        self.about = read_about(self.home)

    def restart(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Replace the history by that of the state from which the run is resumed."""
        text = history_lines(history)
        self._written = hashlib.sha256(text), len(text)
        atomic_files.write(self.home / HISTORY, text)

    def record(self, record: Mapping[str, Any]) -> None:
        """Append a record to the history, so that others can watch the run."""
        text, path = history_lines([record]), self.home / HISTORY
        try:
            with path.open("ab") as file:
                file.write(text)
        except OSError:
            with suppress(OSError):  # a torn line must not stand before others
                os.truncate(path, self._written[1])
            raise
        self._written[0].update(text)
        self._written = self._written[0], self._written[1] + len(text)

    def save(self, state: Mapping[str, Any], numbers: bytes) -> None:
        """Write a checkpoint; the last two are kept.

        Args:
            state: the state but for its tensors, JSON-able.
            numbers: its tensors, as a safetensors file.

        Raises:
            OSError: the disk is full; earlier checkpoints are kept.
        """
        # Numbers only rise, so that the newest is known without a clock.
        number = max(checkpoints(self.home), default=0) + 1
        draft = self.home / f".checkpoint-{number:03}.partial"
        remove(draft)
        draft.mkdir()
        try:
            head = {
                "format": CHECKPOINT,
                "version": VERSION,
                "run": self.about["checksum"],
                "number": number,
            }
            # The checksums tie the three files together: none of them is read beside those of another checkpoint.
            digests = {
                "numbers": atomic_files.file_digest(numbers),
                "history": {"bytes": self._written[1], "sha256": self._written[0].hexdigest()},
            }
            if (self.home / HISTORY).exists():
                atomic_files.sync(self.home / HISTORY)
            atomic_files.write(draft / NUMBERS, numbers)
            atomic_files.write(
                draft / STATE,
                atomic_files.to_checksummed_json({**head, **digests, "state": state}, indent=None),
            )
            # One rename makes the checkpoint appear, complete.
            draft.rename(self.home / f"checkpoint-{number:03}")
        finally:
            remove(draft)
        atomic_files.sync(self.home)
        self.has_checkpoint = True
        # Only now: until the new one is on the disk the old ones are all there is.
        for old in sorted(checkpoints(self.home))[:-_KEPT]:
            discard(checkpoints(self.home)[old])

    def save_folds(self, folds: Sequence[Mapping[str, Any]]) -> None:
        """Write the scores of the folds that are finished, so that they needn't be trained again.

        Args:
            folds: their records, from the first fold on.
        """
        head = {"format": FOLDS_FORMAT, "version": VERSION, "run": self.about["checksum"]}
        document = {**head, "folds": atomic_files.plain(list(folds))}
        atomic_files.write(self.home / FOLDS, atomic_files.to_checksummed_json(document))
        self.has_checkpoint = True

    def folds(self) -> list[dict[str, Any]]:
        """Read the records of the folds that are finished.

        Raises:
            SennError: they are damaged, or belong to another run.
        """
        path = self.home / FOLDS
        if not os.path.lexists(path):
            return []
        document = read_document(path, FOLDS_FORMAT)
        if document.get("run") != self.about["checksum"]:
            raise SennError(f"{str(path)!r} and {RUN} belong to different runs")
        check_folds(document.get("folds"), repr(str(path)))
        found: list[dict[str, Any]] = document["folds"]
        return found

    def newest(self) -> tuple[tuple[dict[str, Any], BinaryIO] | None, list[str]]:
        """Read the newest intact checkpoint.

        Returns:
            Its state and the open file of its tensors, None if there is none; a sentence for each damaged checkpoint.

        Raises:
            SennError: a checkpoint belongs to another run.
        """
        reasons: list[str] = []
        for document in intact_checkpoints(self.home, self.about, reasons):
            folder = self.home / f"checkpoint-{document['number']:03}"
            try:
                if not isinstance(document.get("state"), dict):
                    raise SennError(f"{str(folder / STATE)!r} is damaged: it holds no state")
                numbers = atomic_files.verified(
                    folder / NUMBERS, document.get("numbers"), MOST_WEIGHTS, STATE
                )
                return (document["state"], numbers), reasons
            except SennError as error:
                reasons.append(str(error))
        return None, reasons


def history_lines(records: Sequence[Mapping[str, Any]]) -> bytes:
    """Write records as JSON, one per line; NaN and infinity, which JSON lacks, become null."""
    texts = (
        dumps(atomic_files.plain(record), ensure_ascii=False, allow_nan=False) + "\n"
        for record in records
    )
    return atomic_files.encoded("".join(texts))


def discard(folder: Path) -> None:
    """Remove a folder at one stroke, by renaming it first: nobody ever sees half of it."""
    if folder.is_symlink() or not folder.exists():
        remove(folder)
        return
    gone = folder.with_name(f".gone.{folder.name}.{os.getpid()}")
    folder.rename(gone)
    remove(gone)


def remove(path: Path) -> None:
    """Remove a file, a link or a folder, as far as that is possible; it needn't exist."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
