"""Ways to damage a saved folder: bytes, files that become something else, swaps, forgeries with repaired checksums."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
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
    "\x1b]0;title\x07",
    "\x9b2J",
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


def _scaled(value: Any, draw: random.Random) -> Any:
    """Another value of the same kind, which no check of types would notice."""
    if isinstance(value, bool) or value is None:
        return not value
    if isinstance(value, int | float):
        return draw.choice([0, -value, value + 1, value * 1000, value / 3, float(value)])
    if isinstance(value, str):
        return draw.choice(["", value.upper(), f"{value}x", value * 9, f" {value}"])
    if isinstance(value, list):
        return draw.choice([[], value[:-1], value + value[-1:], value * 2, value[::-1]])
    return draw.choice([{}, {**value, "more": 1}, {str(key): 0 for key in value}])


def mutate(document: Any, draw: random.Random) -> None:
    """Change one value of a JSON document, at any depth: into a hostile one, a likely one, or nothing."""
    places = [*_leaves(document)]
    if not places:
        return
    *parents, key = draw.choice(places)
    holder = document
    for parent in parents:
        holder = holder[parent]
    kind = draw.random()
    if kind < 0.5:
        holder[key] = draw.choice(HOSTILE)
    elif kind < 0.85:
        holder[key] = _scaled(holder[key], draw)
    else:
        del holder[key]


def _forge(path: Path, draw: random.Random) -> None:
    """One value replaced, or one tensor, and every checksum that tells of it repaired."""
    if path.suffix == ".json":
        document = json.loads(path.read_text())
        mutate(document, draw)
        with contextlib.suppress(ValueError, TypeError):
            document["checksum"] = atomic_files.checksum(document)
        path.write_text(json.dumps(document))
    elif path.suffix == ".jsonl":
        lines = path.read_text().splitlines() or ["{}"]
        at = draw.randrange(len(lines))
        record = json.loads(lines[at])
        mutate(record, draw)
        lines[at] = json.dumps(record)
        path.write_text("".join(f"{line}\n" for line in lines))
    elif path.suffix == ".safetensors" and draw.random() < 0.4:
        data = path.read_bytes()
        end = 8 + int.from_bytes(data[:8], "little")
        header = json.loads(data[8:end])
        mutate(header, draw)
        path.write_bytes(_header(header) + data[end:])
    elif path.suffix == ".safetensors":
        path.write_bytes(_other_tensor(path.read_bytes(), draw))
    _repair(path)


def _other_tensor(data: bytes, draw: random.Random) -> bytes:
    """Weights of which one tensor has another type, shape or content."""
    tensors = safetensors.numpy.load(data)
    name = draw.choice([*tensors])
    old = tensors[name]
    new = [
        old.astype(np.int16),
        old.astype(np.float64),
        old.reshape(-1),
        old[..., None],
        np.full_like(old, 255),
    ]
    tensors[name] = draw.choice([*new, np.zeros((3, 1), np.float32), np.full(old.shape, np.nan)])
    return safetensors.numpy.save({key: np.ascontiguousarray(one) for key, one in tensors.items()})


def _repair(path: Path) -> None:
    """Have the documents beside a file tell of it as it is now."""
    data = path.read_bytes()
    told = {"bytes": len(data), "sha256": atomic_files.bytes_digest(data)}
    states = path.parent.glob("checkpoint-*/state.json")
    for other in (*map(path.with_name, ("model.json", "results.json", "state.json")), *states):
        if other == path or not other.is_file():
            continue
        document = json.loads(other.read_text())
        if not isinstance(document, dict) or not _retell(document, path, other.name, told):
            continue
        with contextlib.suppress(ValueError, TypeError):
            document["checksum"] = atomic_files.checksum(document)
        other.write_text(json.dumps(document))
        _repair(other)


def _retell(document: dict[str, Any], path: Path, name: str, told: dict[str, Any]) -> bool:
    """Bring the digest of a file in a document up to date; says whether it has one."""
    if name == "model.json" and path.name == "model.safetensors":
        document["weights_sha256"] = told["sha256"]
    elif name == "state.json" and path.name == "state.safetensors":
        document["numbers"] = told
    elif name == "state.json" and path.name == "history.jsonl":
        document["history"] = told
    elif name == "state.json" and path.name == "run.json":
        document["run"] = json.loads(path.read_text()).get("checksum")
    elif name == "results.json" and path.name in (document.get("files") or {}):
        document["files"][path.name] = told
    else:
        return False
    return True


KINDS = ("bytes", "bytes", "place", "swap", "forged")


def damage(
    folder: Path, other: Path, draw: random.Random, kinds: Sequence[str] = KINDS
) -> tuple[str, bool]:
    """Damage one file of a folder; says how, and whether checksums were repaired.

    Args:
        folder: of a run or of a saved model.
        other: folder of another run, to swap files with.
        draw: source of chance.
        kinds: of damage, of which one is drawn.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix != ".png")
    path = draw.choice(files)
    name = str(path.relative_to(folder))
    kind = draw.choice(kinds)
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
