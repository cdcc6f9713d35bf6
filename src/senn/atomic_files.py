"""Atomic writes, and checksummed, size-limited reads.

A file is written under another name, flushed to the disk and renamed, so that a crash leaves the old file or the new
one and never half of either. A document is JSON that carries its own checksum, and the sizes and checksums of the files
that lie next to it; what doesn't match is refused.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from math import isfinite
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from senn.errors import SennError

# `model.json` takes about half a kilobyte per module, so this is room for 100,000 of them. With half of it a very large
# model would be refused; twice as much would let a forged file take twice the memory before it is refused.
MOST = 1 << 26
"""Size limit of a JSON document, in bytes."""
_MOST_DIGITS = 300
"""Digits of a whole number; the largest float has 309. States of generators have up to 40."""


@contextmanager
def atomic_write(path: Path, data: bytes | BinaryIO) -> Iterator[None]:
    """Write a file's new content to the disk under a temporary name, and rename it when the context ends.

    Several of these contexts, entered one after the other, replace several files at almost the same moment.

    Args:
        path: the file, in a folder that exists.
        data: its content, or an open file from which it is copied.

    Raises:
        OSError: the content can't be written; the old file is untouched.
    """
    # The process id keeps two processes that write the same file from writing into each other's draft.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        # What a kill has left there under the same number; and a link must not lead the content elsewhere ("x").
        temporary.unlink(missing_ok=True)
        with temporary.open("xb") as file:
            if isinstance(data, bytes):
                file.write(data)
            else:
                shutil.copyfileobj(data, file)
            file.flush()
            # Without it, the rename may reach the disk before the content: after a power cut the file would be empty.
            os.fsync(file.fileno())
        yield
        temporary.replace(path)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    sync(path.parent)


def write(path: Path, data: bytes | BinaryIO) -> None:
    """Write a file whole or not at all.

    Args:
        path: the file, in a folder that exists.
        data: its content, or an open file from which it is copied.

    Raises:
        OSError: the content can't be written; the old file is untouched.
    """
    with atomic_write(path, data):
        pass


def write_output(path: Path, data: bytes) -> None:
    """Write what a user names: a file whole or not at all, also through a link; a device or a pipe as it takes it.

    Args:
        path: a file in a folder that exists, a device, or a pipe.
        data: its content.

    Raises:
        OSError: the content can't be written; an old file is untouched.
    """
    if path.exists() and not path.is_file():
        # A file in the place of /dev/null would take it from everybody.
        with path.open("wb") as stream:
            stream.write(data)
        return
    write(path.resolve(), data)


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


def open_regular(path: Path) -> BinaryIO:
    """Open a file for reading, but nothing that isn't a regular file: a pipe would wait for ever, a device never end.

    Args:
        path: the file, or a link to it.

    Returns:
        The open file.

    Raises:
        OSError: it can't be opened, or is no regular file.
    """
    # Opened before it is looked at, so that nothing can take its place in between; without waiting for a pipe's writer.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, flags)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(None, "not a file", str(path))
    return os.fdopen(descriptor, "rb")


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
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise OSError(None, "longer than it can be")
        return file.read(size)


def bytes_digest(data: bytes) -> str:
    """Compute the SHA-256 checksum of some bytes, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def digest_of(file: BinaryIO) -> str:
    """Compute the SHA-256 checksum of what an open file still holds, in hexadecimal and a piece at a time."""
    opened: Any = file  # typing.BinaryIO lacks readinto, which every binary file has
    return hashlib.file_digest(opened, "sha256").hexdigest()


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


def verified(path: Path, digest: Any, most: int, document: str) -> BinaryIO:
    """Open a file that is the one of which a document gives the digest; its content isn't kept in memory.

    Args:
        path: the file.
        digest: the document's entry for the file, which should be a `file_digest`; it may be anything.
        most: size limit in bytes.
        document: name of the document, which lies in the same folder.

    Returns:
        The open file, at its beginning.

    Raises:
        SennError: the entry is no digest, or the file doesn't match it.
    """
    size = digest.get("bytes") if isinstance(digest, dict) else None
    if not isinstance(digest, dict) or type(size) is not int or not 0 <= size <= most:
        raise SennError(
            f"{str(path.with_name(document))!r} is damaged: it has no digest of {path.name}"
        )
    file = open_named(path)
    # A size that differs is found without reading: a file of holes may claim to be as large as it likes.
    is_same = os.fstat(file.fileno()).st_size == size and digest_of(file) == digest.get("sha256")
    if not is_same:
        file.close()
        raise SennError(
            f"{str(path)!r} is damaged: it isn't the file that was written with {document}"
        )
    file.seek(0)
    return file


def open_named(path: Path) -> BinaryIO:
    """Open a regular file, and name it in the error if that fails.

    Raises:
        SennError: it can't be opened, or is no regular file.
    """
    try:
        return open_regular(path)
    except (OSError, ValueError) as error:  # a path with a null byte is a ValueError
        reason = getattr(error, "strerror", None) or error
        raise SennError(f"{str(path)!r} can't be read: {reason}") from error


def verify_file(
    path: Path,
    digest: Any,
    most: int,
    document: str,
) -> bytes:
    """Read a file that is the one of which a document gives the digest; see `verified`.

    Args:
        path: the file.
        digest: the document's entry for the file.
        most: size limit in bytes.
        document: name of the document, which lies in the same folder.

    Returns:
        The file's content.

    Raises:
        SennError: the entry is no digest, or the file doesn't match it.
    """
    with verified(path, digest, most, document) as file:
        return file.read()


def plain(value: Any) -> Any:
    """Replace the numbers that JSON doesn't have (NaN, infinity) by None, and tuples by lists."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not isfinite(value) else value


def parse(data: bytes | str) -> Any:
    """Parse JSON strictly: Python's own parser also reads NaN, Infinity and numbers that no float can hold.

    Raises:
        ValueError: it isn't JSON.
    """
    try:
        return json.loads(
            data, parse_constant=_refuse_constant, parse_int=_integer, parse_float=_float
        )
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _integer(digits: str) -> int:
    # Whatever is computed from it would overflow, wherever that may be.
    if len(digits) > _MOST_DIGITS:
        raise ValueError("it holds a number that is too large")
    return int(digits)


def _float(digits: str) -> float:
    value = float(digits)
    if not isfinite(value):
        raise ValueError("it holds a number that is too large")
    return value


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
