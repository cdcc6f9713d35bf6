"""Write docs/wild.md from the stored results of benchmarks/wild.py.

python docs/wild_page.py
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
BENCHMARKS = HERE.parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

from wild_reasons import is_vague  # noqa: E402

START = """# Models of public packages

Made by `python docs/wild_page.py` from `benchmarks/results/wild.json`, which `python benchmarks/wild.py --pruning
--out benchmarks/results/wild.json` writes in an environment with the extra `wild`; `--resume` goes on after a stop,
`--only TEXT` runs single models again. `benchmarks/wild_models` lists 134; those that haven't run are missing here.

Nobody prepared these models for growth. Each has a small configuration; all parameters and statistics are disturbed
first, so that no zero hides anything. *Spaces* are channel groups: the first, the middle and the last one alone and
then all together are widened by the least number of units, in float64 (a few run in float32 only); the
outputs on a batch of another size must stay, a step of AdamW in training mode must run, and pruning back must give
the former shapes. *Worst change* is the largest relative change of the outputs. *Grown* is what a `Grower` then did
in one round, in which it takes one candidate of each kind; another training step follows. *Loaded* is the largest
difference between the grown model and a fresh small one into which it was loaded from a file. *Refused* counts
places that are named as unable to change, *vague* those of them whose reason leaves open what the cause is or where
it lies, by the rule in `benchmarks/wild_reasons.py`. *torch-pruning* is what became of the same model with
torch-pruning 1.6.1, called as its README does, at 20 %.
"""


OUTPUTS = "its units are the model's outputs"


def changes_size(row: dict[str, Any]) -> bool:
    """Return True if all spaces of a model changed size, trained on and came back, as they should."""
    return row.get("groups", 0) > 0 and row["failed"] in (None, "growth")


def summary(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Counts over all models."""
    packages = len({row["package"] for row in rows})
    vague = [row["model"] for row in rows if any(vague_reasons(row))]
    refused = sum(len(row.get("refusals", ())) for row in rows)
    pruned = Counter(str(row.get("torch_pruning", "-")).split(":")[0] for row in rows)
    good = sum(map(changes_size, rows))
    whole = sum(row["failed"] is None and "loaded" in row for row in rows)
    yield (
        f"- {len(rows)} models of {packages} packages; in {good} all spaces change size exactly, train on and are "
        f"pruned back; {whole} grew by a `Grower`, trained on, and were saved and loaded.\n"
    )
    yield (
        f"- {sum(row.get('groups', 0) for row in rows)} spaces, {sum(row.get('blocks', 0) for row in rows)} repeatable "
        f"blocks, {refused} refused places; a vague reason in {len(vague)} models"
        + (f" ({', '.join(vague)}).\n" if vague else ".\n")
    )
    said = ", ".join(f"{what} {count}" for what, count in pruned.most_common())
    yield f"- torch-pruning: {said}.\n"
    yield f"- {sum(row.get('seconds', 0) for row in rows) / 60:.0f} minutes, one process on a shared machine.\n"


def vague_reasons(row: dict[str, Any]) -> list[dict[str, str]]:
    """Return the refusals of a model that have a vague reason."""
    return [one for one in row.get("refusals", ()) if is_vague(one["reason"], one["line"])]


def outcome(row: dict[str, Any]) -> str:
    """Say what became of a model that didn't grow."""
    if row["failed"] is None:
        return "nothing"
    return f"{'refused' if row.get('is_refusal') else 'failed'}: {row['failed']}"


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """One line for each model."""
    head = (
        "model",
        "package",
        "spaces",
        "blocks",
        "refused",
        "vague",
        "worst change",
        "grown",
        "loaded",
    )
    yield "| " + " | ".join((*head, "torch-pruning")) + " |"
    yield "|" + "---|" * (len(head) + 1)
    for row in rows:
        kinds = dict.fromkeys(event.split()[0] for event in row.get("events", ()))
        cells = [
            row["model"],
            row["package"],
            row.get("groups", "-"),
            row.get("blocks", "-"),
            len(row.get("refusals", ())),
            len(vague_reasons(row)),
            f"{row['worst']:.0e}" if row.get("groups") and "worst" in row else "-",
            ", ".join(kinds) or outcome(row),
            f"{row['loaded']:.0e}" if "loaded" in row else "-",
            row.get("torch_pruning", "-"),
        ]
        yield "| " + " | ".join(map(str, cells)) + " |"


def problems(rows: list[dict[str, Any]]) -> Iterator[str]:
    """What failed, and the vague reasons."""
    failed = [row for row in rows if row["failed"] is not None]
    if failed:
        yield "\n## What fails\n"
        for row in failed:
            error = (row.get("error") or "no answer").splitlines()[0][:300]
            yield f"- {row['model']}, {row['failed']}: {error}"
    vague = [(row["model"], one) for row in rows for one in vague_reasons(row)]
    if vague:
        yield "\n## Vague reasons\n"
        for model, one in vague:
            yield f"- {model}, `{one['place']}`: {one['reason'][:300]}"


def reasons(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Every reason with its number of places, by the model that it is said of; but outputs, which every model has."""
    yield "\n## What is refused, and why\n\nThe models' outputs are refused as well, and aren't listed."
    for row in rows:
        found = row.get("refusals", ())
        said = Counter((one["reason"], one["line"]) for one in found)
        said = Counter({key: count for key, count in said.items() if key[0] != OUTPUTS})
        if not said:
            continue
        yield f"\n{row['model']}:\n"
        for (reason, line), count in said.items():
            place = next(one["place"] for one in found if one["reason"] == reason)
            more = f" and {count - 1} more" if count > 1 else ""
            where = f" ({line})" if line else ""
            yield f"- `{place}`{more}: {reason}{where}"


def main() -> None:
    """Write the page."""
    rows = json.loads((BENCHMARKS / "results" / "wild.json").read_text())
    parts = [START, *summary(rows), "", *table(rows), *problems(rows), *reasons(rows)]
    (HERE / "wild.md").write_text("\n".join(parts) + "\n")


if __name__ == "__main__":
    main()
