"""`senn predict`: the predictions of a trained network for another table."""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import suppress
from pathlib import Path

import pandas as pd
import torch

from senn.cli.metrics import outputs, probabilities
from senn.data import TableEncoder, read_table
from senn.errors import SennError
from senn.persistence import load, load_extra


def run(args: argparse.Namespace) -> int:
    """Carry the command out."""
    record = load_extra(args.folder).get("encoder")
    if record is None:
        raise SennError(f"the model in {str(args.folder)!r} wasn't made by 'senn fit': it knows no columns")
    encoder = TableEncoder.from_dict(record)
    target = encoder.target
    if args.proba and target.task != "classification":
        raise SennError(f"--proba makes no sense here: {target.name!r} is a number, not a class")
    model = load(args.folder)
    x = encoder.transform(read_table(args.data, text=encoder.text_columns).frame)
    values = outputs(model, torch.from_numpy(x))
    columns = {"prediction": pd.Series(target.decode(values), dtype=object)}
    if args.proba:
        chances = probabilities(values)
        columns |= {f"probability {label}": pd.Series(chances[:, at]) for at, label in enumerate(target.labels)}
    text = pd.DataFrame(columns).to_csv(index=False)
    if args.out is None:
        sys.stdout.write(text)
    else:
        _write(args.out, text)
    return 0


def _write(path: Path, text: str) -> None:
    """Write a file under a temporary name, then give it its own."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        draft.write_text(text, encoding="utf-8")
        draft.replace(path)
    except OSError as error:
        raise SennError(f"{str(path)!r} can't be written: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
