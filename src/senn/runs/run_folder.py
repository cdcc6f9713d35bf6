"""Write a run's folder, whole or not at all."""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

from senn import atomic_files
from senn.errors import SennError
from senn.runs.saved_run import (
    FIGURE,
    FOLDS,
    FORMAT,
    HISTORY,
    MOST_WEIGHTS,
    NAME,
    REPORT,
    RESULTS,
    RUN,
    TEST,
    TEST_FORMAT,
    UNFINISHED,
    VERSION,
    complete,
    open_intact,
    read_about,
    read_results,
)
from senn.runs.unfinished_run import UnfinishedRun, discard, history_lines, remove

_GONE = f".gone.{UNFINISHED}."
"""Beginning of the name of a folder that is being removed."""

_DRAFT = re.compile(r"\.[a-z]+\.(json|jsonl|png|safetensors)\.\d+\.tmp")
"""Name of a file that isn't complete yet."""

_FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
"""Numbers of the errors by which a system refuses to write more."""

LOCK = ".lock"
"""File that is locked while a process is at work in a folder."""

_DELIVERED = (RESULTS, HISTORY, FIGURE, "model.json", "model.safetensors")
"""Files that a run writes into its folder at the end."""


class RunFolder(UnfinishedRun):
    """Folder that a run writes to, as a context that holds a lock.

    Files are written to `draft`; `publish` moves them into the folder. Without it, the folder is left as it was, except
    for checkpoints.

    A kill at any moment leaves either the earlier content or the complete new one, because each step is one rename:
    `draft` becomes `finished` once all of it is on the disk, its files are then copied into place with `results.json`
    last, and what a kill interrupts there is repeated by the next `RunFolder`.

    Args:
        path: the folder; it is made if it doesn't exist.
        overwrite: allow another run to be replaced; it stays until this one is complete.
        resume: take up the unfinished run in the folder.

    Attributes:
        place: absolute path of the folder.
        home: folder of the unfinished run in it.
        draft: folder for the files of the finished run.
        about: content of `run.json`.

    Raises:
        SennError: the folder can't be written, another process works in it, it holds another run or other files, or
            there is no run to resume.
    """

    def __init__(self, path: Path, *, overwrite: bool = False, resume: bool = False) -> None:
        self.path = path
        self.place = Path(os.path.abspath(path))
        super().__init__(self.place / UNFINISHED, has_checkpoint=resume)
        self.draft, self._finished = self.home / "draft", self.home / "finished"
        self._lock: FileLock | None = None
        self._refuse_if_at_work()
        self._refuse(overwrite, resume)
        self._made = [folder for folder in (self.place, *self.place.parents) if not folder.exists()]
        try:
            self.place.mkdir(parents=True, exist_ok=True)
            self._lock = _lock(self.place)
            self._refuse(
                overwrite, resume
            )  # again: another run may have come before the lock was held
            for left in self.place.iterdir():
                if left.name.startswith(_GONE) or _DRAFT.fullmatch(left.name):
                    remove(left)
            if resume:
                self._take_up()
            else:
                with suppress(SennError):  # a damaged run is replaced, too
                    self._arrive()
                discard(self.home)
                self.home.mkdir()
            if self.home.exists():  # a run that was complete but for its last moment has left none
                remove(self.draft)
                self.draft.mkdir()
        except OSError as error:
            self._leave()
            raise self.unwritable(error) from error
        except SennError:
            self._leave()
            raise

    def _refuse_if_at_work(self) -> None:
        """Refuse a folder that another process is still writing, before it is told what to do with what it holds."""
        if (self.place / LOCK).is_file():
            with suppress(OSError):  # of another user: whether it can be written is found out later
                _lock(self.place).release()

    def _refuse(self, overwrite: bool, resume: bool) -> None:
        """Refuse a folder that holds anything that may not be replaced, or nothing to resume."""
        name = str(self.path)
        try:
            if self.path.exists() and not self.path.is_dir():
                raise SennError(f"{name!r} is a file, not a folder")
            found = {entry.name for entry in self.path.iterdir()} if self.path.exists() else set()
            inside = {entry.name for entry in self.home.iterdir()} if self.home.is_dir() else set()
        except OSError as error:
            raise self.unwritable(error) from error
        # No file can be renamed onto a folder; the end of the run would be late to find that out.
        folders = [name for name in _DELIVERED if name in found and _is_folder(self.path / name)]
        if folders:
            raise SennError(f"{str(self.path / folders[0])!r} is a folder, where a file belongs")
        if resume:
            if RUN not in inside:
                raise SennError(
                    f"{name!r} holds no unfinished run (there is no {UNFINISHED}/{RUN})"
                )
            return
        found = {
            name
            for name in found
            if name != LOCK and not name.startswith(_GONE) and not _DRAFT.fullmatch(name)
        }
        if (self._finished / RESULTS).exists():  # a kill has interrupted the copying of its files
            found.add(RESULTS)
        ours = self.home.is_dir() and not self.home.is_symlink() and all(map(_ours, inside))
        if found and RESULTS not in found and (found - {REPORT} != {UNFINISHED} or not ours):
            raise SennError(
                f"{name!r} isn't empty and holds no run; choose another folder with --out"
            )
        if RUN in inside and not overwrite:
            raise SennError(
                f"{name!r} holds an unfinished run; resume it: senn fit --resume {name}, or replace it: --overwrite"
            )
        if RESULTS in found and not overwrite:
            raise SennError(
                f"{name!r} holds a run already; choose another --out, or replace it: --overwrite"
            )

    def _take_up(self) -> None:
        """Complete or undo what a kill has interrupted."""
        self.about = read_about(self.home)
        self._arrive()
        for left in self.home.glob(".*"):
            remove(left)

    def _arrive(self) -> None:
        """Copy the files of a finished run into place if a kill has interrupted that."""
        if complete(self.place) != self._finished:
            return
        results = read_results(self._finished)
        names = results.get("files")
        # The folder may be somebody else's: only what its results vouch for is delivered, under its own name.
        if not isinstance(names, dict) or not all(map(_is_plain_name, names)):
            raise SennError(f"{str(self._finished / RESULTS)!r} is damaged: it lists no files")
        with ExitStack() as stack:
            files = {
                name: stack.enter_context(open_intact(self._finished, results, name, MOST_WEIGHTS))
                for name in names
            }
            files[RESULTS] = stack.enter_context(atomic_files.open_named(self._finished / RESULTS))
            self._deliver(files, keep=results.get("interrupted") is True)

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._leave()
        cause = error.__cause__ if isinstance(error, SennError) else error
        # what can't be written of the model is a SennError, which names a draft
        if isinstance(cause, OSError) and (cause is error or cause.errno in _FULL):
            raise self.unwritable(cause) from error

    def _leave(self) -> None:
        with suppress(
            OSError
        ):  # what can't be removed stays: there is mostly another error to report
            if self._lock is not None and self.home.exists():
                remove(self.draft) if self.has_checkpoint else discard(self.home)
        if self._lock is not None:
            _unlock(self._lock, self.place)
            self._lock = None
        for folder in self._made:  # fails for those that aren't empty, as it should
            with suppress(OSError):
                folder.rmdir()

    def unwritable(self, error: OSError) -> SennError:
        """Return the error for a disk that is full or can't be written."""
        more = f"; resume it later: senn fit --resume {self.path}" if self.has_checkpoint else ""
        return SennError(f"{str(self.path)!r} can't be written: {error.strerror or error}{more}")

    @property
    def replaces_another(self) -> bool:
        """True if the folder holds a run that came to its end, which an interrupted one mustn't replace."""
        return (self.place / RESULTS).exists() and not self._interrupted()

    def _interrupted(self) -> bool:
        try:
            return read_results(self.place)["interrupted"] is True
        except SennError:
            return False

    # -- at the end of the run

    def write_history(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Write the history into the draft, a JSON document per line."""
        (self.draft / HISTORY).write_bytes(history_lines(records))

    def write_test(self, details: Mapping[str, Any]) -> None:
        """Write what is kept of the test beside its scores into the draft."""
        document = {"format": TEST_FORMAT, "version": VERSION, **atomic_files.plain(details)}
        (self.draft / TEST).write_bytes(atomic_files.to_checksummed_json(document, indent=None))

    def write_results(self, document: Mapping[str, Any]) -> None:
        """Write the results and the checksums of all other files of the draft, after which no more may be written."""
        files = {file.name: _digest(file) for file in sorted(self.draft.iterdir())}
        head = {"format": FORMAT, "version": VERSION}
        (self.draft / RESULTS).write_bytes(
            atomic_files.to_checksummed_json(
                {**head, **atomic_files.plain(document), "files": files}
            )
        )

    def publish(self, keep: bool = False) -> None:
        """Move the files of the draft into the folder.

        Args:
            keep: keep the checkpoints, so that the run can be resumed.
        """
        for file in self.draft.iterdir():
            atomic_files.sync(file)
        atomic_files.sync(
            self.draft
        )  # all files are on the disk before the name says that they are complete
        self.draft.rename(self._finished)
        atomic_files.sync(self.home)
        with ExitStack() as stack:
            files = {
                file.name: stack.enter_context(file.open("rb"))
                for file in sorted(
                    self._finished.iterdir(), key=lambda file: (file.name == RESULTS, file.name)
                )
            }
            self._deliver(files, keep)

    def _deliver(self, files: Mapping[str, BinaryIO], keep: bool) -> None:
        """Copy the finished files into place; until `results.json`, the last, `complete` still names their source."""
        for name, file in files.items():
            atomic_files.write(self.place / name, file)
        for name in (FIGURE, REPORT):  # pictures of the run before
            old = self.place / name
            if (
                not (self._finished / name).exists()
                and old.is_file()
                and (name == FIGURE or _is_report(old))
            ):
                old.unlink()
        discard(self._finished if keep else self.home)
        self.has_checkpoint = keep


def _is_report(page: Path) -> bool:
    """Return True if a page was made by `senn report`."""
    with page.open("rb") as file:
        return b'name="generator" content="senn"' in file.read(1000)


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _digest(path: Path) -> dict[str, Any]:
    """Describe a file for `atomic_files.verified`, without reading it as a whole."""
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": atomic_files.digest_of(file)}


def _is_plain_name(name: str) -> bool:
    """Return True for the name of a file in the folder itself, which hides nothing."""
    plain = name == Path(name).name and name.isprintable() and not name.startswith((".", "-"))
    return bool(name) and plain and name != RESULTS


def _ours(name: str) -> bool:
    """Return True if a file in an unfinished run's folder may have been written by senn."""
    return (
        name in (RUN, HISTORY, FOLDS, "draft", "finished")
        or bool(NAME.fullmatch(name))
        or name.startswith(".")
    )


def is_at_work(path: Path) -> bool:
    """Tell whether another process is writing a run's folder.

    Args:
        path: the folder; a process that was killed there counts as none.
    """
    try:
        if not stat.S_ISREG(os.lstat(path / LOCK).st_mode):
            return False
        _lock(path).release()
    except OSError:  # there is no such file, or it is another user's
        return False
    except SennError:
        return True
    return False


def _lock(folder: Path) -> FileLock:
    """Lock a folder against other processes.

    Raises:
        SennError: another process holds the lock.
    """
    lock = FileLock(folder / LOCK, thread_local=False)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise SennError(f"another process is at work in {str(folder)!r}") from error
    except (
        NotImplementedError
    ):  # a file system without locks, which older versions of filelock refuse
        pass
    return lock


def _unlock(lock: FileLock, folder: Path) -> None:
    """Release the lock of a folder, and remove its file."""
    # Removed before the release, when no other process can hold it; none waits for it, either (timeout 0).
    with suppress(OSError):  # Windows keeps a file that is open: it is removed after the release
        (folder / LOCK).unlink(missing_ok=True)
    lock.release()
    with suppress(OSError):
        (folder / LOCK).unlink(missing_ok=True)
