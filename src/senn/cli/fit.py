"""`senn fit`: train a network on a table or on images and write a folder that says all about it."""

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

from rich.console import Console

from senn import __version__
from senn.cli.folder import FIGURE, HISTORY, RESULTS, OutputFolder, plain
from senn.cli.images import prepare_images
from senn.cli.main import EXIT_INTERRUPTED
from senn.cli.preparation import Prepared, prepare
from senn.cli.progress import LinesCallback, LiveCallback, figure, widths
from senn.data.images import is_images
from senn.persistence import DESCRIPTION, WEIGHTS, save
from senn.plots import growth_figure
from senn.training import Run
from senn.training.callbacks import Callback


def run(args: argparse.Namespace) -> int:
    """Carry the command out."""
    console = Console(file=sys.stdout, quiet=args.quiet or args.json, highlight=False)
    say = _Speaker(console)
    preparation = _prepare(args)
    if args.dry_run:
        _show_plan(say, args, preparation)
        return 0
    out: Path = args.out or Path("runs") / preparation.name
    with OutputFolder(out, args.overwrite) as folder, _one_interruption() as no_more:
        say(preparation.line())
        for note in preparation.notes:
            say(f"note: {note}")
        with _watched(args, preparation.name, say) as watching:
            trained = _train(preparation, console, watching)
        no_more()  # writing takes a moment only
        results = _results(preparation, trained)
        _write(folder, preparation, trained, results)
        folder.publish()
    _conclude(say, args, out, results)
    if trained.interrupted:
        print("senn: interrupted; the best network so far is kept", file=sys.stderr)
    return EXIT_INTERRUPTED if trained.interrupted else 0


@contextmanager
def _watched(args: argparse.Namespace, name: str, say: _Speaker) -> Iterator[tuple[Callback, ...]]:
    """What shows the run in a browser while it goes on, if that is asked for."""
    if not args.watch:
        yield ()
        return
    from senn.cli.watch import Watch

    def aloud(line: str) -> None:  # whoever asks for it must learn where it is
        print(line, file=sys.stderr) if say.console.quiet else say(line)

    with Watch(name, args.port, aloud) as watch:
        yield (watch,)


def _prepare(args: argparse.Namespace) -> Prepared:
    return prepare_images(args) if is_images(args.data) else prepare(args)


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


def _train(preparation: Prepared, console: Console, watching: tuple[Callback, ...]) -> Run:
    callback = LiveCallback(console) if console.is_terminal and not console.quiet else LinesCallback(console)
    try:
        return preparation.train((callback, *watching))
    finally:
        if isinstance(callback, LiveCallback):
            callback.stop()


def _results(preparation: Prepared, trained: Run) -> dict[str, Any]:
    """The content of results.json."""
    recipe = preparation.recipe
    packages = ("torch", "numpy", "pandas", "scikit-learn")
    results = {
        "task": preparation.task,
        "seed": recipe.seed,
        "optimizer": recipe.optimizer,
        "policy": repr(recipe.policy),
        "architecture": list(trained.architecture),
        "parameters": trained.parameters,
        "seconds": trained.seconds,
        "best_epoch": trained.best_epoch,
        "interrupted": trained.interrupted,
        "test": preparation.test(trained.model),
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


def _write(folder: OutputFolder, preparation: Prepared, trained: Run, results: dict[str, Any]) -> None:
    save(folder.draft, trained.model, {"encoder": preparation.record()})
    folder.write_lines(HISTORY, trained.history)
    growth_figure(trained.history, folder.draft / FIGURE, preparation.start)
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


def _show_plan(say: _Speaker, args: argparse.Namespace, preparation: Prepared) -> None:
    about, plan = preparation.summary(), preparation.plan()
    if args.json:
        print(json.dumps({"task": preparation.task, "data": about, "plan": plan}, ensure_ascii=False))
        return
    say(preparation.line())
    for line in preparation.details():
        say(f"  {line}")
    for note in preparation.notes:
        say(f"  note: {note}")
    say(f"of the training rows, {plan['fitted_rows']:,} to fit, {plan['validation_rows']:,} for validation")
    say(
        f"{preparation.task}, {plan['optimizer']}, {plan['policy']}: at most {plan['epochs']} epochs "
        f"({plan['steps']:,} steps), growing until step {plan['growth_until_step']:,} at the latest"
    )
    unit = f"{'up to ' if about.get('kind') == 'images' else ''}{plan['parameters_per_unit']:,} parameters"
    say(
        f"starts with hidden layers {widths(plan['architecture'])}, {plan['parameters']:,} parameters; a unit more has "
        f"{unit} and must promise {plan['price_per_unit']:.3g} nats per sample"
    )
    say("nothing was written (--dry-run)")
