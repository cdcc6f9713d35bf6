"""Cases of fuzz.py: an input that somebody else made, and a command that reads it."""

from __future__ import annotations

import random
import shutil
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import fuzz_inputs as inputs
import pandas as pd
import torch
from damage import damage

import senn
from senn.checkpoint import load_extra
from senn.cli.main import main as command
from senn.cli.watch import LOOPBACK, Watch
from senn.errors import SennError
from senn.runs import read
from senn.training.progress import LinesCallback

Act = Callable[[], object]
"""What is done to an input; a number that it returns is a command's exit code."""


@dataclass(frozen=True, kw_only=True)
class Home:
    """What the cases are made from.

    Attributes:
        root: folder with a finished, an interrupted and a killed run on a table, `images` and `images-killed`,
            `other` to swap files with, and `new.csv`.
        bombs: hostile tables.
        huge: hostile images.
    """

    root: Path
    bombs: list[Path]
    huge: list[Path]


KINDS = ("bytes", "place", "swap", *["forged"] * 5)
"""Mostly what has the right checksums: all else is found at the door."""
RUNS = ("finished", "interrupted", "killed", "numbers", "images", "images-killed")


def set_up(root: Path, *, short: bool = False) -> None:
    """Make the runs that cases damage, and the files that are large; no runs and few files for a short trial."""
    bombs, huge = inputs.small_bombs(), inputs.small_huge_pictures()
    if not short:
        bombs, huge = inputs.make_bombs(), inputs.huge_pictures()
    for name, files in (("bombs", bombs), ("huge", huge)):
        (root / name).mkdir()
        for file, content in files.items():
            (root / name / file).write_bytes(content)
    draw = random.Random(0)
    inputs.frame(draw, 120).to_csv(root / "old.csv", index=False)
    inputs.frame(draw).to_csv(root / "new.csv", index=False)
    for label, name in enumerate(("dark", "bright")):
        (root / "pictures" / name).mkdir(parents=True)
        for at in range(12):
            inputs.picture(draw, label).save(root / "pictures" / name / f"{at}.png")
    if not short:
        _make_runs(root)


def _make_runs(root: Path) -> None:
    table = ["fit", str(root / "old.csv"), "--epochs", "4", "--quiet", "--out"]
    pictures = [
        "fit",
        str(root / "pictures"),
        "--epochs",
        "3",
        "--image-size",
        "8",
        "--quiet",
        "--out",
    ]
    for argv, name, more in (
        (table, "finished", ["--target", "kind"]),
        (table, "numbers", ["--target", "size"]),
        (pictures, "images", []),
    ):
        assert command([*argv, str(root / name), *more]) == 0
    assert command([*table, str(root / "other"), "--target", "kind", "--seed", "1"]) == 0
    on_epoch = LinesCallback.on_epoch
    try:
        LinesCallback.on_epoch = lambda self, record: (
            record["epoch"] == 2 and signal.raise_signal(signal.SIGINT)
        )
        assert command([*table, str(root / "interrupted"), "--target", "kind"]) == 130
        assert command([*pictures, str(root / "images-cut")]) == 130
    finally:
        LinesCallback.on_epoch = on_epoch
    shutil.copytree(root / "interrupted" / "unfinished", root / "killed" / "unfinished")
    shutil.copytree(root / "images-cut" / "unfinished", root / "images-killed" / "unfinished")


# -- folders of runs


def folder_case(home: Home, work: Path, draw: random.Random) -> tuple[str, Act]:
    """A run's folder, damaged or forged once or several times, and any command or export."""
    name = draw.choice(RUNS)
    run = work / "run"
    shutil.copytree(home.root / name, run)
    hows = _damages(run, home, draw)
    if draw.random() < 0.1:
        place = run / draw.choice(
            [".lock", "unfinished/.lock", "growth.png", "report.html", "model.onnx"]
        )
        if place.parent.is_dir() and not place.exists():
            place.symlink_to("../outside/secret" if place.parent == run else "../../outside/secret")
            hows.append(f"{place.name} a link")
    use, act = _use(run, home, work, name.startswith("images"), draw)
    return f"{name}, {'; '.join(hows)} | {use}", act


def _damages(run: Path, home: Home, draw: random.Random) -> list[str]:
    """Damage a folder once or several times; says how."""
    hows = []
    for _ in range(draw.choice([1, 1, 2, 4])):
        with suppress(Exception):  # what is damaged can't be forged
            hows.append(damage(run, home.root / "other", draw, KINDS)[0])
    return hows


