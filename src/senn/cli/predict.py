"""Predict with a trained network on another table or other images: the command `senn predict`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from senn.cli.prediction_files import check_ending, write
from senn.data import TableEncoder
from senn.data.images import ImageEncoder
from senn.data.tabular.feature_columns import listed
from senn.errors import SennError
from senn.training.trained_run import TrainedRun, load_run, probabilities


def run(
    *,
    folder: Path,
    data: Sequence[str],
    proba: bool,
    keep: Sequence[str] | None,
    out: Path | None,
    encoding: str | None,
    decimal: Any,
) -> int:
    """Write predictions as a table.

    Args:
        folder: folder of the run.
        data: a table, or files and folders of images.
        proba: add the probability of each class.
        keep: columns of the table that stand before the predictions.
        out: file to write; None or "-" for standard output.
        encoding: character encoding of the table, if it isn't that of the training table.
        decimal: decimal mark of the table, if it isn't that of the training table.

    Returns:
        Exit code.

    Raises:
        SennError: the folder holds no network of `senn fit`, or the data don't fit it.
    """
    if out is not None:
        check_ending(out)
    trained = load_run(folder)
    if isinstance(trained.encoder, ImageEncoder):
        for option, value in (("--keep", keep), ("--encoding", encoding), ("--decimal", decimal)):
            if value is not None:
                raise SennError(
                    f"{option} is for tables, and the model in {str(folder)!r} is for images"
                )
        frame = _predict_images(trained, trained.encoder, data, proba)
    else:
        if len(data) > 1:
            raise SennError(
                f"the model in {str(folder)!r} predicts the rows of one table, not of {len(data)}"
            )
        rows = _read(trained.encoder, data[0], keep or (), encoding, decimal)
        frame = _predict_rows(trained, trained.encoder, rows, keep or (), proba)
    # Written only when all rows are predicted, so that no part of a file is left by an error.
    write(frame, out)
    return 0


def _read(
    encoder: TableEncoder, source: str, keep: Sequence[str], encoding: str | None, decimal: Any
) -> pd.DataFrame:
    """Read a table as in training, and say what it has that training never saw."""
    table = encoder.read(source, text=keep, encoding=encoding, decimal=decimal)
    absent = [name for name in keep if name not in table.frame.columns]
    if absent:
        raise SennError(
            f"there is no column {absent[0]!r} to keep; the table has {listed(table.frame.columns)}"
        )
    for sentence in [*table.notes, *encoder.surprises(table.frame)]:
        print(f"senn: {sentence}", file=sys.stderr)
    return table.frame


def _predict_rows(
    trained: TrainedRun,
    encoder: TableEncoder,
    rows: pd.DataFrame,
    keep: Sequence[str],
    proba: bool,
) -> pd.DataFrame:
    """Predict the rows of a table, in their order."""
    target = encoder.target
    if proba and target.task != "classification":
        raise SennError(f"--proba is for classes, and {target.name!r} is a number")
    outputs = trained.row_outputs(rows)
    columns = {name: rows[name].reset_index(drop=True) for name in keep}
    added = _columns(target.decode(outputs), target.labels, outputs, proba)
    clash = [name for name in added if name in columns]
    if clash:
        raise SennError(f"column {clash[0]!r} can't be kept: the predictions have that name")
    return pd.DataFrame(columns | added)


def _predict_images(
    trained: TrainedRun, encoder: ImageEncoder, sources: Sequence[str], proba: bool
) -> pd.DataFrame:
    """Predict the classes of images; files that can't be read are named on stderr."""
    names: list[str] = []
    parts: list[NDArray[np.float64]] = []
    reasons: list[str] = []
    for found, pixels, left_out in encoder.read(sources):
        names += found
        reasons += [one.reason for one in left_out]
        if found:
            parts.append(trained.pixel_outputs(pixels))
    if not names:
        raise SennError(f"no image can be read: {reasons[0]}")
    if reasons:
        images = f"{len(reasons):,} image{'s' * (len(reasons) > 1)}"
        print(f"senn: left out {images} that can't be read:", file=sys.stderr)
        print("\n".join(f"senn: {' '.join(reason.split())}" for reason in reasons), file=sys.stderr)
    outputs = np.concatenate(parts)
    columns = {"file": pd.Series(names, dtype=object)}
    return pd.DataFrame(columns | _columns(trained.decode(outputs), encoder.labels, outputs, proba))


def _columns(
    answers: list[Any], labels: Sequence[Any], outputs: NDArray[np.float64], proba: bool
) -> dict[str, pd.Series[Any]]:
    """Return the columns of predictions and, if asked for, of probabilities."""
    columns = {"prediction": pd.Series(answers, dtype=object)}
    if proba:
        # In float64, so that probabilities of many classes add up to one.
        chances = probabilities(outputs)
        columns |= {
            f"probability {label}": pd.Series(chances[:, at]) for at, label in enumerate(labels)
        }
    return columns
