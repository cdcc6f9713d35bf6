"""Readers of tables in binary formats and JSON, by pandas and pyarrow; with limits on what a file may claim."""

from __future__ import annotations

import json
import warnings
import zipfile
from typing import Any, BinaryIO, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from senn.data.tabular.containers import Source, check_archive, check_columns
from senn.data.tabular.delimited import check_names, without_row_numbers
from senn.data.tabular.text_layout import grid_layout
from senn.errors import SennError

_MOST, _RATIO = 1 << 28, 200
"""Bytes of cells that any file may claim, and times its size that a larger one may."""
_OBJECT = 64
"""Bytes of a cell of a sheet, which is an object of Python."""

_EXTRAS = {"openpyxl": "excel", "xlrd": "excel", "odf": "excel"}

Orient = Literal["records", "split", "columns"]
Read = tuple[pd.DataFrame, str | None, list[str]]


def _check_claim(source: Source, rows: int, columns: int, cells: int = 0) -> None:
    """Refuse a file of a few bytes that claims to hold billions of cells, before it is read."""
    check_columns(columns, repr(source.shown))
    claimed = max(cells, 8 * rows * columns)
    if claimed > max(_MOST, _RATIO * source.size):
        raise SennError(
            f"{source.shown!r} claims {rows:,} rows of {columns:,} columns, which its {source.size:,} bytes don't hold"
        )


def parquet(source: Source) -> Read:
    """Read a Parquet file."""
    from pyarrow import parquet as pq

    with source.open() as stream:
        about = pq.ParquetFile(stream).metadata
        groups = [about.row_group(at).total_byte_size for at in range(about.num_row_groups)]
        _check_claim(source, about.num_rows, about.num_columns, sum(groups))
        _check_texts(source, stream)
        stream.seek(0)
        return pd.read_parquet(stream), None, []


def _check_texts(source: Source, stream: BinaryIO) -> None:
    """Refuse texts that are stored once and repeated until they fill the memory."""
    import pyarrow as pa
    from pyarrow import compute
    from pyarrow import parquet as pq

    stream.seek(0)
    file = pq.ParquetFile(stream)
    about, schema = file.metadata, file.schema_arrow
    # at worst each row holds as much as the whole column does
    worst = max(
        (about.row_group(at).total_byte_size for at in range(about.num_row_groups)), default=0
    )
    texts = [
        field.name
        for field in schema
        if pa.types.is_string(field.type) or pa.types.is_large_string(field.type)
    ]
    if not texts or worst * about.num_rows <= max(_MOST, _RATIO * source.size):
        return
    stream.seek(0)
    total = 0
    for batch in pq.ParquetFile(stream, read_dictionary=texts).iter_batches(columns=texts):
        for column in batch.columns:
            if pa.types.is_dictionary(column.type):
                lengths = compute.binary_length(column.dictionary)
                total += compute.sum(lengths.take(column.indices)).as_py() or 0
            else:
                total += column.nbytes
        _check_claim(source, about.num_rows, about.num_columns, total)


def feather(source: Source) -> Read:
    """Read a Feather file, which is an Arrow file, or an Arrow stream."""
    import pyarrow as pa

    with source.open() as stream:
        if stream.read(6) == b"FEA1":
            stream.seek(0)
            return pd.read_feather(stream), None, []
        stream.seek(0)
        head = stream.read(6)
        stream.seek(0)
        reader = pa.ipc.open_file(stream) if head == b"ARROW1" else pa.ipc.open_stream(stream)
        batches, total = [], 0
        every = (
            reader
            if head != b"ARROW1"
            else (reader.get_batch(at) for at in range(reader.num_record_batches))
        )
        for batch in every:
            total += batch.num_rows
            _check_claim(source, total, batch.num_columns)
            batches.append(batch)
        return pa.Table.from_batches(batches, reader.schema).to_pandas(), None, []


def json_lines(source: Source) -> Read:
    """Read JSON: an object on each line, a list of objects, or one object as `DataFrame.to_json` writes it."""
    with source.open() as stream:
        head = stream.read(4096).lstrip(b"\xef\xbb\xbf \t\r\n")
        stream.seek(0)
        orient: Orient | None = "records" if head.startswith(b"[") else _orient(stream)
        stream.seek(0)
        with warnings.catch_warnings():
            # pandas 2 needs the word on dates that pandas 3 warns of
            warnings.simplefilter("ignore")
            frame = pd.read_json(
                stream,
                lines=orient is None,
                orient=orient or "records",
                dtype=False,
                convert_dates=False,
                convert_axes=False,
                precise_float=True,
            )
    return frame, None, []


def _orient(stream: BinaryIO) -> Orient | None:
    """Tell how one object of JSON holds a table, as pandas calls it; None for an object on each line."""
    lines = (line for line in iter(stream.readline, b"") if line.strip())
    first = next(lines, b"")
    try:
        whole = json.loads(first)
        if next(lines, None) is not None:
            return None
    except ValueError:  # an object over several lines
        stream.seek(0)
        whole = json.loads(stream.read())
    parts = [*whole.values()] if isinstance(whole, dict) else []
    if isinstance(whole, dict) and {"columns", "data"} <= set(whole):
        return "split"
    return "columns" if parts and all(isinstance(part, dict) for part in parts) else None


