"""Sections of docs/results.md on what it costs to run senn, and what runs survive; called by docs/results.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

Table = Callable[[Sequence[str], Sequence[Sequence[object]]], str]


def running(stored: Callable[[str], Any], table: Table) -> Iterator[str]:
    """All of them, one after another."""
    for section in (_overhead, _runs, _damage, _report, _imports):
        yield from section(stored, table)


def _overhead(stored: Callable[[str], Any], table: Table) -> Iterator[str]:
    found = stored("lightning_overhead")
    yield "## The callback in Lightning\n"
    yield (
        f"`python benchmarks/lightning_overhead.py --repeats {found['repeats']}`: a training step with the callback "
        "over one without, side by side in one run; median of the ratios and their quartiles.\n"
    )
    rows = []
    for net, figures in found["nets"].items():
        cells = [f"{one['ratio']:.3f} ({one['quartiles'][0]:.3f} to {one['quartiles'][1]:.3f})"
                 for one in (figures["between"], figures["keeping"])]  # fmt: skip
        rows.append((net, f"{figures['plain_microseconds'] / 1000:.2f} ms", *cells))
    yield (
        table(("net", "plain step", "between rounds", "while batches are kept for a round"), rows)
        + "\n"
    )


def _runs(stored: Callable[[str], Any], table: Table) -> Iterator[str]:
    found = stored("resume")
    yield "## Checkpoints, and runs that are interrupted\n"
    yield (
        "`python benchmarks/resume.py`: checkpoints of `senn fit`, from SIGTERM to the end of the process, and whether "
        "the run that went on ended with the same network as one that nothing interrupted.\n"
    )
    rows = []
    for name in ("table", "images"):
        one = found[name]
        ends = [cut["seconds_to_end"] for cut in one["interruptions"]]
        same = sum(cut["same_end"] for cut in one["interruptions"])
        cost = f"{one['median_ms']:.0f} ms, {one['bytes'] / 1e6:.2f} MB, {one['share_percent']:.2f} % of the run"
        rows.append((name, cost, f"{min(ends):.1f} to {max(ends):.1f} s", f"{same} of {len(ends)}"))
    yield table(("run", "a checkpoint", "signal to end", "same network"), rows) + "\n"


def _damage(stored: Callable[[str], Any], table: Table) -> Iterator[str]:
    found = stored("damaged_folders")
    yield "## Damaged folders\n"
    yield (
        f"`python benchmarks/damaged_folders.py --cases {found['cases']}`: files of finished and unfinished runs that "
        "were truncated, had bits flipped, were swapped, emptied, replaced or made to claim sizes they don't have. "
        "Refused in one sentence, harmless for the command, or a file that is whole and says something else. "
        f"Crashed, hung, loaded wrongly or changed something: {len(found['bad'])}.\n"
    )
    kinds = ("refused", "no harm", "its own answer")
    rows = [
        (name, *(counts.get(kind, 0) for kind in kinds)) for name, counts in found["counts"].items()
    ]
    yield table(("command", *kinds), rows) + "\n"


def _report(stored: Callable[[str], Any], table: Table) -> Iterator[str]:
    yield "## The report\n"
    yield "`python benchmarks/report_load.py`: a page in Chromium, from opening it to the last chart drawn.\n"
    rows = [
        (
            one["events"],
            f"{one['megabytes']:.2f} MB",
            f"{one['drawn']:.2f} s",
            f"{one['move'] * 1000:.1f} ms",
        )
        for one in stored("report_load")
    ]
    yield table(("changes of size", "file", "drawn after", "a move of the slider"), rows) + "\n"


def _imports(stored: Callable[[str], Any], table: Table) -> Iterator[str]:
    found = stored("import_time")
    seconds, ratios = found["seconds"], found["ratios"]
    yield "## Import\n"
    yield "`python benchmarks/import_time.py`: CPU seconds of fresh processes, interleaved; medians.\n"
    rows = [
        ("import", f"{seconds['torch']:.2f} s (torch)", f"{seconds['senn']:.2f} s", f"{ratios['senn']:.2f}"),
        ("and the first step, or round of growth", f"{seconds['step']:.2f} s", f"{seconds['grow']:.2f} s",
         f"{ratios['grow']:.2f}"),
    ]  # fmt: skip
    yield table(("", "torch alone", "senn", "median of the ratios"), rows) + "\n"
