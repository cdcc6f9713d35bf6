"""Writing a run's folder: whole or not at all."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from json import dumps
from pathlib import Path
from types import TracebackType
from typing import Any

from filelock import FileLock, Timeout

from senn import atomic_files
from senn.errors import SennError
from senn.runs.fit_options import FitOptions
from senn.runs.saved_run import (
    CHECKPOINT,
    FIGURE,
    FORMAT,
    HISTORY,
    LONGEST,
    NAME,
    NUMBERS,
    REPORT,
    RESULTS,
    RUN,
    STATE,
    UNFINISHED,
    VERSION,
    about_of,
    checkpoints,
    documents,
    intact,
    opened,
)

_KEPT = 2
"""Checkpoints at most."""

_GONE = f".gone.{UNFINISHED}."
"""How what is being removed is called in the folder itself."""

_DRAFT = re.compile(r"\.[a-z]+\.(json|jsonl|png|safetensors)\.\d+\.tmp")
"""How a file is called there until it is complete."""


LOCK = ".lock"
"""File that is locked while a process is at work in a folder."""


class RunFolder:
    """The folder that a run writes to, as a context.

    What is written goes to `draft`, and to the folder itself only by `publish`. Leaving the context without it leaves
    the folder as it was, but for the checkpoints, if there are any.

    Args:
        path: the folder; made if need be.
        overwrite: whether another run there may be replaced; it stays until this one is complete.
        resume: go on with the unfinished run that is there.

    Attributes:
        about: what `begin` was told, of a run that is gone on with.

    Raises:
        SennError: the folder can't be written, another process is at work there, or it holds another run (or anything
            else), or none to go on with.
    """

    def __init__(self, path: Path, *, overwrite: bool = False, resume: bool = False) -> None:
        self.path = path
        self.place = Path(os.path.abspath(path))
        self.home = self.place / UNFINISHED
        self.draft, self._finished = self.home / "draft", self.home / "finished"
        self.about: dict[str, Any] = {}
        self._keep = resume
        self._lock: FileLock | None = None
        self._written = hashlib.sha256(), 0
        self._refuse(overwrite, resume)
        self._made = [folder for folder in (self.place, *self.place.parents) if not folder.exists()]
        try:
            self.place.mkdir(parents=True, exist_ok=True)
            self._lock = _locked(self.place)
            self._refuse(overwrite, resume)  # another run may have come in between
            for left in self.place.iterdir():
                if left.name.startswith(_GONE) or _DRAFT.fullmatch(left.name):
                    _remove(left)
            if resume:
                self._take_up()
            else:
                with suppress(SennError):  # a damaged one is replaced
                    self._arrive()
                _discard(self.home)
                self.home.mkdir()
            if self.home.exists():  # it doesn't where a run was complete but for its last moment
                _remove(self.draft)
                self.draft.mkdir()
        except OSError as error:
            self._leave()
            raise self.unwritable(error) from error
        except SennError:
            self._leave()
            raise

    def _refuse(self, overwrite: bool, resume: bool) -> None:
        name = str(self.path)
        try:
            if self.path.exists() and not self.path.is_dir():
                raise SennError(f"{name!r} is a file, not a folder")
            found = {entry.name for entry in self.path.iterdir()} if self.path.exists() else set()
            inside = {entry.name for entry in self.home.iterdir()} if self.home.is_dir() else set()
        except OSError as error:
            raise self.unwritable(error) from error
        if resume:
            if RUN not in inside:
                raise SennError(f"{name!r} holds no unfinished run (there is no {UNFINISHED}/{RUN})")
            return
        found = {name for name in found if name != LOCK and not name.startswith(_GONE) and not _DRAFT.fullmatch(name)}
        if (self._finished / RESULTS).exists():  # some of its files may be there already
            found.add(RESULTS)
        ours = self.home.is_dir() and not self.home.is_symlink() and all(map(_ours, inside))
        if found and RESULTS not in found and (found - {REPORT} != {UNFINISHED} or not ours):
            raise SennError(f"{name!r} isn't empty and holds no run; choose another folder with --out")
        if RUN in inside and not overwrite:
            raise SennError(
                f"{name!r} holds an unfinished run; go on with it: senn fit --resume {name}, or replace it: --overwrite"
            )
        if RESULTS in found and not overwrite:
            raise SennError(f"{name!r} holds a run already; choose another --out, or replace it: --overwrite")

    def _take_up(self) -> None:
        """What a kill has left half-done is done, or undone."""
        self.about = about_of(self.home)
        self._arrive()
        for left in self.home.glob(".*"):
            _remove(left)

    def _arrive(self) -> None:
        """Give the files of a finished run their place, if a kill has left them on their way there."""
        if (self._finished / RESULTS).exists():
            results = opened(self._finished / RESULTS, FORMAT)
            for name in results.get("files", {}):
                intact(self._finished, results, name, LONGEST)
            self._deliver(keep=results.get("interrupted") is True)

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._leave()
        if isinstance(error, OSError):
            raise self.unwritable(error) from error

    def _leave(self) -> None:
        with suppress(OSError):  # what can't be removed stays, and another error is on its way mostly
            if self._lock is not None and self.home.exists():
                _remove(self.draft) if self._keep else _discard(self.home)
        if self._lock is not None:
            _unlock(self._lock, self.place)
            self._lock = None
        for folder in self._made:  # only those that are empty again
            with suppress(OSError):
                folder.rmdir()

    def unwritable(self, error: OSError) -> SennError:
        """What is said when the disk doesn't do as asked."""
        more = f"; go on later: senn fit --resume {self.path}" if self._keep else ""
        return SennError(f"{str(self.path)!r} can't be written: {error.strerror or error}{more}")

    @property
    def has_checkpoint(self) -> bool:
        """Whether there is one to go on from, so that what is here stays."""
        return self._keep

    @property
    def replaces_another(self) -> bool:
        """Whether a run that came to its end is still there, which only one that does so too may replace."""
        return (self.place / RESULTS).exists() and not self._interrupted()

    def _interrupted(self) -> bool:
        try:
            return opened(self.place / RESULTS, FORMAT).get("interrupted") is True
        except SennError:
            return False

    # -- while the run goes on

    def begin(self, options: FitOptions, **about: Any) -> None:
        """Note the options of the run, so that it can be gone on with."""
        document = {"format": FORMAT, "version": VERSION, "options": options.to_dict(), **about}
        atomic_files.write(self.home / RUN, atomic_files.to_checksummed_json(document))
        self.about = about_of(self.home)

    def restart(self, history: Sequence[Mapping[str, Any]]) -> None:
        """The history as it is where the run goes on."""
        text = _lines(history)
        self._written = hashlib.sha256(text), len(text)
        atomic_files.write(self.home / HISTORY, text)

    def record(self, record: Mapping[str, Any]) -> None:
        """One more record of the history, for those who watch."""
        text, path = _lines([record]), self.home / HISTORY
        try:
            with path.open("ab") as file:
                file.write(text)
        except OSError:
            with suppress(OSError):  # no half of a line before others
                os.truncate(path, self._written[1])
            raise
        self._written[0].update(text)
        self._written = self._written[0], self._written[1] + len(text)

    def save(self, state: Mapping[str, Any], numbers: bytes) -> None:
        """One more checkpoint; the last two are kept.

        Args:
            state: JSON-able.
            numbers: the tensors that it speaks of.
        """
        number = max(checkpoints(self.home), default=0) + 1
        draft = self.home / f".checkpoint-{number:03}.partial"
        _remove(draft)
        draft.mkdir()
        try:
            head = {"format": CHECKPOINT, "version": VERSION, "run": self.about["checksum"], "number": number}
            told = {
                "numbers": atomic_files.file_digest(numbers),
                "history": {"bytes": self._written[1], "sha256": self._written[0].hexdigest()},
            }
            if (self.home / HISTORY).exists():
                atomic_files.sync(self.home / HISTORY)
            atomic_files.write(draft / NUMBERS, numbers)
            atomic_files.write(
                draft / STATE, atomic_files.to_checksummed_json({**head, **told, "state": state}, indent=None)
            )
            draft.rename(self.home / f"checkpoint-{number:03}")
        finally:
            _remove(draft)
        atomic_files.sync(self.home)
        self._keep = True
        for old in sorted(checkpoints(self.home))[:-_KEPT]:
            _discard(checkpoints(self.home)[old])

    def newest(self) -> tuple[tuple[dict[str, Any], bytes] | None, list[str]]:
        """The state and the numbers of the newest checkpoint that is intact, and why newer ones aren't."""
        reasons: list[str] = []
        for document in documents(self.home, self.about, reasons):
            folder = self.home / f"checkpoint-{document['number']:03}"
            try:
                if not isinstance(document.get("state"), dict):
                    raise SennError(f"{str(folder / STATE)!r} is damaged: it tells of no state")
                numbers = atomic_files.verify_file(folder / NUMBERS, document.get("numbers"), 1 << 40, STATE)
                return (document["state"], numbers), reasons
            except SennError as error:
                reasons.append(str(error))
        return None, reasons

    # -- at its end

    def write_history(self, records: Sequence[Mapping[str, Any]]) -> None:
        """The history in the draft: a JSON document per line."""
        (self.draft / HISTORY).write_bytes(_lines(records))

    def write_results(self, document: Mapping[str, Any]) -> None:
        """The results, with the checksums of all other files of the draft: to be written last."""
        contents = {file.name: file.read_bytes() for file in sorted(self.draft.iterdir())}
        files = {name: atomic_files.file_digest(data) for name, data in contents.items()}
        head = {"format": FORMAT, "version": VERSION}
        (self.draft / RESULTS).write_bytes(
            atomic_files.to_checksummed_json({**head, **atomic_files.plain(document), "files": files})
        )

    def publish(self, keep: bool = False) -> None:
        """Give the draft's files their place; with `keep` the run can still be gone on with."""
        for file in self.draft.iterdir():
            atomic_files.sync(file)
        atomic_files.sync(self.draft)
        self.draft.rename(self._finished)
        atomic_files.sync(self.home)
        self._deliver(keep)

    def _deliver(self, keep: bool) -> None:
        """Copies, the results last: as long as they aren't all there, `complete` names where they are from."""
        for file in sorted(self._finished.iterdir(), key=lambda file: file.name == RESULTS):
            atomic_files.write(self.place / file.name, file.read_bytes())
        for name in (FIGURE, REPORT):  # no picture of another run stays beside them
            old = self.place / name
            if not (self._finished / name).exists() and old.is_file() and (name == FIGURE or _is_report(old)):
                old.unlink()
        _discard(self._finished if keep else self.home)
        self._keep = keep