def stata(source: Source) -> Read:
    """Read a Stata file."""
    with source.open() as stream:
        return pd.read_stata(stream), None, []


def excel(source: Source) -> Read:
    """Read the first sheet of an Excel or OpenDocument file that holds a table, of one column only if no other does."""
    with source.open() as stream:
        if zipfile.is_zipfile(stream):
            with zipfile.ZipFile(stream) as archive:
                check_archive(archive, source)
    with source.open() as stream:
        if (head := stream.read(60).lstrip()).startswith(b"<"):
            raise SennError(
                f"{source.shown!r} is no workbook but a page or XML: it begins with {head!r}"
            )
        stream.seek(0)
        with pd.ExcelFile(stream) as book:
            name, grid = _first_table(book, source)
            count = len(book.sheet_names)
    frame, notes = _of_grid(grid, repr(source.shown))
    if count > 1:
        notes.append(
            f"of {count} sheets {name!r} is read; a copy of another one can be saved as CSV"
        )
    return frame, None, notes


def _first_table(book: pd.ExcelFile, source: Source) -> tuple[str, pd.DataFrame]:
    """Return the first sheet of several rows and columns, else the first that isn't empty."""
    first = None
    for name in map(str, book.sheet_names):
        grid = _grid(book, name, source)
        if min(grid.dropna(how="all").dropna(how="all", axis=1).shape) > 1:
            return name, grid
        if first is None and not grid.empty:
            first = name, grid
    if first is None:
        raise SennError(f"{source.shown!r} is empty")
    return first


def _grid(book: pd.ExcelFile, name: str, source: Source) -> pd.DataFrame:
    """Read all cells of a sheet."""
    if type(book.book).__module__.startswith("openpyxl"):
        _check_sheet(book.book[name], source)
    return pd.read_excel(
        book, sheet_name=name, header=None, keep_default_na=False, na_values=[""], dtype=object
    )


def _check_sheet(sheet: Any, source: Source) -> None:
    """Refuse a sheet of a few cells far apart, between which all others would be made."""
    if not hasattr(sheet, "reset_dimensions"):  # a sheet that is only a chart
        return
    # what a sheet says of its own size needn't be so
    sheet.reset_dimensions()
    rows = columns = 0
    for rows, row in enumerate(sheet.iter_rows(values_only=True), start=1):
        columns = max(columns, len(row))
        if rows % 1000 == 0:
            _check_claim(source, rows, columns, _OBJECT * rows * columns)
    _check_claim(source, rows, columns, _OBJECT * rows * columns)


def _of_grid(grid: pd.DataFrame, shown: str) -> tuple[pd.DataFrame, list[str]]:
    """Find a table in the cells of a sheet."""
    lines = (
        (number, ["" if pd.isna(cell) else str(cell).strip() for cell in row])
        for number, row in enumerate(grid.itertuples(index=False), start=1)
    )
    layout = grid_layout(lines, what=shown)
    check_names(layout, shown)
    rows = grid.iloc[layout.skipped :]
    # lines without any cell aren't counted as rows
    filled = rows.notna().any(axis=1)
    rows = rows[filled].iloc[: layout.rows]
    frame = rows.iloc[:, layout.places].set_axis(layout.names, axis=1)
    frame, notes = without_row_numbers(frame.infer_objects())
    return frame, [*layout.notes, *notes]


def npz(source: Source) -> Read:
    """Read arrays of numpy, `X` and `y` or one for each column."""
    with source.open() as stream:
        if not zipfile.is_zipfile(stream):
            raise SennError(f"{source.shown!r} can't be read as npz: it isn't an archive of arrays")
        with zipfile.ZipFile(stream) as archive:
            claimed = sum(info.file_size for info in archive.infolist())
            _check_claim(source, claimed // 8, 1, claimed)
        stream.seek(0)
        # never a pickle: it could run code
        with np.load(stream, allow_pickle=False) as arrays:
            found: dict[str, NDArray[Any]] = {key: arrays[key] for key in arrays.files}
    lengths = {key: len(array) if array.ndim else 0 for key, array in found.items()}
    # named here with their lengths; pandas would only say that they differ
    if len(set(lengths.values())) > 1:
        sizes = ", ".join(f"{key!r} {length:,}" for key, length in lengths.items())
        raise SennError(f"the arrays of {source.shown!r} differ in length: {sizes}")
    columns: dict[str, NDArray[Any]] = {}
    for key, array in found.items():
        if array.ndim <= 1:
            columns[key] = np.atleast_1d(array)
        else:
            flat = array.reshape(len(array), -1)
            columns.update({f"{key}{at}": flat[:, at] for at in range(flat.shape[1])})
    return pd.DataFrame(columns), "y" if "y" in found and found["y"].ndim == 1 else None, []


def missing(error: ImportError, source: Source) -> str:
    """Say which extra has the package that a format needs.

    Args:
        error: that the import raised; pandas names the package in its text.
        source: what was to be read.
    """
    names = [name for name in _EXTRAS if name in str(error).lower()]
    package = names[0] if names else error.name or "pyarrow"
    extra = _EXTRAS.get(package, "cli")
    what = (
        f"a file that ends in {source.suffix} needs the package {package!r}, which isn't installed"
    )
    return f"{what}: pip install 'senn[{extra}]'"
