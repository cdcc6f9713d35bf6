"""Score a trained network on labeled rows or images: the command `senn evaluate`."""

from __future__ import annotations

import json as json_text
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from senn.atomic_files import plain
from senn.cli.baselines import Guess, LinearModel
from senn.cli.score_lines import CONSTANT, LINEAR, confusion_lines, score_table
from senn.cli.scorer import Scorer, named_positive
from senn.cli.trained_rows import share_trained_on, trained_rows_note
from senn.data import TableEncoder, Target
from senn.data.images import ImageEncoder, collect_test, flat
from senn.data.tabular.target import labeled
from senn.errors import SennError
from senn.runs import RESULTS, complete, read, read_test
from senn.training.trained_run import TrainedRun, load_run


@dataclass(frozen=True, eq=False, kw_only=True)
class _LabeledRows:
    """Labeled rows or images.

    Attributes:
        target: what they are labeled with.
        x: (rows, features) inputs of a linear model.
        values: (rows, outputs) outputs of the network.
        truth: encoded targets.
    """

    target: Target
    x: NDArray[Any]
    values: NDArray[Any]
    truth: NDArray[Any]


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
        unit, rows = "image", _images(trained, trained.encoder, data)
    else:
        unit, rows = "row", _table(trained, trained.encoder, data)
    details = read_test(folder) or {}
    document = plain(_scored(rows, results, details, metric))
    kept = details.get("trained_on", "")
    document["share_trained_on"] = share_trained_on(kept, rows.x, rows.truth)
    for sentence in trained_rows_note(document["share_trained_on"], unit):
        print(f"senn: {sentence}", file=sys.stderr)
    count = len(rows.truth)
    if json:
        about = {"data": data, "rows": count, "run": str(folder)}
        print(json_text.dumps({**about, **document}, ensure_ascii=False))
        return 0
    said = f"{count:,} {unit}{'s' * (count != 1)}"
    labels = rows.target.labels
    print(
        "\n".join([*score_table(document, said), *confusion_lines(document["confusion"], labels)])
    )
    return 0


def _table(trained: TrainedRun, encoder: TableEncoder, data: str) -> _LabeledRows:
    """Compute outputs for the rows of a table that have a target, and their encoded targets."""
    target, table = encoder.target, encoder.read(data)
    if target.name not in table.frame.columns:
        raise SennError(
            f"{data!r} has no column {target.name!r}, the target, so nothing can be scored; 'senn predict' predicts it"
        )
    frame, unlabeled = labeled(table.frame, target.name, table.decimal)
    for sentence in [*table.notes, *unlabeled, *encoder.surprises(frame)]:
        print(f"senn: {sentence}", file=sys.stderr)
    truth = target.encode(frame[target.name])
    x, values = encoder.transform(frame), trained.row_outputs(frame)
    return _LabeledRows(target=target, x=x, values=values, truth=truth)


def _images(trained: TrainedRun, encoder: ImageEncoder, data: str) -> _LabeledRows:
    """Compute outputs for labeled images, and their classes."""
    target = Target(name="class", task="classification", labels=encoder.labels)
    images = collect_test(data, encoder.labels, encoder.side, encoder.channels).train
    x, truth = flat(images)
    return _LabeledRows(
        target=target, x=x, values=trained.pixel_outputs(images.pixels), truth=truth
    )


def _scored(
    rows: _LabeledRows,
    results: Mapping[str, Any],
    details: Mapping[str, Any],
    metric: str | None,
) -> dict[str, Any]:
    """Score outputs as `senn fit` does, beside the baselines of the run's training rows."""
    target, truth = rows.target, rows.truth
    positive = named_positive(results, target.labels)
    name = metric if metric is not None else results.get("metric")
    scorer = Scorer.with_positive(target, positive, name)
    predictions = scorer.predictions(rows.values)
    guesses = _guesses(target, rows.x.shape[1], results, details)
    return {
        "test": scorer.scores(predictions, truth),
        "intervals": scorer.intervals(predictions, truth),
        "baselines": scorer.baseline_scores(guesses, (rows.x, truth)),
        "confusion": scorer.confusion(predictions, truth),
        **scorer.record(),
    }


def _guesses(
    target: Target, features: int, results: Mapping[str, Any], details: Mapping[str, Any]
) -> dict[str, Guess]:
    """Return the baselines that the run has kept; of older runs a guess alone.

    Raises:
        SennError: they don't fit its network.
    """
    outputs = len(target.labels) or 1
    # Older runs have the classes' rows, test rows among them.
    counts = (results.get("data") or {}).get("class_rows")
    guess = details.get("constant")
    if guess is None and isinstance(counts, list):
        guess = [count / max(sum(counts), 1) for count in counts]
    if guess is None and not target.labels:
        guess = [0.0]
    linear = details.get("linear")
    shapes = [] if guess is None else [len(guess) == outputs]
    if linear is not None:
        weight = linear["weight"]
        shapes.append(len(weight) == features and len(linear["bias"]) == outputs)
        shapes.append(all(len(row) == outputs for row in weight))
    if not all(shapes):
        raise SennError("the run's baselines don't fit its network")
    found: dict[str, Guess] = {}
    if guess is not None:
        constant = np.asarray(guess, dtype=np.float64)[None]
        found[CONSTANT] = lambda x: np.repeat(constant, len(x), axis=0)
    if linear is not None:
        found[LINEAR] = LinearModel.from_dict(linear, is_classifier=bool(target.labels))
    return found
