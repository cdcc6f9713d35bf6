"""Score a recipe on all rows (`senn fit --cv`): a network from scratch for each fold, tested on that fold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from senn.cli.prepared_data import Prepared
from senn.cli.score_lines import scores_in_short
from senn.cli.signals import Signals
from senn.cli.workers import WorkerCheckpointer
from senn.collectives import Communicator
from senn.events.run_schema import CrossValidation, FoldRecord
from senn.training.progress import widths

Keep = Callable[[Sequence[FoldRecord]], None]


class FoldCheckpointer(WorkerCheckpointer):
    """Keep no state within a fold, and let signals end it: a finished fold is what is kept.

    Args:
        communicator: the processes that train together.
        signals: signals that ask the run to end.
    """

    def __init__(self, communicator: Communicator, signals: Signals) -> None:
        super().__init__(communicator, signals, None)

    def end(self) -> None:
        """Called when a fold's training ends; signals are still wanted, since others follow."""


def cross_validate(
    preparation: Prepared,
    done: Sequence[FoldRecord],
    communicator: Communicator,
    signals: Signals,
    *,
    keep: Keep = lambda folds: None,
    say: Callable[[str], None] = lambda line: None,
) -> list[FoldRecord]:
    """Train and score the folds that aren't done yet.

    Args:
        preparation: the data, with their folds.
        done: records of the first folds, from before an interruption.
        communicator: the processes that train together; each of them calls this.
        signals: that may ask the run to end.
        keep: takes the records of all finished folds after each of them.
        say: prints a line.

    Returns:
        Records of all folds; fewer if a signal came.
    """
    folds, count = list(done), len(preparation.folds)
    say(f"cross-validation: {count - len(folds)} networks from scratch, and then the run itself")
    for number in range(len(folds), count):
        part = preparation.fold(number)
        trained = part.train((), FoldCheckpointer(communicator, signals))
        if trained.interrupted:
            break
        scorer, (x, truth) = part.scorer, part.test_arrays()
        guesses = scorer.baselines(part.train_arrays(), part.latest)
        folds.append(
            {
                "train_rows": len(part.train_arrays()[0]),
                "test_rows": len(x),
                "test": scorer.scores(scorer.predictions(part.test_outputs(trained.model)), truth),
                "baselines": scorer.baseline_scores(guesses, (x, truth)),
                "architecture": list(trained.architecture),
                "parameters": trained.parameters,
                "best_epoch": trained.best_epoch,
                "seconds": trained.seconds,
            }
        )
        keep(folds)
        say(_line(number + 1, count, folds[-1]))
    return folds


def _line(number: int, count: int, fold: FoldRecord) -> str:
    return (
        f"fold {number} of {count}: {fold['train_rows']:,} rows to train on, {fold['test_rows']:,} for the test: "
        f"{scores_in_short(fold['test'])}; hidden layers {widths(fold['architecture'])}, {fold['seconds']:.1f} seconds"
    )


def summary(folds: Sequence[FoldRecord]) -> CrossValidation:
    """Compute means and standard deviations over the folds.

    Args:
        folds: records of all folds.

    Returns:
        The folds, `mean` and `spread` of each score and of the number of parameters, and the baselines' mean scores;
        None for a score that isn't defined in every fold.
    """
    figures = [{**fold["test"], "parameters": float(fold["parameters"])} for fold in folds]
    baselines = {
        name: _over_folds([fold["baselines"][name] for fold in folds], np.mean)
        for name in folds[0]["baselines"]
        if all(name in fold["baselines"] for fold in folds)
    }
    return {
        "folds": list(folds),
        "mean": _over_folds(figures, np.mean),
        "spread": _over_folds(figures, lambda values: np.std(values, ddof=1)),
        "baselines": baselines,
    }


def _over_folds(
    scores: Sequence[dict[str, float | None]], reduce: Callable[[list[float]], Any]
) -> dict[str, float | None]:
    found: dict[str, float | None] = {}
    for name in scores[0]:
        values = [value for one in scores if (value := one.get(name)) is not None]
        # A mean over the other folds would be that of easier ones.
        found[name] = float(reduce(values)) if len(values) == len(scores) else None
    return found
