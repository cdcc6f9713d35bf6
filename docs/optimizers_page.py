"""Write docs/optimizers.md from the stored results of benchmarks/optimizers.py and benchmarks/late_growth.py.

python docs/optimizers_page.py
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULTS = HERE.parent / "benchmarks" / "results"
STORED, LATE = RESULTS / "optimizers.json", RESULTS / "late_growth.json"
COUNTED = ("carries", "restarts", "refused", "fails later")

START = """# Optimizers

Made by `python docs/optimizers_page.py` from `benchmarks/results/optimizers.json`, which `python
benchmarks/optimizers.py --out benchmarks/results/optimizers.json` writes in an environment with the extra
`optimizers`; a run that was broken off goes on where it ended.

Each class trains one small net with its defaults and a learning rate of 0.01: {before} steps, a growth of units and
layers, {after} steps, its state saved and loaded into a copy that trains, a second growth, {after} steps, and the same
again. It

- **carries**, if all of its state follows by position: averages, factors of rows and columns, preconditioners;
- **restarts**, if it grows with `Grower(..., on_uncarried_state="restart")`, which starts the state of a resized
  parameter anew where it follows no rule; without it, the change is refused and everything stays as it was;
- is **refused** with either, by `Grower(...)` or by a growth, and stays as it was;
- **fails later**, if anything raises after a growth, or the loss isn't finite.

What doesn't train this net without growth isn't counted. {run} classes have been run so far.
"""


def rows_of(found: dict[str, Any]) -> dict[str, list[tuple[str, dict[str, Any]]]]:
    """Results by package, with the names of the classes."""
    packages: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    for name, one in found["optimizers"].items():
        package, _, short = name.rpartition(".")
        packages.setdefault(package, []).append((short, one))
    return packages


def counts(found: dict[str, Any]) -> Iterator[str]:
    """A line for each package."""
    yield "\n| package | version | " + " | ".join(COUNTED) + " | not counted |"
    yield "|" + "---|" * (len(COUNTED) + 3)
    for package, rows in rows_of(found).items():
        count = Counter(one["verdict"] for _, one in rows)
        version = found["versions"][package.partition(".")[0]]
        cells = [package, version, *(count[kind] for kind in (*COUNTED, "not counted"))]
        yield "| " + " | ".join(map(str, cells)) + " |"


def lists(found: dict[str, Any]) -> Iterator[str]:
    """Which ones, and why not."""
    for package, rows in rows_of(found).items():
        yield f"\n## {package}\n"
        for kind in ("carries", "restarts"):
            names = [name for name, one in rows if one["verdict"] == kind]
            if names:
                yield f"- {kind}: {', '.join(names)}"
        for name, one in rows:
            if one["verdict"] in ("refused", "fails later", "not counted"):
                reason = one["reason"].split("\n")[0][:200].replace("<", "\\<")
                yield f"- {name}, {one['verdict']}: {reason}"


LATE_START = """
## Growth late in training

`python benchmarks/late_growth.py --out benchmarks/results/late_growth.json` grows a net of 16 hidden units, which
learns digits, to 32 after so many steps, and compares its loss with that of a twin that doesn't grow, on the same
minibatches; five seeds, or three (`--seeds 3`). The figures are the largest ratio of both over {after} steps, in the
worst of the seeds, for units with outgoing weights of zero (silent) and for units with a step of their own (stepped).
*Zeros* are averages of squared gradients as an optimizer starts them; *measured* is what `Grower` does: new entries
get what goes with their own gradients, at the level of the old entries' averages. Optimizers without such averages
have one figure in both.
"""


def late(found: dict[str, Any]) -> Iterator[str]:
    """Tables of late growth: the loss over the twin's, and gradients of new units over those of old ones."""
    yield LATE_START.format(**found)
    whens = list(dict.fromkeys(one["when"] for one in next(iter(found["optimizers"].values()))))
    yield (
        "| optimizer | seeds | births | averages | "
        + " | ".join(f"{one} steps" for one in whens)
        + " |"
    )
    yield "|" + "---|" * (4 + len(whens))
    for name, rows in found["optimizers"].items():
        for birth in ("silent", "stepped"):
            for moments in ("zero", "measured"):
                cells = [
                    f"{one['worst of seeds']:.3f}"
                    for one in rows
                    if (one["birth"], one["moments"]) == (birth, moments)
                ]
                what = "zeros" if moments == "zero" else moments
                start = f"| {name} | {rows[0]['seeds']} | {birth} | {what} | "
                yield start + " | ".join(cells) + " |"
    yield "\nMean length of the gradient of new units' incoming weights over that of old ones, 20 steps after the birth"
    yield "(averages measured), silent / stepped:\n"
    yield "| optimizer | " + " | ".join(f"{one} steps" for one in whens) + " |"
    yield "|" + "---|" * (1 + len(whens))
    for name, rows in found["optimizers"].items():
        parity = {
            (one["when"], one["birth"]): one["parity"] for one in rows if one["moments"] != "zero"
        }
        cells = [f"{parity[one, 'silent']:.2f} / {parity[one, 'stepped']:.2f}" for one in whens]
        yield f"| {name} | " + " | ".join(cells) + " |"


def main() -> None:
    """Write the page."""
    found = json.loads(STORED.read_text())
    before, after = found["steps"]
    parts = [
        START.format(before=before, after=after, run=len(found["optimizers"])),
        *counts(found),
        *lists(found),
        *late(json.loads(LATE.read_text())),
    ]
    (HERE / "optimizers.md").write_text("\n".join(parts) + "\n")


if __name__ == "__main__":
    main()
