"""What it costs that nothing is lost: the share of checkpoints in a run, and the time that ending and going on take.

    python benchmarks/resume.py --out benchmarks/results/resume.json

For the digits of scikit-learn as a table and as a folder of images: the time and size of a checkpoint, and its share
of the default time between two of them; how long a process takes to end after SIGTERM, soon after a round of growth
and later; and whether it then goes on to the end of the run that nothing disturbed.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from senn import atomic_files
from senn.cli import checkpointing
from senn.cli.main import main as command
from senn.training.training_run import Training

FIT = [sys.executable, "-m", "senn.cli.main", "fit"]


def checkpoints(argv: list[str], folder: Path) -> dict[str, Any]:
    """Seconds and bytes of a run's checkpoints when one is written at every step."""
    seconds, sizes = [], []
    keep = Training.keep

    def timed(self: Training, *state: Any) -> None:
        began = time.perf_counter()
        keep(self, *state)
        seconds.append(time.perf_counter() - began)
        newest = max((folder / "unfinished").glob("checkpoint-*"))
        sizes.append(sum(file.stat().st_size for file in newest.iterdir()))

    Training.keep = timed
    os.environ[checkpointing.SECONDS] = "0.2"
    try:
        assert command([*argv, "--quiet", "--out", str(folder)]) == 0
    finally:
        Training.keep = keep
        del os.environ[checkpointing.SECONDS]
    worst, between = max(seconds), float(checkpointing.DEFAULT)
    return {
        "checkpoints": len(seconds),
        "median_ms": 1000 * statistics.median(seconds),
        "largest_ms": 1000 * worst,
        "bytes": max(sizes),
        "share_percent": 100 * worst / max(between, worst / checkpointing.SHARE),
    }


def interruption(argv: list[str], folder: Path, after: float) -> dict[str, Any]:
    """Seconds from SIGTERM, some time after the first growth, to the end of the process; and what came of the rest."""
    process = subprocess.Popen(
        [*FIT, *argv, "--out", str(folder)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("step "):
            break
    time.sleep(after)
    began = time.perf_counter()
    process.send_signal(signal.SIGTERM)
    process.communicate()
    took = time.perf_counter() - began
    assert process.returncode == 143, process.returncode
    began = time.perf_counter()
    assert command(["fit", "--resume", str(folder), "--quiet"]) == 0
    return {"seconds_to_end": took, "seconds_after_resumption": time.perf_counter() - began}


def write_images(folder: Path) -> Path:
    """The digits, four times as large, as PNG files."""
    digits = load_digits()
    for number, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        (folder / str(label)).mkdir(parents=True, exist_ok=True)
        large = np.kron(pixels * 15, np.ones((4, 4))).astype(np.uint8)
        Image.fromarray(large).save(folder / str(label) / f"{number}.png")
    return folder


def _end(folder: Path) -> str:
    return atomic_files.bytes_digest((folder / "model.safetensors").read_bytes())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    results: dict[str, Any] = {"command": "resume.py", "load_average": os.getloadavg()[0]}
    with tempfile.TemporaryDirectory() as root:
        pictures = write_images(Path(root, "pictures"))
        for name, argv in (("table", ["digits"]), ("images", [str(pictures), "--epochs", "10"])):
            found = results[name] = checkpoints(["fit", *argv], Path(root, name, "whole"))
            found["interruptions"] = []
            for number, after in enumerate((0.05, 0.4)):
                folder = Path(root, name, str(number))
                one = interruption(argv, folder, after)
                found["interruptions"].append(
                    {**one, "same_end": _end(folder) == _end(Path(root, name, "whole"))}
                )
            print(f"{name}: {found['checkpoints']} checkpoints of {found['median_ms']:.0f} ms "
                  f"(largest {found['largest_ms']:.0f} ms, {found['bytes']:,} bytes), "
                  f"{found['share_percent']:.2f} % of a run")  # fmt: skip
            for one in found["interruptions"]:
                print(
                    f"  ended after {one['seconds_to_end']:.2f} seconds, the same end: {one['same_end']}"
                )
    if args.out is not None:
        args.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
