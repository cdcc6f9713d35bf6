"""Ways to damage a saved folder: bytes, files that become something else, swaps, forgeries with repaired checksums."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from senn import atomic_files

HUGE = 10**12
HOSTILE = [
    None,
    True,
    -1,
    HUGE,
    1e308,
    "x",
    "../x",
    [],
    [[]],
    {},
    {"tensor": "0"},
    {"float": "x"},
    {"items": 3},
    10**400,
    "\x1b[2J",
    "\udce9",
]


def _cut(data: bytes, draw: random.Random) -> bytes:
    return data[: draw.randrange(len(data))]


def _flip(data: bytes, draw: random.Random) -> bytes:
    at = draw.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << draw.randrange(8)]) + data[at + 1 :]


def _zeros(data: bytes, draw: random.Random) -> bytes:
    at = draw.randrange(len(data))
    return data[:at] + bytes(min(64, len(data) - at)) + data[at + 64 :]


BYTES: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "cut": _cut,
    "bit flipped": _flip,
    "zeros": _zeros,
    "emptied": lambda data, draw: b"",
    "noise": lambda data, draw: draw.randbytes(draw.randrange(1, 999)),
    "longer": lambda data, draw: data + draw.randbytes(3),
    "twice": lambda data, draw: data * 2,
    "deep": lambda data, draw: b"[" * 200_000,
    "deep tables": lambda data, draw: b'{"a":' * 50_000,
    "NaN": lambda data, draw: b'{"format": NaN}',
    "huge header": lambda data, draw: HUGE.to_bytes(8, "little") + data[8:],
    "huge tensor": lambda data, draw: _header(
        {"a": {"dtype": "F32", "shape": [HUGE], "data_offsets": [0, 4 * HUGE]}}
    ),
}


def _header(document: dict[str, Any]) -> bytes:
    text = json.dumps(document).encode()
    return len(text).to_bytes(8, "little") + text


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _link(path: Path, to: str) -> None:
    path.unlink()
    path.symlink_to(to)


def _sparse(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(HUGE)


PLACES: dict[str, Callable[[Path], None]] = {
    "gone": Path.unlink,
    "a folder": _folder,
    "a pipe": _pipe,
    "a link to itself": lambda path: _link(path, path.name),
    "a link to nowhere": lambda path: _link(path, "nowhere"),
    "a link to a device": lambda path: _link(path, "/dev/zero"),
    "10^12 bytes": _sparse,
}


def _leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    for key, item in (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    ):
        yield (*path, key)
        yield from _leaves(item, (*path, key))


def _forge(path: Path, draw: random.Random) -> None:
    """One value replaced, or one tensor, and every checksum that tells of it repaired."""
    if path.suffix == ".json":
        document = json.loads(path.read_text())
        *parents, key = draw.choice([*_leaves(document)])
        holder = document
        for parent in parents:
            holder = holder[parent]
        holder[key] = draw.choice(HOSTILE)
        with contextlib.suppress(ValueError, TypeError):
            document["checksum"] = atomic_files.checksum(document)
        path.write_text(json.dumps(document))
    elif path.suffix == ".safetensors":
        tensors = safetensors.numpy.load(path.read_bytes())
        name = draw.choice([*tensors])
        old = tensors[name]
        new = [
            old.astype(np.int16),
            old.astype(np.float64),
            old.reshape(-1),
            old[..., None],
            np.full_like(old, 255),
        ]
        tensors[name] = draw.choice(
            [*new, np.zeros((3, 1), np.float32), np.full(old.shape, np.nan)]
        )
        path.write_bytes(
            safetensors.numpy.save({key: np.ascontiguousarray(one) for key, one in tensors.items()})
        )
    else:
        path.write_bytes(path.read_bytes().replace(b":", b",", 1))
    _repair(path)


def _repair(path: Path) -> None:
    """Have the documents beside a file tell of it as it is now."""
    data = path.read_bytes()
    told = {"bytes": len(data), "sha256": atomic_files.bytes_digest(data)}
    for name in ("model.json", "results.json", "state.json"):
        other = path.with_name(name)
        if other == path or not other.is_file():
            continue
        document = json.loads(other.read_text())
        if name == "model.json" and path.name == "model.safetensors":
            document["weights_sha256"] = told["sha256"]
        elif name == "state.json" and path.name == "state.safetensors":
            document["numbers"] = told
        elif name == "results.json" and path.name in document.get("files", {}):
            document["files"][path.name] = told
        else:
            continue
        document["checksum"] = atomic_files.checksum(document)
        other.write_text(json.dumps(document))
        _repair(other)


def damage(folder: Path, other: Path, draw: random.Random) -> tuple[str, bool]:
    """Damage one file of a folder; says how, and whether checksums were repaired."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix != ".png")
    path = draw.choice(files)
    name = str(path.relative_to(folder))
    kind = draw.choice(["bytes", "bytes", "place", "swap", "forged"])
    if kind == "bytes":
        how = draw.choice([*BYTES])
        path.write_bytes(BYTES[how](path.read_bytes(), draw))
    elif kind == "place":
        how = draw.choice([*PLACES])
        PLACES[how](path)
    elif kind == "swap":
        alien = other / name
        if draw.random() < 0.5 and alien.is_file():
            how = "another run's"
            shutil.copyfile(alien, path)
        else:
            second = draw.choice(files)
            how = f"swapped with {second.relative_to(folder)}"
            data = path.read_bytes()
            path.write_bytes(second.read_bytes())
            second.write_bytes(data)
    else:
        how = "forged"
        _forge(path, draw)
    return f"{name}: {how}", kind == "forged"
