"""Is a net that grew as good as a fixed net of exactly its final architecture, and as good as fixed nets of any size?

MNIST and digits (a perceptron from 10 hidden units, without the shortcut) and a part of CIFAR-10 (the conv net of
`train_images`), each by the library's default recipe. Each grown net is paired, seed by seed, with fixed twins of its
final widths: same rows, epochs, optimizer, learning rates and stopping rule. One twin of a perceptron starts as the
grown net's units do, with output weights of zero (`silent`), one as `torch.nn.Linear` draws them (`drawn`).

    python benchmarks/grown_and_fixed.py --data-dir DIR --seeds 5 --out grown_and_fixed.json
    python benchmarks/grown_and_fixed.py --sets mnist --prices 0.3 0.1 0.03 --sizes 16 32 64 128 256    # the frontier
    python benchmarks/grown_and_fixed.py --sets mnist --variants --tuning     # what each choice of the recipe does

With `--tuning`, scores are of rows held out of training, never of test rows.

Prices (kappa) beyond the default one and fixed sizes make the frontier of accuracy against size, on MNIST only. Seconds
are of processor time, everything being measured in one process, one net after the other.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional as F

from senn import PricePolicy
from senn.data.images import load_images, planes
from senn.nn import MLP
from senn.training import TrainConfig, TrainResult, train
from senn.training.augment import ChannelStats
from senn.training.batches import partition
from senn.training.image_training import image_config, train_images
from senn.training.loop import fit_model

SETS = ("digits", "mnist", "cifar-10")
START, CLASSES, SIDE = (10,), 10, 16

VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "rounds over a third of the run": {
        "growth_steps": 10**6,
        "addition_rounds": (0.02, 0.04, 0.08, 0.16, 0.32),
        "pruning_rounds": (0.4, 0.5),
    },
    "no removals": {"pruning_rounds": ()},
    "removals in the second half": {
        "growth_steps": 10**6,
        "addition_rounds": (0.002, 0.004, 0.01, 0.02, 0.05),
        "pruning_rounds": (0.55, 0.7),
    },
    "32 candidates a round": {"candidates_per_layer": 32},
    "two standard errors": {"policy": PricePolicy(confidence=2.0)},
    "Adam without decay": {"optimizer": "adam"},
}
"""Choices of the recipe other than the default ones, to see what each is good for."""


class Data(NamedTuple):
    """Rows to train on and rows to test on."""

    x: Tensor
    y: Tensor
    test_x: Tensor
    test_y: Tensor


def load(name: str, seed: int, options: argparse.Namespace) -> Data:
    """The rows of a seed; with `--tuning`, test rows are training rows held out."""
    generator = np.random.default_rng(seed)
    if name == "digits":
        x, y = load_digits(return_X_y=True)
        order = generator.permutation(len(x))
        test, kept = order[: len(x) // 5], order[len(x) // 5 :]
        if options.tuning:
            test, kept = kept[: len(x) // 5], kept[len(x) // 5 :]
        parts = (x[kept] / 16, y[kept], x[test] / 16, y[test])
    else:
        images = load_images("mnist" if name == "mnist" else "cifar-10", options.data_dir)
        order = generator.permutation(len(images.train))
        kept = (
            order[: options.images]
            if name == "cifar-10"
            else order[: None if not options.tuning else 50_000]
        )
        test_images = (
            images.train.take(order[len(kept) :][:10_000]) if options.tuning else images.test
        )
        side = SIDE if name == "cifar-10" else None
        parts = tuple(
            f
            for part in (images.train.take(kept), test_images)
            for f in (planes(part, side), part.labels)
        )
    x, y, test_x, test_y = (torch.as_tensor(np.array(part)) for part in parts)
    if name == "cifar-10":
        return Data(x, y, test_x, test_y)
    x, test_x = (rows.flatten(1).float() for rows in (x, test_x))
    mean, std = x.mean(), x.std()
    return Data((x - mean) / std, y, (test_x - mean) / std, test_y)


def recipe_of(name: str, options: argparse.Namespace, **choices: Any) -> TrainConfig:
    """The library's own recipe for that kind of data."""
    if name == "cifar-10":
        return image_config(epochs=options.epochs, **choices)
    epochs = {"epochs": 15} if name == "mnist" else {}
    return TrainConfig(
        **{
            "hidden": START,
            "shortcut": False,
            "moves": ("width", "prune"),
            "members": 1,
            **epochs,
            **choices,
        }
    )


