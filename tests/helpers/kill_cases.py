"""Runs `senn fit` in forked processes that are killed: a server with everything imported, so that a trial takes little.

Called as a script: `python kill_cases.py FOLDER`, with the trials as JSON on standard input; prints JSON. PyTorch runs
on one thread here, and the parent computes nothing, so that it can be forked.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import io
import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

PACKAGES = ("surgery", "scoring", "kfac", "runs", "atomic_files.py", "training")


class Killer:
    """Counts the calls of functions in some packages of senn, and kills the process at one of them."""

    def __init__(self, package: str = "", at: int = 0) -> None:
        self.package, self.at = package, at
        self.counts = dict.fromkeys(PACKAGES, 0)
        self._known: dict[str, str] = {}

    def __call__(self, frame, event, argument) -> None:
        if event != "call":
            return
        package = self._known.get(name := frame.f_code.co_filename)
        if package is None:
            inside = name.rpartition(f"{os.sep}senn{os.sep}")[2].split(os.sep)[0]
            package = self._known[name] = inside if inside in PACKAGES else ""
        if package:
            self.counts[package] += 1
            if package == self.package and self.counts[package] == self.at:
                os.kill(os.getpid(), signal.SIGKILL)


def called(
    argv: list[str], killer: Killer | None = None, after: float | None = None
) -> dict[str, object]:
    """A command in a process of its own; what it returned, how it was killed, and what it printed."""
    out, into = os.pipe()
    process = os.fork()
    if process == 0:
        code = 99
        try:
            from senn.cli.main import main

            text = io.StringIO()
            sys.setprofile(killer)
            with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
                code = main(argv)
            sys.setprofile(None)
            counts = {} if killer is None else killer.counts
            told = {
                "counts": counts,
                "text": text.getvalue()[-3000:],
                "modules": [*sys.modules] if after is None else [],
            }
            with os.fdopen(into, "w") as pipe:
                json.dump(told, pipe)
        finally:
            os._exit(code)
    os.close(into)
    if after is not None:
        time.sleep(after)
        os.kill(process, signal.SIGKILL)
    with os.fdopen(out, "rb") as pipe:
        written = pipe.read()
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    told = json.loads(written) if code >= 0 else {"counts": {}, "text": "", "modules": []}
    return {**told, "code": code}


def main(folder: Path) -> None:
    """Carry the trials out."""
    import torch

    import senn.cli.fit
    import senn.cli.fit_images
    import senn.training.image_training

    torch.set_num_threads(1)
    os.environ["SENN_CHECKPOINT_SECONDS"] = "0"
    with tempfile.TemporaryDirectory() as aside:
        for name in called(["fit", "wine", "--epochs", "9", "--quiet", "--out", f"{aside}/run"])[
            "modules"
        ]:
            with contextlib.suppress(Exception):  # what is imported late, once for all trials
                importlib.import_module(name)
    gc.collect()
    gc.freeze()  # so that children needn't copy what they only count
    senn.cli.fit.growth_figure = lambda *_: None  # it would take most of the time
    results = []
    for number, trial in enumerate(json.load(sys.stdin)):
        place = folder / str(number)
        argv = ["fit", *trial["argv"], "--out", str(place), "--quiet"]
        killer = (
            Killer(trial.get("package", ""), trial.get("at", 0)) if "package" in trial else None
        )
        first = called(argv, killer, trial.get("after"))
        left = (
            sorted(entry.name for entry in (place / "unfinished").glob("*"))
            if place.exists()
            else None
        )
        begun = (place / "unfinished" / "run.json").exists()
        second = None
        if trial.get("resume"):
            os.environ["SENN_CHECKPOINT_SECONDS"] = "100"
            second = called(
                ["fit", "--resume", str(place), "--quiet"] if begun else [*argv, "--overwrite"]
            )
        os.environ["SENN_CHECKPOINT_SECONDS"] = "0"
        for one in (first, second or {}):
            one.pop("modules", None)
        results.append({"first": first, "second": second, "left": left})
    print(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
