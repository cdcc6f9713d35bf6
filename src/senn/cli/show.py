"""`senn show`: what a folder written by `senn fit` holds."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from senn.cli.folder import HISTORY, RESULTS, read_run
from senn.errors import SennError


def run(args: argparse.Namespace) -> int:
    """Carry the command out."""
    results = read_run(args.folder)
    if args.json:
        print(json.dumps(results, ensure_ascii=False))
        return 0
    growth = _growth(args.folder)
    try:
        lines = _lines(results, growth)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        where = f"{str(args.folder / RESULTS)!r} or its {HISTORY}"
        raise SennError(f"{where} is damaged: {type(error).__name__}: {error}") from error
    print("\n".join(lines))
    return 0


def _growth(folder: Path) -> list[dict[str, Any]]:
    """The changes of size in a run's history."""
    try:
        records = [json.loads(line) for line in (folder / HISTORY).read_text(encoding="utf-8").splitlines()]
        return [record for record in records if record["event"] == "growth"]
    except OSError as error:
        raise SennError(f"{str(folder)!r} has no history ({HISTORY}: {error.strerror or error})") from error
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise SennError(f"{str(folder / HISTORY)!r} is damaged: it doesn't hold a JSON record per line") from error


def _lines(results: dict[str, Any], growth: list[dict[str, Any]]) -> list[str]:
    data = results["data"]
    scores = ", ".join(f"{name} {value:.4g}" for name, value in results["test"].items() if value is not None)
    hidden = "-".join(map(str, results["architecture"])) or "none"
    lines = [
        f"{data['name']}: {results['task']} of {_what(data)}",
        f"test ({data['test_rows']:,} {'images' if data.get('kind') == 'images' else 'rows'}): {scores}",
        f"hidden layers {hidden}, {results['parameters']:,} parameters, {results['seconds']:.1f} seconds, "
        f"seed {results['seed']}, {results['optimizer']}, {results['policy']}",
    ]
    if results["interrupted"]:
        lines.append("training was interrupted")
    for record in growth:
        realised = record["realised"]
        came = "" if realised is None else f", realised {-realised:+.3g}"
        lines.append(f"  step {record['step']}: {record['text']}{came}")
    return lines


def _what(data: dict[str, Any]) -> str:
    """What is classified or predicted, from how much."""
    if data.get("kind") == "images":
        size = " x ".join(map(str, data["shape"]))
        return f"images of {size} into {len(data['classes']):,} classes, {data['train_rows']:,} training images"
    return f"{data['target']!r} from {data['features']:,} features, {data['train_rows']:,} training rows"
