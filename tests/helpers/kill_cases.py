"""Runs `senn fit` in forked processes that are killed: a server with everything imported, so that a trial takes little.

Called as a script: `python kill_cases.py FOLDER`, with a line of JSON on standard input for each list of trials; it
answers each with one. PyTorch runs on one thread here, and the parent computes nothing, so that it can be forked. The
first trial is one that ends: the parent imports what it imported late.
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
from pathlib import Path

PACKAGES = ("surgery", "scoring", "kfac", "runs", "atomic_files.py", "training")


class Killer:
    """Counts the calls of functions in some packages of senn, and kills the process at one of them.

    A tracer that follows no function inside: it is told of calls alone, which costs a quarter of a profiler.
    """

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
    argv: list[str], killer: Killer | None = None, cwd: str = ".", closed: bool = False
) -> dict[str, object]:
    """A command in a process of its own; what it returned, how it was killed, and what it printed.

    With `closed` it has neither standard input nor output nor errors, nor files with their numbers.
    """
    out, into = os.pipe()
    process = os.fork()
    if process == 0:
        code = 99
        try:
            from senn.cli.main import main

            os.chdir(cwd)
            text = None if closed else io.StringIO()
            if closed:
                os.closerange(0, 3)
                sys.stdin = None
            sys.settrace(killer)
            with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
                code = main(argv)
            sys.settrace(None)
            counts = {} if killer is None else killer.counts
            told = {
                "counts": counts,
                "text": text.getvalue()[-3000:] if text else "",
                "modules": [*sys.modules],
            }
            with os.fdopen(into, "w") as pipe:
                json.dump(told, pipe)
        finally:
            os._exit(code)
    os.close(into)
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

    for name in ("torch._dynamo", "sklearn.datasets"):  # which runs import late
        importlib.import_module(name)
    torch.set_num_threads(1)
    os.environ["SENN_CHECKPOINT_SECONDS"] = "0"
    senn.cli.fit.growth_figure = lambda *_: None  # it would take most of the time
    for line in sys.stdin:
        print(json.dumps(answered(folder, json.loads(line))), flush=True)


def share(modules: list[str]) -> None:
    """Import what a trial imported late, once for all others."""
    if modules and not gc.get_freeze_count():
        for name in modules:
            with contextlib.suppress(Exception):
                importlib.import_module(name)
        gc.collect()
        gc.freeze()  # so that children needn't copy what they only count


def answered(folder: Path, trials: list[dict[str, object]]) -> list[dict[str, object]]:
    """What came of some trials."""
    results = []
    for trial in trials:
        place = folder / str(trial["place"])
        argv = ["fit", *trial["argv"], "--out", str(place), "--quiet"]
        killer = (
            Killer(trial.get("package", ""), trial.get("at", 0)) if "package" in trial else None
        )
        first = called(argv, killer, trial.get("cwd", "."), trial.get("closed", False))
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
            share(one.pop("modules", []))
        results.append({"first": first, "second": second, "left": left})
    return results


if __name__ == "__main__":
    main(Path(sys.argv[1]))
