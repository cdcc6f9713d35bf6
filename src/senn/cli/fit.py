"""`senn fit`: train a network on a table and write a folder that says all about it."""

from __future__ import annotations

import argparse
import json
import platform
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from senn import __version__
from senn.cli.folder import FIGURE, HISTORY, RESULTS, OutputFolder, plain
from senn.cli.main import EXIT_INTERRUPTED
from senn.cli.metrics import metrics
from senn.cli.preparation import Preparation, prepare
from senn.cli.progress import LinesCallback, LiveCallback, figure, widths
from senn.persistence import DESCRIPTION, WEIGHTS, save
from senn.plots import growth_figure
from senn.training import Run, train


def run(args: argparse.Namespace) -> int:
    """Carry the command out."""
    console = Console(file=sys.stdout, quiet=args.quiet or args.json, highlight=False)
    say = _Speaker(console)
    preparation = prepare(args)
    if args.dry_run:
        _show_plan(say, args, preparation)
        return 0
    out: Path = args.out or Path("runs") / preparation.table.name
    with OutputFolder(out, args.overwrite) as folder, _one_interruption() as no_more:
        say(_data_line(preparation))
        for note in preparation.encoder.notes:
            say(f"note: {note}")
        trained = _train(preparation, console)
        no_more()  # writing takes a moment only
        results = _results(preparation, trained)
        _write(folder, preparation, trained, results)
        folder.publish()
    _conclude(say, args, out, results)
    if trained.interrupted:
        print("senn: interrupted; the best network so far is kept", file=sys.stderr)
    return EXIT_INTERRUPTED if trained.interrupted else 0


@contextmanager
def _one_interruption() -> Iterator[Callable[[], None]]:
    """Ctrl-C and the like interrupt once: a second one must not cost the network that the first one saves.

    Gives a function after whose call there is no interruption any more.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def no_more() -> None:
        for number in handlers:
            signal.signal(number, signal.SIG_IGN)

    def interrupt(number: int, frame: object) -> None:
        no_more()
        raise KeyboardInterrupt

    try:
        for number in handlers:
            signal.signal(number, interrupt)
        yield no_more
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


class _Speaker:
    """Prints plain lines, as they are."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def __call__(self, line: str) -> None:
        self.console.print(line, markup=False, soft_wrap=True)


def _train(preparation: Preparation, console: Console) -> Run:
    target = preparation.encoder.target
    callback = LiveCallback(console) if console.is_terminal and not console.quiet else LinesCallback(console)
    try:
        return train(
            preparation.x,
            preparation.y,
            task=target.task,
            outputs=target.outputs,
            recipe=preparation.recipe,
            callbacks=(callback,),
        )
    finally:
        if isinstance(callback, LiveCallback):
            callback.stop()


def _data_line(preparation: Preparation) -> str:
    about = preparation.summary()
    what = f"{len(about['classes'])} classes" if about["classes"] else "a number"
    return (
        f"{about['name']}: {about['rows']:,} rows ({about['train_rows']:,} to train on, {about['test_rows']:,} for the "
        f"test), {about['features']:,} features, target {about['target']!r} ({what})"
    )


def _results(preparation: Preparation, trained: Run) -> dict[str, Any]:
    """The content of results.json."""
    recipe = preparation.recipe
    packages = ("torch", "numpy", "pandas", "scikit-learn")
    results = {
        "task": preparation.encoder.target.task,
        "seed": recipe.seed,
        "optimizer": recipe.optimizer,
        "policy": repr(recipe.policy),
        "architecture": list(trained.architecture),
        "parameters": trained.parameters,
        "seconds": trained.seconds,
        "best_epoch": trained.best_epoch,
        "interrupted": trained.interrupted,
        "test": metrics(trained.model, preparation.encoder.target, preparation.x_test, preparation.y_test),
        "validation": trained.validation,
        "growth_events": sum(record["event"] == "growth" for record in trained.history),
        "data": preparation.summary(),
        "versions": {
            "senn": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in packages},
        },
    }
    return {key: plain(value) for key, value in results.items()}


def _write(folder: OutputFolder, preparation: Preparation, trained: Run, results: dict[str, Any]) -> None:
    save(folder.draft, trained.model, {"encoder": preparation.encoder.to_dict()})
    folder.write_lines(HISTORY, trained.history)
    growth_figure(trained.history, folder.draft / FIGURE, preparation.recipe.hidden)
    folder.write_json(RESULTS, results)


def _conclude(say: _Speaker, args: argparse.Namespace, out: Path, results: dict[str, Any]) -> None:
    if args.json:
        print(json.dumps({"out": str(out), **results}, ensure_ascii=False))
        return
    scores = ", ".join(f"{name} {figure(value, 4)}" for name, value in results["test"].items())
    say(f"test: {scores}")
    say(
        f"hidden layers: {widths(results['architecture'])}; {results['parameters']:,} parameters; "
        f"{results['seconds']:.1f} seconds"
    )
    say(f"written to {out}: {WEIGHTS}, {DESCRIPTION}, {HISTORY}, {RESULTS}, {FIGURE}")


def _show_plan(say: _Speaker, args: argparse.Namespace, preparation: Preparation) -> None:
    about, plan = preparation.summary(), preparation.plan()
    task = preparation.encoder.target.task
    if args.json:
        print(json.dumps({"task": task, "data": about, "plan": plan}, ensure_ascii=False))
        return
    say(_data_line(preparation))
    kinds = np.asarray(list(about["columns"].values()))
    for kind in sorted(set(kinds)):
        names = [name for name, other in about["columns"].items() if other == kind]
        more = f" and {len(names) - 8:,} more" if len(names) > 8 else ""
        say(f"  {kind}: {', '.join(names[:8])}{more}")
    for note in about["notes"]:
        say(f"  note: {note}")
    say(f"of the training rows, {plan['fitted_rows']:,} to fit, {plan['validation_rows']:,} for validation")
    say(
        f"{task}, {plan['optimizer']}, {plan['policy']}: at most {plan['epochs']} epochs ({plan['steps']:,} steps), "
        f"growing until step {plan['growth_until_step']:,} at the latest"
    )
    say(
        f"starts with hidden layers {widths(plan['architecture'])}, {plan['parameters']:,} parameters; a unit more has "
        f"{plan['parameters_per_unit']:,} parameters and must promise {plan['price_per_unit']:.3g} nats per sample"
    )
    say("nothing was written (--dry-run)")
