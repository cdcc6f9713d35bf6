"""Write docs/optimizers.md from the stored results of benchmarks/optimizers.py.

python docs/optimizers_page.py
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
STORED = HERE.parent / "benchmarks" / "results" / "optimizers.json"
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


def main() -> None:
    """Write the page."""
    found = json.loads(STORED.read_text())
    before, after = found["steps"]
    parts = [
        START.format(before=before, after=after, run=len(found["optimizers"])),
        *counts(found),
        *lists(found),
    ]
    (HERE / "optimizers.md").write_text("\n".join(parts) + "\n")


if __name__ == "__main__":
    main()