def learn(
    name: str, data: Data, recipe: TrainConfig, *, drawn: bool = False
) -> tuple[TrainResult, float]:
    """Train one net; the run, and its processor seconds."""
    began = time.process_time()
    if name == "cifar-10":
        run = train_images(
            data.x,
            data.y,
            classes=CLASSES,
            standard=ChannelStats.of(data.x),
            recipe=recipe,
            device="cpu",
        )
    elif not drawn:
        run = train(data.x, data.y, task="classification", outputs=CLASSES, recipe=recipe)
    else:
        torch.manual_seed(recipe.seed)
        generator = torch.Generator().manual_seed(recipe.seed)
        rows, held_out = partition(data.x, data.y, recipe, generator=generator)
        model = MLP(data.x.shape[1], recipe.hidden, CLASSES, shortcut=False)
        run = fit_model(
            model, rows, held_out, task="classification", recipe=recipe, generator=generator
        )
    return run, time.process_time() - began


@torch.no_grad()
def record(
    name: str, net: str, seed: int, data: Data, found: tuple[TrainResult, float]
) -> dict[str, Any]:
    """What one net came to."""
    run, seconds = found
    read = ChannelStats.of(data.x) if name == "cifar-10" else (lambda x: x)
    output = torch.cat([run.model(read(x)) for x in data.test_x.split(1000)])
    grown = [event for event in run.history if event["event"] == "growth"]
    added = [abs(e["loss_after"] / e["loss_before"] - 1) for e in grown if e["kind"] != "prune"]
    result = {
        "set": name, "net": net, "seed": seed, "hidden": list(run.architecture), "parameters": run.parameters,
        "accuracy": float((output.argmax(1) == data.test_y).float().mean()),
        "loss": float(F.cross_entropy(output, data.test_y)), "cpu_seconds": seconds, "wall_seconds": run.seconds,
        "loss_change": max(added, default=0.0), "events": [[e["step"], e["kind"], e["architecture"]] for e in grown],
    }  # fmt: skip
    print(
        f"{name:9} {net:16} seed {seed}: accuracy {result['accuracy']:.4f}, loss {result['loss']:.4f}, "
        f"{'-'.join(map(str, run.architecture))}, {seconds:.1f} s",
        flush=True,
    )
    return result


