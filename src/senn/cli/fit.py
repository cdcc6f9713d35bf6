"""Train a network on a table or on images, and write its folder: the command `senn fit`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from senn.checkpoint import save
from senn.cli import terminal
from senn.cli.checkpointing import FolderCheckpointer
from senn.cli.cross_validation import cross_validate
from senn.cli.fit_arguments import FitArguments
from senn.cli.fit_images import prepare_images
from senn.cli.fit_results import run_results, test_record, versions
from senn.cli.fit_table import prepare
from senn.cli.fit_text import LinePrinter, report_outcome, show_plan
from senn.cli.prepared_data import Prepared
from senn.cli.signals import Signals
from senn.cli.terminal import outliving_readers
from senn.cli.watch import watching
from senn.cli.workers import WorkerCheckpointer, processes, shared_state
from senn.collectives import Communicator
from senn.data.images import is_images
from senn.errors import SennError
from senn.events.run_schema import TestDetails
from senn.runs import FIGURE, FitOptions, RunFolder, read_start
from senn.training import TrainResult
from senn.training.callbacks import Callback
from senn.training.progress import LinesCallback, LiveCallback
from senn.training.round_records import Record, first_line
from senn.training.threads import resumed_number, saved_number

if TYPE_CHECKING:
    from rich.console import Console

FINISH_SECONDS = 1.5
"""Seconds after a signal within which the figure must be drawn, or is left out.

