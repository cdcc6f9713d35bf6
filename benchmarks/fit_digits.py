"""`senn fit digits` over several seeds: held-out accuracy, size, time, and what growth did to the loss at its moment.

    python benchmarks/fit_digits.py [--seeds 5] [--data digits] [--out results.json]

Each seed draws its own test split, which is looked at once.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any


def fit(data: str, seed: int, folder: Path) -> dict[str, Any]:
    """Results of one run, with the largest change of the loss at a growth that only added."""
    command = [
        sys.executable,
        "-m",
        "senn.cli.main",
        "fit",
        data,
        "--seed",
        str(seed),
        "--out",
        str(folder),
        "--quiet",
    ]
    subprocess.run(command, check=True)
    results: dict[str, Any] = json.loads((folder / "results.json").read_text())
    events = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    growths = [event for event in events if event["event"] == "growth"]
    pruned = {event["round"] for event in growths if event["kind"] == "prune"}
    ratios = [
        abs(e["loss_after"] / e["loss_before"] - 1) for e in growths if e["round"] not in pruned
    ]
    kept = ("seed", "architecture", "parameters", "seconds", "test")
    return {
        **{key: results[key] for key in kept},
        "growths": len(growths),
        "loss_change": max(ratios, default=0.0),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="digits")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        runs = [fit(args.data, seed, Path(folder) / str(seed)) for seed in range(args.seeds)]
    metric = next(iter(runs[0]["test"]))
    for run in runs:
        print(
            f"seed {run['seed']}: {metric} {run['test'][metric]:.4f}, widths {run['architecture']}, "
            f"{run['parameters']:,} parameters, {run['seconds']:.1f} s, "
            f"loss changed by {run['loss_change']:.1e} at growth"
        )
    scores = [run["test"][metric] for run in runs]
    spread = statistics.stdev(scores) if len(scores) > 1 else 0.0
    print(f"mean {metric} {statistics.fmean(scores):.4f} +- {spread:.4f}")
    if args.out:
        args.out.write_text(
            json.dumps({"data": args.data, "metric": metric, "runs": runs}, indent=2) + "\n"
        )


if __name__ == "__main__":
    main()
