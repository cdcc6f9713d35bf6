"""Predict with a trained network on another table or other images: the command `senn predict`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pandas as pd
import torch
from torch import nn

from senn.atomic_files import encoded
from senn.cli.fit_images import predict_images
from senn.cli.metrics import outputs, probabilities
from senn.cli.saved_network import load_network
from senn.cli.terminal import write_data
from senn.data import TableEncoder, read_table
from senn.data.images import ImageEncoder
from senn.errors import SennError


def run(*, folder: Path, data: Sequence[str], proba: bool, out: Path | None) -> int:
    """Write predictions as CSV.

    Args:
        folder: folder of the run.
        data: a table, or files and folders of images.
        proba: add the probability of each class.
        out: file to write; None for standard output.

    Returns:
        Exit code.

    Raises:
        SennError: the folder holds no network of `senn fit`, or the data don't fit it.
    """
    model, encoder = load_network(folder)
    if encoder is None:
        raise SennError(
            f"the model in {str(folder)!r} wasn't made by 'senn fit', so the columns it needs are unknown"
        )
    if isinstance(encoder, ImageEncoder):
        frame = predict_images(model, encoder, data, proba)
    else:
        frame = _predict_table(folder, model, encoder, data, proba)
    # Written only when all rows are predicted, so that no part of a file is left by an error.
    text = frame.to_csv(index=False)
    if out is None:
        write_data(text)
    else:
        _write(out, text)
    return 0


def _predict_table(
    folder: Path, model: nn.Module, encoder: TableEncoder, tables: Sequence[str], proba: bool
) -> pd.DataFrame:
    """Predict the rows of a table, in their order."""
    target = encoder.target
    if proba and target.task != "classification":
        raise SennError(f"--proba is for classes, and {target.name!r} is a number")
    if len(tables) > 1:
        raise SennError(
            f"the model in {str(folder)!r} predicts the rows of one table, not of {len(tables)}"
        )
    # Read as in training: categories as text, or "007" would be another category.
    x = encoder.transform(read_table(tables[0], text=encoder.text_columns).frame)
    values = outputs(model, torch.from_numpy(x))
    columns = {"prediction": pd.Series(target.decode(values), dtype=object)}
    if proba:
        chances = probabilities(values)
        columns |= {
            f"probability {label}": pd.Series(chances[:, at])
            for at, label in enumerate(target.labels)
        }
    return pd.DataFrame(columns)


def _write(path: Path, text: str) -> None:
    """Write a file under a temporary name, then give it its own."""
    # Beside the file, since a rename to another file system fails.
    draft = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        draft.write_bytes(encoded(text))  # names of classes needn't be valid text
        draft.replace(path)
    except OSError as error:
        raise SennError(f"{str(path)!r} can't be written: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