def _use(run: Path, home: Home, work: Path, images: bool, draw: random.Random) -> tuple[str, Act]:
    new = str(home.root / ("pictures" if images else "new.csv"))
    out = str(work / "out")
    commands = {
        "show": ["show", str(run)],
        "show --json": ["show", str(run), "--json"],
        "predict": ["predict", str(run), new, "--proba"],
        "predict --out": ["predict", str(run), new, "--out", f"{out}.parquet"],
        "evaluate": ["evaluate", str(run), str(home.root / ("pictures" if images else "old.csv"))],
        "report": ["report", str(run), "--out", f"{out}.html"],
        "compare": ["report", str(run), str(home.root / "other"), "--out", f"{out}.html"],
        "python": ["export", str(run), "--to", "python", "--out", out],
        "hub": ["export", str(run), "--to", "hub", "--out", out],
        "resume": ["fit", "--resume", str(run), "--quiet"],
        "fit over it": ["fit", str(home.root / "old.csv"), "--target", "kind", "--out", str(run), "--dry-run"],
        "overwrite": ["fit", str(home.root / "old.csv"), "--target", "kind", "--epochs", "1", "--quiet",
                      "--overwrite", "--out", str(run)],
        "pt2": ["export", str(run), "--to", "pt2", "--out", f"{out}.pt2"],
        "onnx": ["export", str(run), "--to", "onnx", "--out", f"{out}.onnx"],
    }  # fmt: skip
    rare = {"pt2": 2, "onnx": 1, "overwrite": 3, "resume": 12}
    others: dict[str, Act] = {
        "read": lambda: read(run),
        "load": lambda: senn.load(run),
        "load_run": lambda: senn.load_run(run).predict(new if images else pd.read_csv(new)),
        "watch": lambda: _watched(run),
    }
    names = [*commands, *others]
    use = draw.choices(names, [rare.get(name, 8) for name in names])[0]
    if use in others:
        return use, others[use]
    return use, lambda: command(commands[use])


def _watched(run: Path) -> None:
    """Serve a damaged run's records to a browser, as a resumed run does."""
    history = read(run).history
    with Watch(run.name, 0, lambda line: None, history) as watch:
        answer = _request(watch, f"GET /{watch.secret}/ HTTP/1.0\r\nHost: {_host(watch)}\r\n\r\n")
        assert b"200 OK" in answer, answer[:200]


# -- tables and images


def table_case(home: Home, work: Path, draw: random.Random) -> tuple[str, Act]:
    """A table in any format, with hostile cells or damaged bytes."""
    path, how = inputs.table(work, draw, home.bombs)
    run, out = home.root / draw.choice(["finished", "numbers"]), str(work / "out")
    new = ["--out", out]
    commands = {
        "dry run": ["fit", str(path), "--target", "kind", "--dry-run"],
        "fit": ["fit", str(path), "--target", draw.choice(["kind", "size", "price", "since"]),
                "--epochs", "1", *new],
        "fit --json": ["fit", str(path), "--target", "kind", "--epochs", "1", "--json", *new],
        "fit --test": ["fit", str(home.root / "old.csv"), "--target", "kind", "--test", str(path),
                       "--epochs", "1", "--quiet", *new],
        "fit --group": ["fit", str(path), "--target", "kind", "--group", "color", "--dry-run"],
        "fit --time": ["fit", str(path), "--target", "kind", "--time", "since", "--dry-run"],
        "column": ["fit", str(path), "--target", "kind", "--dry-run", "--column",
                   f"price={draw.choice(['number', 'date', 'category', 'boolean', 'dropped'])}"],
        "predict": ["predict", str(run), str(path), "--proba"][: 3 + (run.name == "finished")],
        "predict --keep": ["predict", str(run), str(path), "--keep", "color", "--out",
                           out + draw.choice([".csv", ".parquet", ".feather", ".jsonl"])],
        "evaluate": ["evaluate", str(run), str(path)],
    }  # fmt: skip
    names = [*commands]
    use = draw.choices(names, [3 if name.startswith("fit") else 6 for name in names])[0]
    return f"{how} | {use}", lambda: command(commands[use])


def image_case(home: Home, work: Path, draw: random.Random) -> tuple[str, Act]:
    """Folders and files of images: odd formats, damaged bytes, links, pipes, claims of size."""
    run, folder = home.root / "images", work / "pictures"
    if draw.random() < 0.2:
        images, labels = inputs.idx(draw)
        folder.mkdir()
        how = draw.choice([*inputs.BYTES])
        damaged = inputs.BYTES[how](images, draw)
        (folder / "train-images-idx3-ubyte").write_bytes(damaged)
        (folder / "train-labels-idx1-ubyte").write_bytes(labels)
        how = f"IDX: {how}"
    else:
        how = inputs.image_folder(folder, draw, home.huge)
    commands = {
        "dry run": ["fit", str(folder), "--dry-run"],
        "fit": ["fit", str(folder), "--epochs", "1", "--image-size", "8", "--quiet", "--out",
                str(work / "out")],
        "fit --test": ["fit", str(home.root / "pictures"), "--test", str(folder), "--dry-run"],
        "predict": ["predict", str(run), str(folder)],
        "predict --out": ["predict", str(run), str(folder), "--out", str(work / "out.jsonl")],
        "evaluate": ["evaluate", str(run), str(folder)],
    }  # fmt: skip
    use = draw.choice([*commands])
    return f"{how} | {use}", lambda: command(commands[use])


