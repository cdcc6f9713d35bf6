"""Atomic writes, and checksummed, size-limited reads.

A file is written under another name, flushed to the disk and renamed, so that a crash leaves the old file or the new
one and never half of either. A document is JSON that carries its own checksum, and the sizes and checksums of the files
that lie next to it; what doesn't match is refused.
"""

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

# `model.json` takes about half a kilobyte per module, so this is room for 100,000 of them. With half of it a very large
# model would be refused; twice as much would let a forged file take twice the memory before it is refused.
MOST = 1 << 26
"""Size limit of a JSON document, in bytes."""


@contextmanager
def atomic_write(path: Path, data: bytes) -> Iterator[None]:
    """Write a file's new content to the disk under a temporary name, and rename it when the context ends.

    Several of these contexts, entered one after the other, replace several files at almost the same moment.

    Args:
        path: the file, in a folder that exists.
        data: its content.

    Raises:
        OSError: the content can't be written; the old file is untouched.
    """
    # The process id keeps two processes that write the same file from writing into each other's draft.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            # Without it, the rename may reach the disk before the content: after a power cut the file would be empty.
            os.fsync(file.fileno())
        yield
        temporary.replace(path)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    sync(path.parent)


def write(path: Path, data: bytes) -> None:
    """Write a file whole or not at all.

    Args:
        path: the file, in a folder that exists.
        data: its content.

    Raises:
        OSError: the content can't be written; the old file is untouched.
    """
    with atomic_write(path, data):
        pass


def sync(path: Path) -> None:
    """Flush a file to the disk, or the names in a folder where the system allows that (Windows doesn't).

    Raises:
        OSError: a file can't be flushed.
    """
    with suppress(OSError) if path.is_dir() else nullcontext():
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def read(path: Path, most: int = MOST) -> bytes:
    """Read a file of limited size.

    Args:
        path: the file.
        most: size limit in bytes.

    Returns:
        Its content.

    Raises:
        OSError: it can't be read, isn't a regular file, or is larger than the limit.
    """
    # Opening a pipe would block until somebody writes to it.
    if path.exists() and not path.is_file():
        raise OSError(None, "not a file")
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise OSError(None, "longer than it can be")
        return file.read(size)


def bytes_digest(data: bytes) -> str:
    """Compute the SHA-256 checksum of some bytes, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def read_limited(path: Path, most: int = MOST) -> bytes:
    """Read a file of limited size, and name it in the error if that fails.

    Args:
        path: the file.
        most: size limit in bytes.

    Returns:
        Its content.

    Raises:
        SennError: it can't be read, isn't a regular file, or is larger than the limit.
    """
    try:
        return read(path, most)
    except OSError as error:
        raise SennError(f"{str(path)!r} can't be read: {error.strerror or error}") from error


def file_digest(data: bytes) -> dict[str, Any]:
    """Describe a file's content for `verify_file`: its size in bytes and its SHA-256 checksum."""
    return {"bytes": len(data), "sha256": bytes_digest(data)}


def verify_file(
    path: Path,
    digest: Any,
    most: int,
    document: str,
) -> bytes:
    """Read a file and compare it with the digest that a document gives of it.

    Args:
        path: the file.
        digest: the document's entry for the file, which should be a `file_digest`; it may be anything.
        most: size limit in bytes.
        document: name of the document, which lies in the same folder.

    Returns:
        The file's content.

    Raises:
        SennError: the entry is no digest, or the file doesn't match it.
    """
    size = digest.get("bytes") if isinstance(digest, dict) else None
    if not isinstance(digest, dict) or type(size) is not int or not 0 <= size <= most:
        raise SennError(
            f"{str(path.with_name(document))!r} is damaged: it has no digest of {path.name}"
        )
    data = read_limited(path, size)
    if bytes_digest(data) != digest.get("sha256"):
        raise SennError(
            f"{str(path)!r} is damaged: it isn't the file that was written with {document}"
        )
    return data


def plain(value: Any) -> Any:
    """Replace the numbers that JSON doesn't have (NaN, infinity) by None, and tuples by lists."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not isfinite(value) else value


def parse(data: bytes | str) -> Any:
    """Parse JSON strictly: Python's own parser also reads NaN and Infinity, which no other one does.

    Raises:
        ValueError: it isn't JSON.
    """
    try:
        return json.loads(data, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def checksum(document: Mapping[str, Any]) -> str:
    """Compute the SHA-256 checksum of a document without its entry `checksum`.

    Raises:
        ValueError: it holds what JSON doesn't have.
    """
    rest = {key: value for key, value in document.items() if key != "checksum"}
    try:
        # Sorted keys make the sum independent of the order and the indentation in the file.
        return bytes_digest(json.dumps(rest, sort_keys=True, allow_nan=False).encode())
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def to_checksummed_json(document: Mapping[str, Any], indent: int | None = 1) -> bytes:
    """Encode a document as JSON with an entry `checksum`.

    Args:
        document: JSON-able; its entry `checksum`, if any, is replaced.
        indent: spaces for each level; None for one line.

    Returns:
        The file's content, in UTF-8.

    Raises:
        TypeError, ValueError: it can't be written as JSON.
    """
    # The sum is that of the document as it will be read back: keys are strings then, and tuples are lists.
    parsed = parse(json.dumps(document, allow_nan=False))
    parsed["checksum"] = checksum(parsed)
    return encoded(json.dumps(parsed, indent=indent, ensure_ascii=False)) + b"\n"


def encoded(text: str) -> bytes:
    """Encode JSON as UTF-8; lone surrogates, as in file names that aren't text, become JSON's escapes."""
    return text.encode("utf-8", "backslashreplace")


def read_checksummed_json(
    path: Path,
    kind: str,
    version: int,
    most: int = MOST,
) -> dict[str, Any]:
    """Read a document that `to_checksummed_json` encoded.

    Args:
        path: the file.
        kind: its entry `format`.
        version: the only format version that is accepted.
        most: size limit in bytes.

    Returns:
        The document, with its checksum.

    Raises:
        SennError: it can't be read, is of another format or version, or was altered.
    """
    return parse_checksummed_json(read_limited(path, most), path, kind, (version,))


def parse_checksummed_json(
    data: bytes,
    path: Path,
    kind: str,
    versions: Collection[int],
    otherwise: str = "",
) -> dict[str, Any]:
    """Parse a document and check its format, version and checksum.

    Args:
        data: content of the file.
        path: the file, for errors.
        kind: its entry `format`.
        versions: format versions that are accepted.
        otherwise: what the error says, after the path, about a document of another format; a general sentence if empty.

    Returns:
        The document, with its checksum.

    Raises:
        SennError: it isn't JSON, is of another format or version, or was altered.
    """
    damaged = f"{str(path)!r} is damaged"
    try:
        document = parse(data)
        if not isinstance(document, dict) or document.get("format") != kind:
            otherwise = otherwise or f"is damaged: it isn't a document of the format {kind!r}"
            raise SennError(f"{str(path)!r} {otherwise}")
        version = document.get("version")
        # True == 1, and 2.0 == 2: neither is a version.
        if type(version) is not int or version not in versions:
            readable = " and ".join(map(str, versions))
            found = repr(version)[:20]
            raise SennError(f"{str(path)!r} has format version {found}; this senn reads {readable}")
        if document.get("checksum") != checksum(document):
            raise SennError(f"{damaged}: its content doesn't match its checksum")
    except SennError:  # which is a ValueError itself
        raise
    except ValueError as error:
        raise SennError(f"{damaged}: it isn't JSON") from error
    return document
