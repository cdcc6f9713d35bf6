"""Break one formula at a time, and see that a test notices.

    python benchmarks/mutants.py [--only TEXT] [--out mutants.json]      (or: make mutants)

Each mutant is one small change of one formula: a factor, a sign, a transpose, a fold. The source is copied to a
temporary folder, changed there, and the tests that go with the file are run against it until the first fails. A mutant
that no test kills is printed as `survived`, and the exit status is 1: that formula could be wrong, and nobody would
see it. `tests/test_mutants.py` checks that each text to be changed still stands in the source, exactly once.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from mutant_list import MUTANTS, Mutant

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src"


def mutated(mutant: Mutant, source: str) -> str:
    """Change a file's text as a mutant says.

    Args:
        mutant: the mutant.
        source: the file's text.

    Returns:
        The changed text.

    Raises:
        ValueError: the text to be changed doesn't stand there exactly once.
    """
    found = source.count(mutant.old)
    if found != 1:
        raise ValueError(f"{mutant.file}: {mutant.old!r} stands there {found} times")
    return source.replace(mutant.old, mutant.new)


def run(mutant: Mutant, folder: Path) -> dict[str, object]:
    """Run the tests of a mutant against a changed copy of the source.

    Args:
        mutant: the mutant.
        folder: an empty folder for the copy.

    Returns:
        What happened: `killed`, the test that failed, seconds.
    """
    shutil.copytree(SOURCE, folder / "src", ignore=shutil.ignore_patterns("__pycache__"))
    path = folder / "src" / "senn" / mutant.file
    path.write_text(mutated(mutant, path.read_text()))
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-n", "0", "-p", "no:cacheprovider"]
    begin = time.perf_counter()
    done = subprocess.run(
        [*command, *mutant.tests],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(folder / "src"), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
    )
    failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    # 1 is a failed test; 2 and more say that the tests didn't run, which proves nothing
    if done.returncode not in (0, 1):
        raise RuntimeError(f"the tests of {mutant.what} didn't run:\n{done.stdout[-2000:]}")
    return {
        "what": mutant.what,
        "file": mutant.file,
        "killed": done.returncode == 1,
        "by": failed[0].split()[1] if failed else None,
        "seconds": round(time.perf_counter() - begin, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", default="", help="mutants whose file or description has this text"
    )
    parser.add_argument("--out", type=Path, help="write the results to this file, as JSON")
    args = parser.parse_args()
    chosen = [one for one in MUTANTS if args.only in f"{one.file} {one.what}"]
    results = []
    for mutant in chosen:
        with tempfile.TemporaryDirectory() as folder:
            result = run(mutant, Path(folder))
        results.append(result)
        state = f"killed by {result['by']}" if result["killed"] else "SURVIVED"
        print(f"{result['seconds']:6} s  {mutant.file}: {mutant.what}: {state}", flush=True)
    survived = [one for one in results if not one["killed"]]
    print(f"{len(results) - len(survived)} of {len(results)} mutants killed")
    if args.out:
        args.out.write_text(json.dumps(results, indent=1) + "\n")
    sys.exit(bool(survived))


if __name__ == "__main__":
    main()