def _lines(records: Sequence[Mapping[str, Any]]) -> bytes:
    texts = (dumps(atomic_files.plain(record), ensure_ascii=False, allow_nan=False) + "\n" for record in records)
    return atomic_files.encoded("".join(texts))


def _is_report(page: Path) -> bool:
    """Whether a page is one that `senn report` made."""
    with page.open("rb") as file:
        return b'name="generator" content="senn"' in file.read(1000)


def _ours(name: str) -> bool:
    """Whether a file in an unfinished run's folder is one that is written there."""
    return name in (RUN, HISTORY, "draft", "finished") or bool(NAME.fullmatch(name)) or name.startswith(".")


def _discard(folder: Path) -> None:
    """Remove a folder that may have a meaning: at once, so that no half of it is ever seen."""
    if folder.is_symlink() or not folder.exists():
        _remove(folder)
        return
    gone = folder.with_name(f".gone.{folder.name}.{os.getpid()}")
    folder.rename(gone)
    _remove(gone)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _locked(folder: Path) -> FileLock:
    """Lock a folder against other processes.

    Raises:
        SennError: another process holds the lock.
    """
    lock = FileLock(folder / LOCK, thread_local=False)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise SennError(f"another process is at work in {str(folder)!r}") from error
    return lock


def _unlock(lock: FileLock, folder: Path) -> None:
    """Release the lock of a folder, and remove its file."""
    # Removed while it is still held: nobody waits for this lock, so nobody is left with a file that has no name.
    with suppress(OSError):  # Windows keeps an open file; there it is removed after the release
        (folder / LOCK).unlink(missing_ok=True)
    lock.release()
    with suppress(OSError):
        (folder / LOCK).unlink(missing_ok=True)
