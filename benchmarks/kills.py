"""Runs that are ended at random moments in every way, and resumed: is the network that of the undisturbed run?

    python benchmarks/kills.py --trials 40 --out benchmarks/results/kills.json

`senn fit` on a table, on images and in two processes is ended by SIGKILL, SIGTERM, SIGHUP, SIGINT or by a reader of its
output that goes away, at a moment drawn between its first record and its end; a moment that comes after the end is
drawn again. Then it is resumed. A trial is right if the weights, the description and the scores are equal to the last
bit. Of two processes a SIGKILL hits one, which is drawn, and any other signal both, as a terminal's does. A run whose
reader is gone goes on by itself.

Runs are forked from a process that has imported everything, so that moments are those of the work.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import random
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import senn.cli.fit
import senn.cli.fit_images
import senn.training.image_training
from senn.atomic_files import bytes_digest
from senn.cli.checkpointing import SECONDS as CHECKPOINT_SECONDS
from senn.cli.main import main as command
from senn.runs.saved_run import HISTORY

WAYS = ("SIGKILL", "SIGTERM", "SIGHUP", "SIGINT", "reader gone")
KINDS = ("table", "images", "two processes")
RANKS = {"table": 1, "images": 1, "two processes": 2}
PATIENCE = 300.0
"""Seconds after which a run hangs."""

Argv = list[str]


def write_images(folder: Path) -> Path:
    """Stripes of two kinds, as PNG files."""
    draw = np.random.default_rng(0)
    for kind in (0, 1):
        (folder / f"kind-{kind}").mkdir(parents=True)
        for number in range(100):
            pixels = np.zeros((8, 8), np.uint8)
            (pixels if kind else pixels.T)[draw.integers(8)] = 255
            Image.fromarray(pixels).save(folder / f"kind-{kind}" / f"{number}.png")
    return folder


def _out(argv: Argv) -> str:
    """Name of the folder that a command writes."""
    return argv[argv.index("--out" if "--out" in argv else "--resume") + 1]


class Run:
    """A run of `senn fit` in forked processes, the first of which writes to a pipe.

    Args:
        argv: of the command.
        ranks: number of processes.
        checkpoint_seconds: between two checkpoints.
    """

    def __init__(self, argv: Argv, ranks: int, checkpoint_seconds: str) -> None:
        self.out, into = os.pipe()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        many = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        self.processes: list[int] = []
        self.codes: dict[int, int] = {}
        for rank in range(ranks):
            own = {**many, "RANK": str(rank), "LOCAL_RANK": str(rank)} if ranks > 1 else {}
            process = os.fork()
            if process == 0:
                os.environ.update({**own, CHECKPOINT_SECONDS: checkpoint_seconds})
                self._work(argv, into)
            self.processes.append(process)
        os.close(into)

    def _work(self, argv: Argv, into: int) -> None:
        """Run the command, in a child."""
        code = 99
        try:
            os.close(self.out)
            for number in (1, 2):
                os.dup2(into, number)
            # what Python knows of its streams, as whether they can be rewound, is of the former ones
            sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
            code = command(argv)
            if "--out" in argv:
                Path(f"{_out(argv)}.modules").write_text("\n".join(sys.modules))
        except BaseException:
            Path(f"{_out(argv)}.error").write_text(traceback.format_exc())
        finally:
            os._exit(code)

    def disturb(self, way: str, victim: int) -> None:
        """End the run, or its reader."""
        if way == "reader gone":
            os.close(self.out)
            self.out = -1
            return
        number = signal.Signals[way]
        hit = [self.processes[victim]] if way == "SIGKILL" else self.processes
        for process in hit:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, number)

    def wait(self, until: float | None = None) -> list[int] | None:
        """Read what is printed until the processes have ended; their exit codes, or None if time is up before."""
        codes = self.codes
        while len(codes) < len(self.processes):
            if until is not None and time.monotonic() > until:
                return None
            self._drain()
            for process in self.processes:
                if process not in codes:
                    done, status = os.waitpid(process, os.WNOHANG)
                    codes |= {process: os.waitstatus_to_exitcode(status)} if done else {}
            time.sleep(0.005)
        if self.out >= 0:
            os.close(self.out)
            self.out = -1
        return [codes[process] for process in self.processes]

    def wait_for(self, begun: Path) -> list[int] | None:
        """Read what is printed until a file is there; the exit codes, if the processes have ended before."""
        until = time.monotonic() + PATIENCE
        while not begun.exists() and time.monotonic() < until:
            codes = self.wait(time.monotonic() + 0.01)
            if codes is not None:
                return codes
        return None

    def _drain(self) -> None:
        if self.out < 0:
            return
        os.set_blocking(self.out, False)
        with contextlib.suppress(BlockingIOError):
            while os.read(self.out, 1 << 16):
                pass

    def kill(self) -> None:
        """Kill what hangs."""
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(process, signal.SIGKILL)
                os.waitpid(process, 0)


def outcome(folder: Path) -> dict[str, Any] | None:
    """What a finished run comes to; None if it hasn't."""
    if not (folder / "results.json").exists():
        return None
    results = json.loads((folder / "results.json").read_text())
    names = ("model.json", "model.safetensors")
    files = {name: bytes_digest((folder / name).read_bytes()) for name in names}
    kept = {name: results[name] for name in ("test", "architecture", "best_epoch", "interrupted")}
    return {**files, **kept}


