"""What becomes of damaged run folders: every file cut, flipped, swapped, forged; read, loaded, shown, resumed.

    python benchmarks/damaged_folders.py --out benchmarks/results/damaged_folders.json

Counts, for each way of using a folder, how often damage did no harm (the answer is that of the whole folder), was
refused in one sentence with nothing touched, or had an answer of its own where somebody who knows the format has
repaired all checksums; and how often it crashed, hung, or gave a wrong answer: never, it is hoped.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import os
import random
import resource
import shutil
import signal
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from damage import HUGE, damage
from sklearn.datasets import load_wine

import senn
import senn.cli.fit
from senn import atomic_files
from senn.cli.main import main as command
from senn.errors import SennError
from senn.runs import read
from senn.training import TrainConfig
from senn.training.builders import build_model
from senn.training.progress import LinesCallback

SECONDS = 20
"""After so many, it hangs."""


def set_up(root: Path) -> dict[str, Path]:
    """A finished run, an interrupted one, one that was killed, another one to swap files with, and a table."""
    load_wine(as_frame=True).frame.drop(columns="target").to_csv(root / "new.csv", index=False)
    argv = ["fit", "wine", "--epochs", "6", "--quiet", "--out"]
    assert command([*argv, str(root / "finished")]) == 0
    assert command([*argv, str(root / "other"), "--seed", "1"]) == 0
    on_epoch = LinesCallback.on_epoch
    try:
        LinesCallback.on_epoch = lambda self, record: (
            record["epoch"] == 5 and signal.raise_signal(signal.SIGINT)
        )
        assert command([*argv, str(root / "interrupted")]) == 130
        assert command([*argv, str(root / "other"), "--seed", "1", "--overwrite"]) == 130
    finally:
        LinesCallback.on_epoch = on_epoch
    shutil.copytree(root / "interrupted" / "unfinished", root / "killed" / "unfinished")
    return {name: root / name for name in ("finished", "interrupted", "killed")}


# -- use: each gives what can be compared


def _said(argv: list[str]) -> str:
    """What a command prints.

    Raises:
        SennError: it refused, in one line.
    """
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = command(argv)
    if code == 2:
        text = err.getvalue()
        assert text.count("\n") == 1, text
        assert text.startswith("senn: "), text
        assert not out.getvalue() or argv[0] == "fit", out.getvalue()
        assert "\x1b" not in text, text
        raise SennError(text)
    assert code == 0, (code, err.getvalue())
    return out.getvalue()


def _numbers(model: torch.nn.Module) -> str:
    return str([(name, one.shape, one.sum().item()) for name, one in model.state_dict().items()])


def _into(folder: Path) -> str:
    fresh = build_model(13, 3, TrainConfig())
    before = _numbers(fresh)
    try:
        return _numbers(senn.load(folder, into=fresh))
    except SennError:
        assert _numbers(fresh) == before, "a model was changed by a load that failed"
        raise


def _resumed(folder: Path) -> str:
    _said(["fit", "--resume", str(folder), "--quiet"])
    history = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    kept = [{key: value for key, value in record.items() if key != "seconds"} for record in history]
    return atomic_files.bytes_digest((folder / "model.safetensors").read_bytes()) + str(kept)


def _exported(to: str, folder: Path) -> str:
    """Export to a folder of its own, which is there if and only if the command says so."""
    out = folder.with_name(f"out-{to}")
    try:
        _said(["export", str(folder), "--to", to, "--out", str(out)])
        return str(sorted(path.name for path in out.iterdir())) if out.is_dir() else out.name
    except SennError:
        assert not out.exists(), "a refused export has left something"
        raise
    finally:
        shutil.rmtree(out, ignore_errors=True)
        out.unlink(missing_ok=True)


def _reported(folder: Path) -> str:
    page = folder.with_name("page.html")
    try:
        _said(["report", str(folder), "--out", str(page)])
        return str(page.exists())
    finally:
        page.unlink(missing_ok=True)


USES: dict[str, Callable[[Path], str]] = {
    "read": lambda folder: str(read(folder)),
    "load": lambda folder: _numbers(senn.load(folder)),
    "load into": _into,
    "predict": lambda folder: _said(["predict", str(folder), str(folder.parent / "new.csv")]),
    "show": lambda folder: _said(["show", str(folder)]),
    "report": _reported,
    "export to python": partial(_exported, "python"),
    "export to the hub": partial(_exported, "hub"),
    "export to pt2": partial(_exported, "pt2"),
    "resume": _resumed,
}
SHORT = ("read", "load", "load into", "predict", "show", "resume")
"""Uses of the short form, and those of them that it makes of some folders only:"""
SLOW = ("resume", "predict", "load into")


def _tree(folder: Path) -> str:
    """A checksum of all that lies in a folder."""
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        total.update(str(path.relative_to(folder)).encode())
        if path.is_file() and not path.is_symlink() and path.stat().st_size < HUGE:
            total.update(path.read_bytes())
    return total.hexdigest()


def _hangs(number: int, frame: object) -> None:
    raise TimeoutError


def outcome(use: str, folder: Path, expected: str | None, forged: bool) -> str:
    """What becomes of one use of a damaged folder."""
    before = _tree(folder)
    former = signal.signal(signal.SIGALRM, _hangs)
    signal.alarm(SECONDS)
    try:
        answer = USES[use](folder)
    except SennError as error:
        if len(str(error).strip().splitlines()) > 1:
            return "crashed: more than a sentence"
        return "refused" if _tree(folder) == before else "touched"
    except TimeoutError:
        return "hung"
    except BaseException as error:
        return f"crashed: {type(error).__name__}: {error}"[:300]
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, former)
    return "no harm" if answer == expected else "its own answer" if forged else "wrong"


def measure(
    cases: int, seed: int, root: Path, sparing: int = 1, uses: Sequence[str] = SHORT
) -> dict[str, Any]:
    """Damage so many folders and use each in every way; with `sparing` some uses on only every so many-th."""
    os.environ["SENN_CHECKPOINT_SECONDS"] = "0"
    draw_figure, senn.cli.fit.growth_figure = (
        senn.cli.fit.growth_figure,
        lambda *_: None,
    )  # no part in this
    try:
        originals = set_up(root)
        work, draw = root / "work", random.Random(seed)
        expected: dict[tuple[str, str], str | None] = {}
        counts: dict[str, Counter[str]] = {use: Counter() for use in uses}
        bad = []
        for name, original in originals.items():
            for use in uses:
                shutil.copytree(original, work)
                with contextlib.suppress(SennError):
                    expected[name, use] = USES[use](work)
                shutil.rmtree(work)
        for number in range(cases):
            name = [*originals][number % len(originals)]
            shutil.copytree(originals[name], work)
            how, forged = damage(work, root / "other", draw)
            for use in uses:
                spared = number % sparing and use in SLOW
                if spared or (use == "resume" and name == "finished"):
                    continue
                # What is left of an interrupted run without its results is one that was killed.
                like = "killed" if how == "results.json: gone" and use in ("read", "show") else name
                found = outcome(use, work, expected.get((like, use)), forged)
                counts[use][found.partition(":")[0]] += 1
                if found.partition(":")[0] not in ("no harm", "refused", "its own answer"):
                    bad.append(f"{number}, {name}, {how}, {use}: {found}")
            shutil.rmtree(work)
    finally:
        senn.cli.fit.growth_figure = draw_figure
        del os.environ["SENN_CHECKPOINT_SECONDS"]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return {
        "cases": cases,
        "peak_mb": peak,
        "seed": seed,
        "counts": {use: dict(found) for use, found in counts.items()},
        "bad": bad,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        results = measure(args.cases, args.seed, Path(root), uses=[*USES])
    columns = ["no harm", "refused", "its own answer", "crashed", "hung", "wrong", "touched"]
    print("".join(f"{column:>16}" for column in ["", *columns]))
    for use, found in results["counts"].items():
        print(
            "".join(
                f"{value:>16}" for value in [use, *(found.get(column, 0) for column in columns)]
            )
        )
    print("\n".join(results["bad"]))
    if args.out is not None:
        args.out.write_text(
            json.dumps({"command": f"damaged_folders.py --cases {args.cases}", **results}, indent=1)
            + "\n"
        )


if __name__ == "__main__":
    main()
