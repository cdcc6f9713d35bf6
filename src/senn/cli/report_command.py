"""Write a page about one run, or about several side by side: the command `senn report`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from senn import atomic_files
from senn.checkpoint import load
from senn.errors import SennError
from senn.export import python_source
from senn.runs import REPORT, complete, is_at_work, read, read_test
from senn.viz.report import RunReport, page

_MOST = 20
"""Runs on one page: curves of more can't be told apart."""


def run(*, folders: Sequence[Path], out: Path | None) -> int:
    """Write the page.

    Args:
        folders: folders of the runs.
        out: the page; None for `report.html` in the folder of the run, or `comparison.html` here for several.

    Returns:
        Exit code.

    Raises:
        SennError: a folder holds no run or a damaged one, or the page would replace another file.
    """
    if len(folders) > _MOST:
        raise SennError(f"a report compares up to {_MOST} runs, not {len(folders)}")
    out = out or (folders[0] / REPORT if len(folders) == 1 else Path("comparison.html"))
    _refuse_foreign(out)
    text = page([_run_report(folder) for folder in folders])
    # The page is complete by now, so a failure leaves no empty folder behind.
    out.parent.mkdir(parents=True, exist_ok=True)
    atomic_files.write_output(out, atomic_files.encoded(text))
    print(f"written to {out}: {len(text) / 1e6:.1f} MB, opens in any browser, without a network")
    for folder in folders:
        if is_at_work(folder):
            print(
                f"the run in {folder} is still at work: the page shows what it has written so far"
            )
    return 0


def _refuse_foreign(out: Path) -> None:
    """Refuse to replace any file but a page."""
    if out.is_dir():
        raise SennError(f"{str(out)!r} is a folder: --out names the file to write")
    # People give --out the name of a file they care about.
    if out.exists() and not _is_page(out):
        raise SennError(
            f"{str(out)!r} isn't an HTML page, so the report doesn't replace it; choose another --out"
        )


def _is_page(path: Path) -> bool:
    try:
        with atomic_files.open_regular(path) as file:
            return file.read(15).lower() == b"<!doctype html>"
    except OSError:
        return False


def _run_report(folder: Path) -> RunReport:
    saved = read(folder)
    name = folder.resolve().name or str(folder)
    if saved.results is None and not saved.history:
        raise SennError(
            f"{str(folder)!r} holds a run that has only just begun: there is nothing to report yet"
        )
    if saved.results is None:
        return RunReport(name, saved.history)
    return RunReport(name, saved.history, saved.results, _code(folder), read_test(folder))


def _code(folder: Path) -> str | None:
    """Return the network as source; None, with a note on stderr, if it has layers that aren't senn's or PyTorch's."""
    try:
        # From the folder rather than the history: only the saved network has its classes.
        return python_source(load(complete(folder)))
    except SennError as error:
        print(f"senn: note: {folder} is shown without its code: {error}", file=sys.stderr)
        return None
