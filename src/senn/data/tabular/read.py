"""Tables from files and built-in ones, as data frames whose rows count from 1 below the header."""

from __future__ import annotations

import csv
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from senn.errors import SennError


@dataclass(frozen=True, eq=False)
class Table:
    """Table read from a file.

    Attributes:
        name: of the built-in table, or the file's name without its suffix.
        frame: the rows, indexed from 1.
        target: column to predict if the source names one (built-in tables, NPZ), else None.
    """

    name: str
    frame: pd.DataFrame
    target: str | None = None


def read_table(source: str | Path, text: Sequence[str] = ()) -> Table:
    """Read a built-in table by name, or a CSV, TSV, Parquet or NPZ file.

    Args:
        source: `digits`, `breast-cancer`, `wine`, `diabetes` or `moons`, or a path. NPZ files hold `X` (or `x`) and
            optionally `y`, or one array per column.
        text: columns of a CSV or TSV file that are read as text even if they look like numbers.

    Returns:
        The table, its rows counted from 1.

    Raises:
        SennError: there is no such file, or it isn't a table.

    >>> table = read_table("wine")
    >>> table.frame.shape, table.target
    ((178, 14), 'cultivar')
    """
    # names of built-in tables win over files of that name: write ./wine for the file
    if str(source) in BUILT_IN:
        return _table(str(source), *BUILT_IN[str(source)]())
    path = Path(source)
    if not path.exists():
        raise SennError(
            f"there is no file {str(path)!r}, and the built-in tables are {', '.join(BUILT_IN)}"
        )
    if path.is_dir():
        raise SennError(f"{str(path)!r} is a folder, not a table")
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise SennError(
            f"{str(path)!r} ends in none of {', '.join(_READERS)}, so its format isn't known"
        )
    try:
        frame, target = reader(path, text)
    except SennError:
        raise
    except OSError as error:
        raise SennError(f"{str(path)!r} can't be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise SennError(f"{str(path)!r} isn't text in UTF-8 (byte {error.start:,})") from error
    except Exception as error:  # whatever a parser makes of a damaged file
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SennError(
            f"{str(path)!r} can't be read as {path.suffix.lower()[1:]}: {reason}"
        ) from error
    return _table(path.stem, frame, target, str(path))


def _table(name: str, frame: pd.DataFrame, target: str | None, shown: str | None = None) -> Table:
    if frame.shape[0] == 0 or frame.shape[1] == 0:
        raise SennError(f"table {shown or name!r} has no {'rows' if frame.shape[1] else 'columns'}")
    # rows count from 1 below the header, as an editor shows them
    frame = frame.set_axis(pd.RangeIndex(1, len(frame) + 1), axis=0)
    return Table(name, frame.set_axis([str(column) for column in frame.columns], axis=1), target)


def _delimited(path: Path, text: Sequence[str]) -> tuple[pd.DataFrame, None]:
    # utf-8-sig drops the byte order mark that Excel writes, which would stick to the first name;
    # newline="" leaves line ends within quotes to the csv module.
    with path.open(encoding="utf-8-sig", newline="") as file:
        first = file.readline()
        # the mark that is most frequent in the header, where cells are names and hold few of them
        marks = "\t" if path.suffix.lower() == ".tsv" else ",;\t|"
        mark = max(marks, key=first.count)
        file.seek(0)
        header = _check_lines(path, csv.reader(file, delimiter=mark, strict=True))
    # low_memory=False: inferred piece by piece, one column may hold cells of two types.
    frame = pd.read_csv(
        path,
        sep=mark,
        encoding="utf-8-sig",
        low_memory=False,
        index_col=False,
        dtype=dict.fromkeys(set(text) & set(header), "str"),
    )
    if not header[0].strip():
        if not (pd.api.types.is_integer_dtype(frame.iloc[:, 0]) and frame.iloc[:, 0].is_unique):
            raise SennError(f"the first column of {str(path)!r} has no name")
        frame = frame.iloc[
            :, 1:
        ]  # row numbers, which `DataFrame.to_csv` writes in a column without a name
    return frame, None


def _check_lines(path: Path, lines: Any) -> list[str]:
    """Read the header, and check that every line has as many cells."""
    # pandas would pad short lines and shift long ones in silence
    header: list[str] = next(lines, [])
    if not any(cell.strip() for cell in header):
        raise SennError(f"{str(path)!r} is empty")
    seen: set[str] = set()
    for at, cell in enumerate(header):
        if cell in seen:
            raise SennError(f"{str(path)!r} has two columns named {cell!r}")
        if not cell.strip() and at:
            raise SennError(f"column {at + 1} of {str(path)!r} has no name")
        seen.add(cell)
    # whole numbers may be names (pixels 0 to 63); fractions are data
    if all(_is_number(cell) for cell in header) and not all(
        cell.strip().isdigit() for cell in header
    ):
        raise SennError(f"{str(path)!r} has no header: its first line holds only numbers")
    for line in lines:
        if line and len(line) != len(header):
            counts = f"{len(line)} cells where the header has {len(header)}"
            raise SennError(f"line {lines.line_num} of {str(path)!r} has {counts}")
    return header


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _parquet(path: Path, text: Sequence[str]) -> tuple[pd.DataFrame, None]:
    return pd.read_parquet(path), None


def _npz(path: Path, text: Sequence[str]) -> tuple[pd.DataFrame, str | None]:
    if not zipfile.is_zipfile(path):
        raise SennError(f"{str(path)!r} can't be read as npz: it isn't an archive of arrays")
    # never a pickle: it could run code
    with np.load(path, allow_pickle=False) as arrays:
        found: dict[str, NDArray[Any]] = {key: arrays[key] for key in arrays.files}
    lengths = {key: len(array) if array.ndim else 0 for key, array in found.items()}
    # named here with their lengths; pandas would only say that they differ
    if len(set(lengths.values())) > 1:
        sizes = ", ".join(f"{key!r} {length:,}" for key, length in lengths.items())
        raise SennError(f"the arrays of {str(path)!r} differ in length: {sizes}")
    columns: dict[str, NDArray[Any]] = {}
    for key, array in found.items():
        if array.ndim <= 1:
            columns[key] = np.atleast_1d(array)
        else:
            flat = array.reshape(len(array), -1)
            columns.update({f"{key}{at}": flat[:, at] for at in range(flat.shape[1])})
    return pd.DataFrame(columns), "y" if "y" in found and found["y"].ndim == 1 else None


_READERS: dict[str, Callable[[Path, Sequence[str]], tuple[pd.DataFrame, str | None]]] = {
    ".csv": _delimited,
    ".tsv": _delimited,
    ".parquet": _parquet,
    ".npz": _npz,
}


def _scikit(loader: str, target: str, named: bool) -> Callable[[], tuple[pd.DataFrame, str]]:
    """Make a loader of a table of scikit-learn, with its classes by name where they have one."""

    def load() -> tuple[pd.DataFrame, str]:
        from sklearn import datasets

        bunch = getattr(datasets, loader)()
        values = bunch.target_names[bunch.target].astype(str) if named else bunch.target
        frame = pd.DataFrame(bunch.data, columns=list(bunch.feature_names))
        return frame.assign(**{target: values}), target

    return load


def _moons() -> tuple[pd.DataFrame, str]:
    from sklearn.datasets import make_moons

    x, y = make_moons(1000, noise=0.3, random_state=0)
    return pd.DataFrame({"x": x[:, 0], "y": x[:, 1], "moon": y}), "moon"


BUILT_IN: dict[str, Callable[[], tuple[pd.DataFrame, str]]] = {
    "digits": _scikit("load_digits", "digit", named=False),
    "breast-cancer": _scikit("load_breast_cancer", "diagnosis", named=True),
    "wine": _scikit("load_wine", "cultivar", named=True),
    "diabetes": _scikit("load_diabetes", "progression", named=False),
    "moons": _moons,
}
"""Tables that need no file."""