def undisturbed(argv: Argv, ranks: int, folder: Path) -> float:
    """Let a run come to its end; seconds between its first record and the end."""
    run = Run(["fit", *argv, "--out", str(folder)], ranks, "0.1")
    run.wait_for(folder / "unfinished" / HISTORY)
    began = time.monotonic()
    codes = run.wait(began + PATIENCE)
    assert codes == [0] * ranks, (
        codes,
        [path.read_text() for path in folder.parent.glob("*.error")],
    )
    return time.monotonic() - began


def trial(
    argv: Argv, ranks: int, folder: Path, *, way: str, after: float, victim: int
) -> tuple[str, bool]:
    """Disturb a run so many seconds after its first record, and let it go on.

    Returns:
        How it went, beginning with "hung" if it did; and whether it was still at work when it was disturbed.
    """
    run = Run(["fit", *argv, "--out", str(folder)], ranks, "0.1")
    codes = run.wait_for(folder / "unfinished" / HISTORY)
    if codes is None:
        codes = run.wait(time.monotonic() + after)
    if codes is not None or not (folder / "unfinished" / "run.json").exists():
        run.kill()
        return "had ended", False
    run.disturb(way, victim)
    codes = run.wait(time.monotonic() + PATIENCE)
    if codes is None:
        run.kill()
        return "hung when it was disturbed", True
    said = f"codes {codes}"
    found = outcome(folder)
    if found is not None and not found["interrupted"]:
        return f"{said}, done", True
    run = Run(["fit", "--resume", str(folder)], ranks, "100")
    last = run.wait(time.monotonic() + PATIENCE)
    if last is None:
        run.kill()
        return f"hung when it went on, after {said}", True
    return f"{said}, resumed with codes {last}", True


def measure(trials: int, seed: int, root: Path) -> dict[str, Any]:
    """Disturb so many runs.

    Args:
        trials: how many.
        seed: of the moments.
        root: empty folder to work in.

    Returns:
        How many were right, by kind and way, and the trials that weren't.
    """
    pictures = str(write_images(root / "pictures"))
    argvs = {
        "table": ["wine", "--epochs", "6", "--seed", "3"],
        "images": [pictures, "--epochs", "2"],
        "two processes": ["wine", "--epochs", "4", "--seed", "3"],
    }
    wholes, seconds = {}, {}
    undisturbed(argvs["images"], 1, root / "first")
    for name in (root / "first.modules").read_text().splitlines():
        with contextlib.suppress(Exception):
            importlib.import_module(name)  # what each run would import for itself
    for kind, argv in argvs.items():
        whole = root / f"whole-{kind.split()[0]}"
        seconds[kind] = undisturbed(argv, RANKS[kind], whole)
        wholes[kind] = outcome(whole)
        assert wholes[kind] is not None
    draw = random.Random(seed)
    right: Counter[str] = Counter()
    went: Counter[str] = Counter()
    wrong = []
    redrawn = number = 0
    while number < trials:
        kind, way = KINDS[number % len(KINDS)], WAYS[number % len(WAYS)]
        after, victim = draw.uniform(0, seconds[kind]), draw.randrange(RANKS[kind])
        folder = root / f"run-{number}-{redrawn}"
        said, is_hit = trial(argvs[kind], RANKS[kind], folder, way=way, after=after, victim=victim)
        print(f"{number}: {kind}, {way} after {after:.2f} s: {said}", flush=True)
        if not is_hit:
            redrawn += 1
            seconds[kind] = min(seconds[kind], after)
            continue
        went["resumed" if "resumed" in said else said.split(", ")[-1]] += 1
        if outcome(folder) == wholes[kind]:
            right[f"{kind}, {way}"] += 1
        else:
            errors = [path.read_text()[-300:] for path in root.glob(f"{folder.name}*.error")]
            wrong.append(f"{number}: {kind}, {way} after {after:.2f} s: {said} {errors}")
        number += 1
    return {
        "trials": trials,
        "seed": seed,
        "redrawn": redrawn,
        "right": sum(right.values()),
        "by_kind_and_way": dict(sorted(right.items())),
        "went": dict(went),
        "wrong": wrong,
        "seconds_of_training": {kind: round(value, 2) for kind, value in seconds.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    # It takes most of the time of runs as short as these, and has no part in what is compared.
    senn.cli.fit.growth_figure = lambda *_: None
    with tempfile.TemporaryDirectory() as root:
        results = measure(args.trials, args.seed, Path(root))
    print(
        f"{results['right']} of {results['trials']} end as the undisturbed run: {results['went']}"
    )
    print("\n".join(results["wrong"]))
    if args.out is not None:
        head = {"command": f"kills.py --trials {args.trials} --seed {args.seed}"}
        args.out.write_text(json.dumps({**head, **results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
