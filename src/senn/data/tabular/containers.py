"""Bytes of a table: a file, what is packed in one, or standard input; with limits on what they may unpack to."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import stat
import sys
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from senn.errors import SennError

STANDARD_INPUT = frozenset({"-", "/dev/stdin"})

_MOST = 8 << 30
MOST_COLUMNS = 50_000
"""Columns of a table; some milliseconds go by for each until training begins."""

_LEAST, _RATIO = 32 << 20, 100
"""A text that packs to less than a hundredth is no table, but may be one that fills the memory."""

_UNPACK: dict[str, Callable[[BinaryIO], Any]] = {
    ".gz": lambda stream: gzip.GzipFile(fileobj=stream),
    ".bz2": bz2.BZ2File,
    ".xz": lzma.LZMAFile,
}
_BEGINNINGS = (
    (b"PAR1", ".parquet"),
    (b"ARROW1", ".feather"),
    (b"FEA1", ".feather"),
    (b"\x1f\x8b", ".gz"),
    (b"BZh", ".bz2"),
    (b"\xfd7zXZ\x00", ".xz"),
    (b"PK\x03\x04", ".zip"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", ".xls"),
)
_SAME = {
    ".parquet": (".pq",),
    ".feather": (".arrow", ".ipc"),
    ".zip": (".npz", ".xlsx", ".xlsm", ".ods", ".xls"),
    ".xls": (".xlsx", ".xlsm"),
}
"""Endings of files that begin as those of another ending do."""
_IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
_OFTEN_TEXT = frozenset({".xls", ".xlsx", ".gz", ".bz2", ".xz", ".zip"})
"""Endings that programs give to plain text: "Excel" exports, and what a browser has unpacked."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a table's bytes are.

    Attributes:
        shown: how messages call it.
        name: short name, of the file without its endings.
        suffix: ending that tells the format, in lower case; "" where only the bytes can tell it.
        content: the bytes, if they aren't those of a file as it lies.
        path: the file.
    """

    shown: str
    name: str
    suffix: str
    content: bytes | None = None
    path: Path | None = None

    def open(self) -> BinaryIO:
        """Open the bytes for reading."""
        if self.content is not None:
            return io.BytesIO(self.content)
        assert self.path is not None
        return self.path.open("rb")

    @property
    def size(self) -> int:
        """Number of bytes."""
        if self.content is not None:
            return len(self.content)
        assert self.path is not None
        return self.path.stat().st_size


def source_of(given: str) -> Source:
    """Find the bytes of a table, unpacked.

    Args:
        given: path of a file, or "-" for standard input.

    Raises:
        SennError: there is no such file, it isn't one, or it unpacks to too much.
    """
    if given in STANDARD_INPUT or given.startswith("/dev/fd/"):
        return _unpacked(_streamed(given))
    scheme, colon, _ = given.partition("://")
    if colon and scheme.isalnum():
        raise SennError(f"{given!r} is an address; download the file, and name it here")
    path = Path(given)
    if path.is_dir():
        raise SennError(f"{given!r} is a folder, not a table")
    if not stat.S_ISREG(path.stat().st_mode):
        hint = "a pipe is read as standard input: write '-'"
        raise SennError(f"{given!r} is not a file, so it may never end; {hint}")
    if path.stat().st_size > _MOST:
        raise SennError(f"{given!r} holds more than {_MOST >> 30} GiB; use a part of it")
    return _unpacked(Source(shown=given, name=path.stem, suffix=path.suffix.lower(), path=path))


def _streamed(given: str) -> Source:
    """Read a stream to its end."""
    if given in STANDARD_INPUT:
        # Tests and notebooks put a stream of text in its place.
        stream: Any = getattr(sys.stdin, "buffer", sys.stdin)
        content = stream.read(_MOST + 1)
        content = content.encode() if isinstance(content, str) else content
    else:
        with Path(given).open("rb") as pipe:
            content = pipe.read(_MOST + 1)
    if len(content) > _MOST:
        raise SennError(f"standard input holds more than {_MOST >> 30} GiB")
    if not content:
        raise SennError("standard input is empty")
    return Source(shown="standard input", name="stdin", suffix="", content=content)


def _unpacked(source: Source, depth: int = 0) -> Source:
    """Unpack what is packed, and find the format of what has no ending from its first bytes."""
    if depth > 2:  # an archive may hold itself
        raise SennError(f"{source.shown!r} is packed several times over")
    suffix = _suffix_by_bytes(source)
    if suffix == ".zip":
        return _unzipped(source, depth)
    if suffix in _UNPACK:
        inner = Path(source.name)
        content = _limited(source, _UNPACK[suffix])
        # "t.csv.gz" holds t.csv; "t.gz" and a stream hold a table of a format that is to be found.
        own = inner.suffix.lower() if source.path is not None else ""
        unpacked = Source(shown=source.shown, name=inner.stem, suffix=own, content=content)
        return _unpacked(unpacked, depth + 1)
    return Source(**{**vars(source), "suffix": suffix})


def _suffix_by_bytes(source: Source) -> str:
    """Return the ending that a file should have: names are wrong more often than bytes."""
    with source.open() as stream:
        head = stream.read(512)
    own, is_text = source.suffix, 0 not in head and head.isascii()
    found = next((suffix for mark, suffix in _BEGINNINGS if head.startswith(mark)), "")
    if found and not is_text:  # a header may begin with PAR1
        return own if own in _SAME.get(found, ()) else found
    if own and not (own in _OFTEN_TEXT and head[:1].isalnum() and 0 not in head):
        return own
    inner = Path(source.name).suffix.lower() if own in _UNPACK else ""
    return inner or (".jsonl" if head.lstrip()[:1] in (b"{", b"[") else ".csv")


def _most(source: Source) -> int:
    """Bytes that a source may unpack to."""
    return min(_MOST, _LEAST + _RATIO * source.size)


def _limited(source: Source, unpack: Callable[[BinaryIO], Any]) -> bytes:
    """Unpack a stream as far as its size makes believable."""
    most = _most(source)
    try:
        with source.open() as packed, unpack(packed) as stream:
            _measure(stream, most, source)
        with source.open() as packed, unpack(packed) as stream:
            content: bytes = stream.read(most)
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise SennError(f"{source.shown!r} can't be unpacked: {error}") from error
    return content


def _measure(stream: BinaryIO, most: int, source: Source) -> None:
    """Refuse what unpacks to too much, before any of it is kept."""
    total = 0
    while piece := stream.read(1 << 20):
        total += len(piece)
        if total > most:
            raise SennError(
                f"{source.shown!r} unpacks to more than {most >> 20} MiB, which no table does"
            )


def _unzipped(source: Source, depth: int) -> Source:
    """Find the only table in an archive; what is an Excel file or NPZ keeps its form."""
    try:
        with source.open() as stream, zipfile.ZipFile(stream) as archive:
            check_archive(archive, source)
            names = [info.filename for info in archive.infolist() if not info.is_dir()]
            if "[Content_Types].xml" in names:
                return Source(**{**vars(source), "suffix": ".xlsx"})
            if names and all(name.endswith(".npy") for name in names):
                return Source(**{**vars(source), "suffix": ".npz"})
            tables = [name for name in names if not _is_furniture(name)]
            if len(tables) != 1:
                listed = ", ".join(map(repr, tables[:4]))
                count = f"{len(tables)} files ({listed})" if tables else "no file"
                if any(name.lower().endswith(_IMAGES) for name in tables):
                    raise SennError(
                        f"{source.shown!r} holds images; unpack it, and name the folder"
                    )
                raise SennError(f"{source.shown!r} holds {count}, where one table is expected")
            # What a directory claims needn't be so.
            with archive.open(tables[0]) as packed:
                _measure(packed, _most(source), source)  # type: ignore[arg-type]
            content = archive.read(tables[0])
    except (zipfile.BadZipFile, RuntimeError, NotImplementedError, OSError, zlib.error) as error:
        raise SennError(f"{source.shown!r} can't be unpacked: {error}") from error
    inner = PurePosixPath(tables[0])
    suffix = inner.suffix.lower()
    unpacked = Source(shown=source.shown, name=inner.stem, suffix=suffix, content=content)
    return _unpacked(unpacked, depth + 1)


def check_columns(count: int, shown: str) -> None:
    """Refuse a table of too many columns, before the time is spent on them.

    Args:
        count: number of its columns.
        shown: how messages call it.

    Raises:
        SennError: there are more than `MOST_COLUMNS`.
    """
    if count > MOST_COLUMNS:
        raise SennError(
            f"{shown} has {count:,} columns, and a table of more than {MOST_COLUMNS:,} isn't read: leave some out"
        )


def check_archive(archive: zipfile.ZipFile, source: Source) -> None:
    """Refuse an archive that unpacks to more than a table of its size does.

    Args:
        archive: a ZIP archive, which may be an Excel file.
        source: that it was opened from.

    Raises:
        SennError: it claims more; what it claims is also as much as is ever unpacked.
    """
    most = _most(source)
    if sum(info.file_size for info in archive.infolist()) > most:
        raise SennError(
            f"{source.shown!r} unpacks to more than {most >> 20} MiB, which no table does"
        )


def _is_furniture(name: str) -> bool:
    """Tell what operating systems add to archives, and read-me files."""
    path = PurePosixPath(name)
    own = path.name.lower()
    is_system = (
        "__MACOSX" in path.parts or own.startswith(".") or own in ("thumbs.db", "desktop.ini")
    )
    return is_system or own.startswith(("readme", "license"))
