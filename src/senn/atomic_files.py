"""Files written whole or not at all, and read only as far as they can be what was written."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from math import isfinite
from pathlib import Path
from typing import Any, NoReturn

from senn.errors import SennError

MOST = 1 << 26
"""Bytes of a JSON document at most: a longer one is none that was written here."""


@contextmanager
def atomic_write(path: Path, data: bytes) -> Iterator[None]:
    """A context in which a file's new content is on the disk under another name; at its end it gets its own.

    Raises:
        OSError: it can't be written; what was there still is.
    """
    other = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with other.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield
        other.replace(path)
    finally:
        with suppress(OSError):
            other.unlink(missing_ok=True)
    sync(path.parent)


def write(path: Path, data: bytes) -> None:
    """Write a file whole or not at all, as `draft` does."""
    with atomic_write(path, data):
        pass


def sync(path: Path) -> None:
    """Have a file reach the disk, or the names in a folder where the system can be asked for that.

    Raises:
        OSError: a file can't be written.
    """
    with suppress(OSError) if path.is_dir() else nullcontext():
        number = os.open(path, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def read(path: Path, most: int = MOST) -> bytes:
    """A file's bytes.

    Raises:
        OSError: it can't be read, is no file, or longer than `most` bytes.
    """
    if path.exists() and not path.is_file():
        raise OSError(None, "not a file")
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise OSError(None, "longer than it can be")
        return file.read(size)


def bytes_digest(data: bytes) -> str:
    """SHA-256, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def read_limited(path: Path, most: int = MOST) -> bytes:
    """`read`, for people.

    Raises:
        SennError: it can't be read.
    """
    try:
        return read(path, most)
    except OSError as error:
        raise SennError(f"{str(path)!r} can't be read: {error.strerror or error}") from error


def file_digest(data: bytes) -> dict[str, Any]:
    """What a document tells of another file: its size and its checksum."""
    return {"bytes": len(data), "sha256": bytes_digest(data)}


def verify_file(path: Path, told: Any, most: int, teller: str) -> bytes:
    """A file's bytes, if they are as many and the same as a document tells.

    Args:
        path: the file.
        told: its `mark`, as it stands there.
        most: bytes that it may have.
        teller: name of the document, which lies beside it.

    Raises:
        SennError: they aren't.
    """
    size = told.get("bytes") if isinstance(told, dict) else None
    if not isinstance(told, dict) or type(size) is not int or not 0 <= size <= most:
        raise SennError(f"{str(path.with_name(teller))!r} is damaged: it doesn't tell of {path.name}")
    data = read_limited(path, size)
    if bytes_digest(data) != told.get("sha256"):
        raise SennError(f"{str(path)!r} is damaged: it isn't the file that was written with {teller}")
    return data


def plain(value: Any) -> Any:
    """The value with null for numbers that JSON doesn't have (NaN, infinity)."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not isfinite(value) else value


def parse(data: bytes | str) -> Any:
    """What JSON says, strictly.

    Raises:
        ValueError: it isn't JSON.
    """
    try:
        return json.loads(data, parse_constant=_no_number)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def checksum(document: Mapping[str, Any]) -> str:
    """SHA-256 of a document but for its own entry `checksum`.

    Raises:
        ValueError: it holds what JSON doesn't have.
    """
    rest = {key: value for key, value in document.items() if key != "checksum"}
    try:
        return bytes_digest(json.dumps(rest, sort_keys=True, allow_nan=False).encode())
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def write_checksummed_json(document: Mapping[str, Any], indent: int | None = 1) -> bytes:
    """A document as JSON with its checksum, as it will be read: keys are strings, tuples lists.

    Raises:
        TypeError, ValueError: it can't be written as JSON.
    """
    known = parse(json.dumps(document, allow_nan=False))
    known["checksum"] = checksum(known)
    return encoded(json.dumps(known, indent=indent, ensure_ascii=False)) + b"\n"


def encoded(text: str) -> bytes:
    """JSON as UTF-8; lone surrogates, as in names of files that aren't text, stay the escapes that they are in JSON."""
    return text.encode("utf-8", "backslashreplace")


def read_checksummed_json(path: Path, kind: str, version: int, most: int = MOST) -> dict[str, Any]:
    """Read a sealed document.

    Args:
        path: the file.
        kind: its `format`.
        version: of the format, the only one that is read.
        most: bytes that it can have.

    Returns:
        The document.

    Raises:
        SennError: it isn't there, is of another format or version, or was altered.
    """
    return parse_checksummed_json(read_limited(path, most), path, kind, (version,))


def parse_checksummed_json(
    data: bytes, path: Path, kind: str, versions: Collection[int], otherwise: str = ""
) -> dict[str, Any]:
    """Check the format, the version and the checksum of a sealed document.

    Args:
        data: the document.
        path: of its file, for errors.
        kind: its `format`.
        versions: of the format that are read.
        otherwise: what is said, after the path, of a document of another format.

    Returns:
        The document.

    Raises:
        SennError: it is of another format or version, or was altered.
    """
    try:
        document = parse(data)
        if not isinstance(document, dict) or document.get("format") != kind:
            otherwise = otherwise or f"is damaged: it isn't a document of the format {kind!r}"
            raise SennError(f"{str(path)!r} {otherwise}")
        version = document.get("version")
        if type(version) is not int or version not in versions:
            readable = " and ".join(map(str, versions))
            raise SennError(f"{str(path)!r} has format version {repr(version)[:20]}; this senn reads {readable}")
        if document.get("checksum") != checksum(document):
            raise SennError(f"{str(path)!r} is damaged: its content doesn't match its checksum")
    except SennError:  # which is a ValueError itself
        raise
    except ValueError as error:
        raise SennError(f"{str(path)!r} is damaged: it isn't JSON") from error
    return document
