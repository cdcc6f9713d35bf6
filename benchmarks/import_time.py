"""What `import senn` costs beside `import torch`: fresh processes in turn, medians of the CPU seconds inside each.

    python benchmarks/import_time.py [--repeats 15] [--out import_time.json]

`torch` is `import torch` alone, `senn` is `import senn` and the first use of `senn.Grower`, which brings torch. `step`
goes on from torch to a small model, its optimizer and a first training step; `grow` to a round of growth after that.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

_STEP = """
model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU(), torch.nn.Linear(2, 2))
optimizer = torch.optim.Adam(model.parameters())
x, y = torch.randn(64, 2), torch.randint(2, (64,))
torch.nn.functional.cross_entropy(model(x), y).backward()
optimizer.step()
"""
_GROW = "senn.Grower(model, optimizer, loss=torch.nn.functional.cross_entropy).grow([(x, y)])"
CASES = {
    "torch": "import torch",
    "senn": "import senn; senn.Grower",
    "step": "import torch" + _STEP,
    "grow": "import senn, torch" + _STEP + _GROW,
}
BESIDE = {"senn": "torch", "grow": "step"}


def seconds(code: str) -> float:
    """CPU time of one fresh process, without its start."""
    timed = f"import time\nstart = time.process_time()\n{code}\nprint(time.process_time() - start)"
    return float(
        subprocess.run(
            [sys.executable, "-c", timed], check=True, capture_output=True, text=True
        ).stdout
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    for code in CASES.values():  # files come from the disk's cache from then on
        seconds(code)
    runs: dict[str, list[float]] = {name: [] for name in CASES}
    for _ in range(args.repeats):
        for name, code in CASES.items():
            runs[name].append(seconds(code))
    medians = {name: statistics.median(found) for name, found in runs.items()}
    ratios = {
        name: statistics.median(a / b for a, b in zip(runs[name], runs[to], strict=True))
        for name, to in BESIDE.items()
    }
    for name, median in medians.items():
        beside = f", {ratios[name]:.2f} times {BESIDE[name]}" if name in ratios else ""
        print(f"{name:8}{median:.3f} CPU s{beside}")
    if args.out:
        args.out.write_text(
            json.dumps({"seconds": medians, "ratios": ratios, "runs": runs}, indent=2) + "\n"
        )


if __name__ == "__main__":
    main()