def measure(name: str, seed: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """The grown net, its twins and, for MNIST, the frontier."""
    data = load(name, seed, options)
    if options.variants:
        return variants(name, seed, data, options)
    found = learn(name, data, recipe_of(name, options, seed=seed))
    rows = [record(name, "grown", seed, data, found)]
    twin = recipe_of(name, options, seed=seed, grow=False, hidden=tuple(found[0].architecture))
    kinds = (
        (("fixed", False),)
        if name == "cifar-10"
        else (("fixed, silent", False), ("fixed, drawn", True))
    )
    rows += [
        record(name, kind, seed, data, learn(name, data, twin, drawn=drawn))
        for kind, drawn in kinds
    ]
    if name == "mnist":
        for kappa in options.prices:
            recipe = recipe_of(name, options, seed=seed, policy=PricePolicy(kappa=kappa))
            rows.append(record(name, f"grown at {kappa:g}", seed, data, learn(name, data, recipe)))
        for size in options.sizes:
            for kind, drawn in kinds:
                sized = replace(twin, hidden=(size,))
                rows.append(
                    record(
                        name,
                        f"{size}, {kind[7:]}",
                        seed,
                        data,
                        learn(name, data, sized, drawn=drawn),
                    )
                )
    return rows


def variants(name: str, seed: int, data: Data, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Nets grown otherwise, each with its twin of the same recipe and start."""
    rows = []
    for kind, choices in VARIANTS.items():
        recipe = recipe_of(name, options, **{**choices, "seed": seed})
        found = learn(name, data, recipe)
        rows.append(record(name, kind, seed, data, found))
        twin = replace(recipe, grow=False, hidden=tuple(found[0].architecture))
        rows.append(record(name, f"{kind}, fixed", seed, data, learn(name, data, twin)))
    return rows


def summarise(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """By set and net: means and standard deviations; grown less each twin with its standard error, seeds paired."""
    summary: dict[str, Any] = {}
    for name in dict.fromkeys(row["set"] for row in rows):
        nets = dict.fromkeys(row["net"] for row in rows if row["set"] == name)
        by_net = {
            net: [row for row in rows if (row["set"], row["net"]) == (name, net)] for net in nets
        }
        found: dict[str, Any] = {}
        for net, mine in by_net.items():
            found[net] = {"units": statistics.fmean(sum(row["hidden"]) for row in mine)}
            for key in ("accuracy", "loss", "parameters", "cpu_seconds", "wall_seconds"):
                values = [row[key] for row in mine]
                found[net][key] = statistics.fmean(values)
                found[net][f"{key} spread"] = statistics.stdev(values) if len(values) > 1 else 0.0
            found[net]["loss_change"] = max(row["loss_change"] for row in mine)
            grown = by_net.get("grown" if net.startswith("fixed") else net.removesuffix(", fixed"))
            if grown is not None and "fixed" in net:
                for key in ("accuracy", "loss"):
                    differences = [a[key] - b[key] for a, b in zip(grown, mine, strict=True)]
                    error = (
                        statistics.stdev(differences) / len(differences) ** 0.5
                        if len(differences) > 1
                        else 0.0
                    )
                    found[net][f"grown less, {key}"] = [statistics.fmean(differences), error]
                seconds = [
                    a["cpu_seconds"] / b["cpu_seconds"] for a, b in zip(grown, mine, strict=True)
                ]
                found[net]["time ratio"] = statistics.fmean(seconds)
        summary[name] = found
    if "grown" in summary.get("mnist", {}):
        summary["frontier"] = frontier(summary["mnist"])
    return summary


def frontier(nets: dict[str, Any]) -> list[dict[str, float | str]]:
    """Accuracy of nets grown at each price less that of fixed nets, interpolated in the logarithm of their size."""
    lines: list[dict[str, float | str]] = []
    for kind in ("silent", "drawn"):
        fixed = sorted(
            (f["units"], f["accuracy"])
            for net, f in nets.items()
            if net.endswith(kind) and net[0].isdigit()
        )
        for net, f in nets.items():
            if net.startswith("grown") and len(fixed) > 1:
                at = np.interp(
                    np.log(f["units"]), np.log([u for u, _ in fixed]), [a for _, a in fixed]
                )
                lines.append(
                    {
                        "net": net,
                        "units": f["units"],
                        "fixed": kind,
                        "ahead": f["accuracy"] - float(at),
                    }
                )
    return lines


def write(rows: list[dict[str, Any]], options: argparse.Namespace) -> None:
    """Everything measured so far, as JSON."""
    settings = {
        key: value for key, value in vars(options).items() if key not in ("data_dir", "out")
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    document = {"settings": settings, "summary": summarise(rows), "rows": rows}
    options.out.write_text(json.dumps(document, indent=1) + "\n")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--sets",
        nargs="+",
        choices=("digits", "mnist", "cifar-10"),
        default=["digits", "mnist", "cifar-10"],
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument(
        "--prices", type=float, nargs="*", default=[], help="kappas of further nets grown on MNIST"
    )
    parser.add_argument(
        "--sizes",
        type=int,
        nargs="*",
        default=[],
        help="hidden units of further fixed nets on MNIST",
    )
    parser.add_argument("--images", type=int, default=5000, help="training images of CIFAR-10")
    parser.add_argument("--epochs", type=int, default=20, help="over the images of CIFAR-10")
    parser.add_argument(
        "--variants", action="store_true", help="grow by other recipes, each beside its fixed twin"
    )
    parser.add_argument(
        "--tuning", action="store_true", help="score on an inner part of the training rows"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--data-dir", type=Path, help="else SENN_DATA, else the sets are downloaded"
    )
    parser.add_argument("--out", type=Path, help="where to write the results, as JSON")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(argv)
    torch.set_num_threads(options.threads)
    rows: list[dict[str, Any]] = []
    for name in options.sets:
        for seed in range(options.first_seed, options.first_seed + options.seeds):
            rows += measure(name, seed, options)
            if (
                options.out
            ):  # after each seed, so that a run that is stopped leaves what it has measured
                write(rows, options)
    for name, nets in summarise(rows).items():
        print(f"\n{name}")
        for line in nets.items() if isinstance(nets, dict) else enumerate(nets):
            print("  ", *line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