# -- requests


def request_case(home: Home, work: Path, draw: random.Random) -> tuple[str, Act]:
    """Bytes that no browser sends to the page of a run that trains."""
    head = draw.choice(["GET", "POST", "HEAD", "\x00", "GET" * 9000, "OPTIONS", "get", ""])
    path = draw.choice(["/", "SECRET/", "SECRET/events", "SECRET/../..", "/%00", "/" * 70_000, "SECRET/x",
                        "http://evil/SECRET/", "SECRET/?a=b", "SECRET", "//SECRET/", "/\udce9"])  # fmt: skip
    host = draw.choice(
        ["HOST", "evil.example", "", "HOST\r\nHost: evil", "a" * 70_000, "LOCALHOST:PORT"]
    )
    version = draw.choice(
        ["HTTP/1.0", "HTTP/1.1", "HTTP/9.9", "", "HTTP/1.1\r\nContent-Length: 99999999999"]
    )
    text = f"{head} {path} {version}\r\nHost: {host}\r\n\r\n"
    raw = draw.random() < 0.3

    def ask() -> None:
        with Watch("run", 0, lambda line: None, read(home.root / "finished").history) as watch:
            port = _host(watch).partition(":")[2]
            filled = text.replace("SECRET", f"/{watch.secret}").replace("HOST", _host(watch))
            data = filled.replace("PORT", port).encode("utf-8", "surrogateescape")
            if raw:
                data = inputs.BYTES[draw.choice(["cut", "bit flipped", "noise", "twice"])](
                    data, draw
                )
            answer = _request(watch, data)
            own = f"Host: {_host(watch)}".encode() in data and watch.secret.encode() in data
            assert own or b"200 OK" not in answer.splitlines()[:1], "answered without the secret"
            whole = f"GET /{watch.secret}/ HTTP/1.0\r\nHost: {_host(watch)}\r\n\r\n"
            assert b"200 OK" in _request(watch, whole), "no longer answers"

    return f"request {text[:80]!a}{' damaged' * raw}", ask


def _host(watch: Watch) -> str:
    assert watch.url is not None
    return watch.url.split("/")[2]


def _request(watch: Watch, data: str | bytes) -> bytes:
    data = data.encode() if isinstance(data, str) else data
    with socket.create_connection((LOOPBACK, int(_host(watch).partition(":")[2])), 5) as asked:
        answer = b""
        try:
            asked.sendall(data)
            asked.shutdown(socket.SHUT_WR)
            until = time.monotonic() + (0.3 if b"events" in data else 5)
            while time.monotonic() < until:
                asked.settimeout(max(0.01, until - time.monotonic()))
                part = asked.recv(1 << 20)
                if not part:
                    break
                answer += part
        except OSError:  # it may hang up at any time
            pass
        return answer


# -- saved models without a run


def model_case(home: Home, work: Path, draw: random.Random) -> tuple[str, Act]:
    """A folder of `senn.save`, damaged or forged."""
    torch.manual_seed(0)
    senn.save(work / "run", _small(5), extra={"a": [1, {"b": "c"}]})
    hows = _damages(work / "run", home, draw)

    def into() -> None:
        fresh = _small(4)
        before = {name: tensor.clone() for name, tensor in fresh.state_dict().items()}
        try:
            senn.load(work / "run", into=fresh)
        except SennError:
            same = fresh.state_dict()
            assert all(torch.equal(before[name], same[name]) for name in before), "half loaded"
            raise

    use, act = draw.choice(
        [
            ("load into", into),
            ("load", lambda: senn.load(work / "run")),
            ("extra", lambda: load_extra(work / "run")),
        ]
    )
    return f"saved model, {'; '.join(hows)} | {use}", act


def _small(width: int) -> torch.nn.Module:
    return torch.nn.Sequential(
        torch.nn.Linear(3, width), torch.nn.BatchNorm1d(width), torch.nn.ReLU(), torch.nn.Linear(width, 2)
    )  # fmt: skip


FAMILIES: dict[str, tuple[float, Callable[[Home, Path, random.Random], tuple[str, Act]]]] = {
    "folders of runs": (0.4, folder_case),
    "tables": (0.3, table_case),
    "images": (0.15, image_case),
    "saved models": (0.1, model_case),
    "requests to the live page": (0.05, request_case),
}
"""Kinds of input with their shares of the cases."""
WITHOUT_RUNS = ("tables", "images", "saved models")
"""Families that a short trial has: commands that ask for a run are answered that there is none."""


Case = tuple[str, str, Act]
"""Family, what it is, and what is done."""


def make(home: Home, work: Path, number: int, seed: int) -> Case:
    """Make a case in an empty folder."""
    draw = random.Random(f"{seed} {number}")
    known = [*FAMILIES] if (home.root / "finished").exists() else [*WITHOUT_RUNS]
    family = draw.choices(known, [FAMILIES[name][0] for name in known])[0]
    what, act = FAMILIES[family][1](home, work, draw)
    return family, what, act
