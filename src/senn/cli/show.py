"""Print what a folder written by `senn fit` holds: the command `senn show`."""

from __future__ import annotations

import shlex
from json import dumps
from pathlib import Path
from typing import Any

from senn.cli.score_lines import confusion_lines, fold_table, score_table, tested
from senn.runs import SavedRun, is_at_work, read

_AT_WORK = "another process is at work on it"


def run(*, folder: Path, json: bool) -> int:
    """Print a run's scores, architecture and changes.

    Args:
        folder: folder of the run.
        json: print the results as one JSON document instead.

    Returns:
        Exit code.

    Raises:
        SennError: the folder holds no run, or a damaged one (`senn.events.run_schema` says what a run has).
    """
    saved = read(folder)
    if json:
        document = _unfinished(saved) if saved.results is None else saved.results
        print(dumps(document, ensure_ascii=False))
        return 0
    lines = _so_far(saved) if saved.results is None else _lines(saved.results)
    lines += _changes(saved)
    if saved.unfinished:
        # A resumable run beside finished results is another one, which was started with --overwrite.
        is_same = saved.results is None or saved.results["interrupted"]
        what = "it is unfinished" if is_same else "a run that is to replace it is unfinished"
        how = f"to resume: senn fit --resume {folder}"
        lines.append(f"{what}; {_AT_WORK if is_at_work(folder) else how}")
    print("\n".join(lines))
    return 0


def _unfinished(saved: SavedRun) -> dict[str, Any]:
    """Return what is known of a run without results, JSON-able."""
    # The last epoch says how far the run has got; rounds in between have no scores.
    epochs = [record for record in saved.history if record["event"] == "epoch"]
    return {
        "unfinished": True,
        "at_work": is_at_work(saved.path),
        "arguments": _arguments(saved),
        "records": len(saved.history),
        "last": epochs[-1] if epochs else None,
    }


def _arguments(saved: SavedRun) -> list[str]:
    return [] if saved.options is None else saved.options.arguments()


def _so_far(saved: SavedRun) -> list[str]:
    """Return lines on how far an unfinished run has got."""
    lines = [f"unfinished: senn fit {shlex.join(_arguments(saved))}"]
    epochs = [record for record in saved.history if record["event"] == "epoch"]
    if epochs:
        last = epochs[-1]
        size = f"hidden layers {_widths(last)}, {last['parameters']:,} parameters"
        progress = f"epoch {last['epoch']} of {last.get('epochs', '?')}"
        lines.append(f"{progress}, {size}, {last.get('seconds', 0.0):.1f} seconds")
    return lines


def _widths(record: dict[str, Any]) -> str:
    # A network without hidden layers is one linear map.
    return "-".join(map(str, record.get("architecture", ()))) or "none"


def _lines(results: dict[str, Any]) -> list[str]:
    """Return lines on the results of a run."""
    data = results["data"]
    members = results.get("members", 1)
    mean = f"mean of {members} networks, " if members > 1 else ""
    size = f"hidden layers {_widths(results)}, {mean}{results['parameters']:,} parameters"
    choices = f"seed {results['seed']}, {results['optimizer']}, {results['policy']}"
    lines = [
        f"{data['name']}: {results['task']} of {_what(data)}",
        *fold_table(results.get("cross_validation")),
        # No scores: a signal came, and there was no time left for the test.
        *score_table(results, tested(data)),
        *(f"note: {note}" for note in results.get("test_notes") or ()),
    ]
    lines += confusion_lines(results.get("confusion"), data.get("classes") or ())
    lines.append(f"{size}, {results['seconds']:.1f} seconds, {choices}")
    if results["interrupted"]:
        lines.append("training was interrupted")
    return lines


def _changes(saved: SavedRun) -> list[str]:
    """Return a line for each change, and one for the network that is kept if changes came after it."""
    best = None if saved.results is None else saved.results["best_epoch"]
    lines: list[str] = []
    # Said only once a change follows: without one the last network is the kept one.
    kept: list[str] = []
    for record in saved.history:
        if record["event"] == "growth":
            lines += [*kept, _change(record)]
            kept = []
        elif record["event"] == "epoch" and record["epoch"] == best:
            kept = [f"  step {record['step']}: the network of epoch {best}, which is kept"]
    return lines


def _change(record: dict[str, Any]) -> str:
    realized = record.get("realized_decrease")
    # None: no round has measured the loss since, as after the last one.
    came = "" if realized is None else f", realized {realized:+.3g}"
    return f"  step {record['step']}: {record['text']}{came}"


def _what(data: dict[str, Any]) -> str:
    """Say what is classified or predicted, and from how much data."""
    if data.get("kind") == "images":
        size, classes = " x ".join(map(str, data.get("shape", ()))), data.get("classes") or ()
        return f"images of {size} into {len(classes):,} classes, {data['train_rows']:,} training images"
    features = data.get("features", 0)
    return (
        f"{data.get('target')!r} from {features:,} features, {data['train_rows']:,} training rows"
    )
