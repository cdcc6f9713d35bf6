"""Files of predictions, in the format that their name ends in."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pandas as pd

from senn import atomic_files
from senn.atomic_files import encoded
from senn.cli.terminal import write_data
from senn.errors import SennError

_SEPARATORS = {".csv": ",", ".txt": ",", "": ",", ".tsv": "\t"}
_OTHERS = (".parquet", ".feather", ".jsonl")


def check_ending(out: Path) -> None:
    """Refuse a name whose ending asks for a format that isn't written.

    Raises:
        SennError: naming the endings that are.
    """
    if out.suffix.lower() not in (*_SEPARATORS, *_OTHERS):
        endings = ", ".join([*filter(None, _SEPARATORS), *_OTHERS])
        raise SennError(f"{str(out)!r} ends in none of {endings}, so its format isn't known")


def write(frame: pd.DataFrame, out: Path | None) -> None:
    """Write a table of predictions, a file whole or not at all.

    Args:
        frame: the predictions.
        out: file, device or pipe to write to; None or "-" for CSV on standard output.

    Raises:
        SennError: it can't be written.
    """
    if out is None or str(out) == "-":
        write_data(frame.to_csv(index=False))
        return
    try:
        # Under a temporary name first: a file that is replaced stays whole.
        atomic_files.write_output(out, _content(frame, out.suffix.lower()))
    except OSError as error:
        raise SennError(f"{str(out)!r} can't be written: {error.strerror or error}") from error


def _content(frame: pd.DataFrame, suffix: str) -> bytes:
    if suffix in _SEPARATORS:
        return encoded(frame.to_csv(index=False, sep=_SEPARATORS[suffix]))
    # Labels may be of one type in each row, and are objects until here.
    plain = frame.map(_as_text).rename(columns=_as_text).infer_objects()
    if suffix == ".jsonl":
        return encoded(plain.to_json(orient="records", lines=True, force_ascii=False))
    buffer = io.BytesIO()
    if suffix == ".parquet":
        plain.to_parquet(buffer, index=False)
    else:
        plain.to_feather(buffer)
    return buffer.getvalue()


def _as_text(cell: Any) -> Any:
    """Escape what isn't text, as in names of files that aren't UTF-8."""
    return encoded(cell).decode() if isinstance(cell, str) else cell
