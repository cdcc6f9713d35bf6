"""Score a trained network on labeled rows or images: the command `senn evaluate`."""

from __future__ import annotations

import json as json_text
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from senn.atomic_files import plain
from senn.cli.score_lines import CONSTANT, confusion_lines, score_table
from senn.cli.scorer import Scorer, named_positive
from senn.data import TableEncoder, Target
from senn.data.images import ImageEncoder, collect_test
from senn.data.tabular.target import labeled
from senn.errors import SennError
from senn.runs import RESULTS, complete, read
from senn.training.trained_run import TrainedRun, load_run

Scored = tuple[Target, NDArray[Any], NDArray[Any]]
"""A target, outputs of a network (rows, outputs), and the encoded truth."""


def run(*, folder: Path, data: str, metric: str | None, json: bool) -> int:
    """Print the scores of a run's network on other rows.

    Args:
        folder: folder of the run.
        data: a table with the run's target, or a folder of images with a subfolder for each class.
        metric: name of a further score of scikit-learn's; None for that of the run, if any.
        json: print the scores as one JSON document instead.

    Returns:
        Exit code.

    Raises:
        SennError: the folder holds no network of `senn fit`, or the data don't fit it.
    """
    trained = load_run(folder)
    results: dict[str, Any] = {}
    if (complete(folder) / RESULTS).exists():
        results = read(folder).results or {}
    if isinstance(trained.encoder, ImageEncoder):
        unit, (target, values, truth) = "image", _images(trained, trained.encoder, data)
    else:
        unit, (target, values, truth) = "row", _table(trained, trained.encoder, data)
    document = plain(_scored(target, values, truth, results, metric))
    rows = f"{len(truth):,} {unit}{'s' * (len(truth) != 1)}"
    if json:
        about = {"data": data, "rows": len(truth), "run": str(folder)}
        print(json_text.dumps({**about, **document}, ensure_ascii=False))
        return 0
    lines = [*score_table(document, rows), *confusion_lines(document["confusion"], target.labels)]
    print("\n".join(lines))
    return 0


def _table(trained: TrainedRun, encoder: TableEncoder, data: str) -> Scored:
    """Compute outputs for the rows of a table that have a target, and their encoded targets."""
    target, table = encoder.target, encoder.read(data)
    if target.name not in table.frame.columns:
        raise SennError(
            f"{data!r} has no column {target.name!r}, the target, so nothing can be scored; 'senn predict' predicts it"
        )
    frame, unlabeled = labeled(table.frame, target.name, table.decimal)
    for sentence in [*table.notes, *unlabeled, *encoder.surprises(frame)]:
        print(f"senn: {sentence}", file=sys.stderr)
    return target, trained.row_outputs(frame), target.encode(frame[target.name])


def _images(trained: TrainedRun, encoder: ImageEncoder, data: str) -> Scored:
    """Compute outputs for labeled images, and their classes."""
    target = Target(name="class", task="classification", labels=encoder.labels)
    images = collect_test(data, encoder.labels, encoder.side, encoder.channels).train
    return target, trained.pixel_outputs(images.pixels), np.asarray(images.labels)


def _scored(
    target: Target,
    values: NDArray[Any],
    truth: NDArray[Any],
    results: dict[str, Any],
    metric: str | None,
) -> dict[str, Any]:
    """Score outputs as `senn fit` does, beside the guess of the run's most frequent class or mean."""
    positive = named_positive(results, target.labels)
    name = metric if metric is not None else results.get("metric")
    scorer = Scorer.with_positive(target, positive, name)
    predictions = scorer.predictions(values)
    guess = np.zeros((1, 1))
    counts = (results.get("data") or {}).get("class_rows")
    baselines = {}
    if target.task == "classification" and isinstance(counts, list):
        guess = np.asarray(counts, dtype=np.float64)[None] / max(sum(counts), 1)
    if target.task == "regression" or guess.shape[1] == len(target.labels):
        baselines[CONSTANT] = scorer.scores(np.repeat(guess, len(truth), axis=0), truth)
    return {
        "test": scorer.scores(predictions, truth),
        "intervals": scorer.intervals(predictions, truth),
        "baselines": baselines,
        "confusion": scorer.confusion(predictions, truth),
        **scorer.record(),
    }