Writing the network takes a moment more, so that a run that is asked to end has ended within two seconds.
"""


def run(**parsed: Any) -> int:
    """Train a network.

    Args:
        **parsed: arguments of the command that were given.

    Returns:
        Exit code: 0, or 128 plus the number of the signal that ended the run.

    Raises:
        SennError: the data or an option is wrong, or the folder can't be written.
    """
    arguments = FitArguments.from_parsed(parsed)
    with processes() as communicator:
        if communicator.rank == 0:
            # A dry run has nothing to give but its lines.
            with nullcontext() if arguments.dry_run else outliving_readers():
                return _run_main(arguments, communicator)
        return _run_worker(arguments, communicator)


def _run_worker(arguments: FitArguments, communicator: Communicator) -> int:
    """Train together with the first process, without printing or writing anything."""
    try:
        # Nothing to do here, but the first process meets all others at each of its blocks.
        with communicator.fail_together("read the run"):
            pass
        with communicator.fail_together("begin"):
            options, _ = arguments.options()
            is_idle = options is None or arguments.dry_run
            preparation = (
                None if options is None or is_idle else _prepare(options, arguments.resume)
            )
        if preparation is None:
            return 0
        with communicator.fail_together("open the folder"):
            pass
    except SennError:
        return 2  # the first process prints why
    with Signals() as signals:
        checkpointer = WorkerCheckpointer(
            communicator,
            signals,
            shared_state(communicator, None, arguments.resume or arguments.out or Path()),
        )
        with signals.between_steps(communicator):
            if preparation.folds:
                done = communicator.broadcast_object("cross-validate", None)
                folds = cross_validate(preparation, done, communicator, signals)
                if len(folds) < len(preparation.folds):
                    return signals.code
            trained = preparation.train((), checkpointer)
        signals.ignore_further()
    return signals.code if trained.interrupted else 0


def _run_main(arguments: FitArguments, communicator: Communicator) -> int:
    """Run the command in one process, or in the first of several."""
    with communicator.fail_together("read the run"):
        options, saved = arguments.options()
    with communicator.fail_together("begin"):
        preparation = None if options is None else _prepare(options, arguments.resume)
    console = terminal.console(quiet=arguments.is_silent)
    say = LinePrinter(console)
    if options is None or preparation is None:
        assert saved is not None
        assert saved.results is not None
        say(f"the run in {saved.path} is complete")
        if arguments.json:
            print(json.dumps({"out": str(saved.path), **saved.results}, ensure_ascii=False))
        return 0
    if arguments.dry_run:
        show_plan(say, preparation, as_json=arguments.json)
        return 0
    out = arguments.resume or arguments.out or Path("runs") / preparation.name
    with Signals() as signals, ExitStack() as stack:
        with communicator.fail_together("open the folder"):
            folder = stack.enter_context(
                RunFolder(out, overwrite=arguments.overwrite, resume=saved is not None)
            )
            checkpointer = _open_run(
                folder, signals, options, preparation, is_resumed=saved is not None
            )
        # Only the first process can read the folder: the others get the state from it.
        checkpointer.communicator = communicator
        checkpointer.state = shared_state(communicator, checkpointer.state, out)
        say(preparation.line())
        for note in [*preparation.notes, *checkpointer.notes]:
            say(f"note: {note}")
        folds = _folds(preparation, folder, signals, communicator, say)
        if len(folds) < len(preparation.folds):
            _tell_unfinished_folds(out, len(folds), len(preparation.folds))
            return signals.code
        earlier = (checkpointer.state or {}).get("history", ())
        with (
            signals.between_steps(communicator),
            watching(arguments, preparation.name, say, earlier) as watch,
        ):
            trained = _train(preparation, console, checkpointer, watch)
        # A signal after the last step leaves no time for all that comes then, such as the test.
        trained = replace(trained, interrupted=trained.interrupted or signals.stopping)
        # The network is final now, so a signal has nothing left to save.
        signals.ignore_further()  # writing takes a moment only
        with _damage_in_one_sentence(checkpointer):
            scores, details = test_record(preparation, trained.model, signals)
        results = run_results(preparation, trained, scores, folds)
        # An interrupted run must not replace one that came to its end: its checkpoints stay beside it.
        written = not (trained.interrupted and folder.replaces_another)
        if written:
            _write(folder, signals, preparation, trained, (results, details))
            folder.publish(keep=trained.interrupted)
    if written:
        report_outcome(say, out, results, as_json=arguments.json)
    if trained.interrupted:
        outcome = f"{out} still holds the earlier run"
        if written:
            outcome = "the best network so far is saved"
        print(f"senn: interrupted; {outcome}; to resume: senn fit --resume {out}", file=sys.stderr)
    return signals.code if trained.interrupted else 0


def _folds(
    preparation: Prepared,
    folder: RunFolder,
    signals: Signals,
    communicator: Communicator,
    say: LinePrinter,
) -> list[Any]:
    """Cross-validate if that is asked for; fewer folds than wanted if a signal came."""
    if not preparation.folds:
        return []
    done: list[Any] = folder.folds()
    communicator.broadcast_object("cross-validate", done)
    if done:
        say(f"{len(done)} of {len(preparation.folds)} folds are finished")

    def keep(folds: Sequence[Any]) -> None:
        done[:] = folds
        with signals.deferred():
            folder.save_folds(folds)

    try:
        with signals.between_steps(communicator):
            return cross_validate(preparation, done, communicator, signals, keep=keep, say=say)
    except KeyboardInterrupt:  # in a step or in a score that takes long
        return done


def _tell_unfinished_folds(out: Path, finished: int, count: int) -> None:
    outcome = "nothing is kept"
    if finished:
        outcome = f"{finished} of {count} folds are kept; to resume: senn fit --resume {out}"
    print(f"senn: interrupted; {outcome}", file=sys.stderr)


def growth_figure(history: Sequence[Record], path: Path, start: Sequence[int]) -> None:
    """Draw the history of a run; matplotlib is imported now, so that nobody waits for it at the start.

    Args:
        history: the records.
        path: the figure's file.
        start: widths of the hidden layers before training.
    """
    from senn.viz.plots import growth_figure as draw

    draw(history, path, start)


def _open_run(
    folder: RunFolder,
    signals: Signals,
    options: FitOptions,
    preparation: Prepared,
    *,
    is_resumed: bool,
) -> FolderCheckpointer:
    """Note a new run in its folder, or check a resumed one, and return its checkpointer."""
    about = {
        "data": preparation.digest(),
        "versions": versions(),
        # Sums are split among threads, so another number of them changes the last digits.
        "threads": torch.get_num_threads(),
    }
    if not is_resumed:
        # It may be resumed from another working directory.
        folder.begin(options.with_absolute_paths(), **about)
        return FolderCheckpointer(folder, signals)
    if folder.about.get("data") != about["data"]:
        raise SennError(
            f"the data of the run in {str(folder.path)!r} have changed since, so it can't be resumed"
        )
    checkpointer = FolderCheckpointer(folder, signals, resume=True)
    saved = (checkpointer.state or {}).get("threads")
    began = {**folder.about, **({} if saved is None else {"threads": saved_number(saved)})}
    about["threads"] = resumed_number(saved, options.threads)
    for name in ("versions", "threads"):
        if about[name] != began.get(name):
            checkpointer.notes.append(
                f"{name} have changed since the beginning, so the last digits may differ from now on"
            )
    return checkpointer


def _prepare(options: FitOptions, resumed: Path | None) -> Prepared:
    if is_images(options.data):
        return prepare_images(options)
    return prepare(options, begun_with=None if resumed is None else read_start(resumed))


@contextmanager
def _damage_in_one_sentence(checkpointer: FolderCheckpointer) -> Iterator[None]:
    """Turn whatever a forged or damaged checkpoint raises into one sentence."""
    try:
        yield
    except (TypeError, KeyError, ValueError, IndexError, AttributeError, RuntimeError) as error:
        several = not checkpointer.communicator.is_single
        if isinstance(error, SennError) and several and checkpointer.folder.has_checkpoint:
            # Another process was lost, which is no fault of the run.
            raise type(error)(
                f"{error}; to resume: senn fit --resume {checkpointer.folder.path}"
            ) from error
        # Without a checkpoint such an error is a fault of senn's, whose traceback is wanted.
        if checkpointer.state is None or isinstance(error, SennError):
            raise
        # A checkpoint with a right checksum can still be forged, and hold anything.
        what = f"{type(error).__name__}: {first_line(error)}"
        raise SennError(f"the run can't be resumed from its checkpoint: {what}") from error


def _train(
    preparation: Prepared,
    console: Console,
    checkpointer: FolderCheckpointer,
    watch: Sequence[Callback],
) -> TrainResult:
    # Without a terminal, as in a log file, a bar that redraws itself would be noise.
    is_live = console.is_terminal and not console.quiet
    callback = LiveCallback(console) if is_live else LinesCallback(console)
    try:
        with _damage_in_one_sentence(checkpointer):
            return preparation.train((callback, *watch), checkpointer)
    finally:
        if isinstance(callback, LiveCallback):
            callback.stop()


def _write(
    folder: RunFolder,
    signals: Signals,
    preparation: Prepared,
    trained: TrainResult,
    scores: tuple[dict[str, Any], TestDetails | None],
) -> None:
    # The figure is drawn after all that matters is written, and may be left out; the results come last,
    # since they hold the checksums of the other files.
    save(folder.draft, trained.model, {"encoder": preparation.record()})
    folder.write_history(trained.history)
    results, details = scores
    if details is not None:
        folder.write_test(details)

    def draw() -> bool:
        growth_figure(trained.history, folder.draft / FIGURE, preparation.start)
        return True

    if not signals.run_interruptible(FINISH_SECONDS, draw, False):
        # Given up midway it may be half a PNG, and results.json would vouch for it with a checksum.
        (folder.draft / FIGURE).unlink(missing_ok=True)
    folder.write_results(results)
