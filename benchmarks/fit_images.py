"""Does `senn fit FOLDER` keep up with the same conv net trained at its final size from scratch?

    python benchmarks/fit_images.py [--seeds 3] [--images 5000] [--epochs 20] [--data-dir DIR] [--out results.json]

Training images of CIFAR-10, drawn once, are written as PNG files into a folder for each class. Each seed fits that
folder from the command line, with a split of its own, then trains the net that came of it again: same widths, split,
recipe and seed, without growth. Both are scored once on the split's own test part and on CIFAR-10's test images.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from senn.checkpoint import load
from senn.cli.fit_images import ImagePreparation, prepare_images
from senn.cli.main import main as senn
from senn.data.images import ImageSet, load_images, planes
from senn.runs import FitOptions
from senn.training.trained_run import image_outputs


def write_files(images: ImageSet, count: int, root: Path) -> None:
    """Some of the training images as PNG files, a folder for each class."""
    for row in np.sort(np.random.default_rng(0).permutation(len(images.train))[:count]):
        folder = root / images.classes[images.train.labels[row]]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images.train.pixels[row]).save(folder / f"{row:05}.png")


def scores(
    model: nn.Module, prepared: ImagePreparation, images: ImageSet
) -> dict[str, float | None]:
    """Accuracy and log loss on the split's own test part, accuracy on the published one."""
    hits = (
        image_outputs(model, prepared.encoder, planes(images.test)).argmax(1) == images.test.labels
    )
    predictions = prepared.scorer.predictions(prepared.test_outputs(model))
    scores = prepared.scorer.scores(predictions, prepared.test_arrays()[1])
    return {**scores, "accuracy on CIFAR-10's test images": float(hits.mean())}


def pair(root: Path, run: Path, seed: int, epochs: int, images: ImageSet) -> list[dict[str, Any]]:
    """Records of the grown net and of its fixed twin."""
    command = [
        "fit",
        str(root),
        "--out",
        str(run),
        "--seed",
        str(seed),
        "--epochs",
        str(epochs),
        "--quiet",
    ]
    began = time.process_time()
    if senn(command):
        raise SystemExit("senn fit failed")
    cpu = time.process_time() - began
    results = json.loads((run / "results.json").read_text())
    prepared = prepare_images(FitOptions(data=str(root), seed=seed, epochs=epochs))
    records = [_record("grown", seed, results, scores(load(run), prepared, images), cpu)]
    fixed = replace(
        prepared, recipe=replace(prepared.recipe, hidden=tuple(results["architecture"]), grow=False)
    )
    began = time.process_time()
    trained = fixed.train(())
    cpu = time.process_time() - began
    about = {
        key: getattr(trained, key)
        for key in ("architecture", "parameters", "best_epoch", "seconds")
    }
    records.append(_record("fixed", seed, about, scores(trained.model, prepared, images), cpu))
    return records


def _record(
    net: str, seed: int, about: dict[str, Any], test: dict[str, float | None], cpu: float
) -> dict[str, Any]:
    kept = {key: about[key] for key in ("architecture", "parameters", "best_epoch", "seconds")}
    record = {"net": net, "seed": seed, **kept, "cpu_seconds": cpu, "test": test}
    figures = ", ".join(f"{name} {value:.4f}" for name, value in test.items() if value is not None)
    print(
        f"{net} {seed}: {list(about['architecture'])}, {about['parameters']:,} parameters, {cpu:.0f} s, {figures}"
    )
    return record


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    images = load_images("cifar-10", args.data_dir)
    runs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "cifar"
        write_files(images, args.images, root)
        for seed in range(args.seeds):
            runs += pair(root, Path(folder) / f"run-{seed}", seed, args.epochs, images)
            if args.out:
                setting = {
                    "images": args.images,
                    "epochs": args.epochs,
                    "threads": torch.get_num_threads(),
                }
                args.out.write_text(json.dumps({**setting, "runs": runs}, indent=2) + "\n")
    for name in runs[0]["test"]:
        grown, fixed = (
            [run["test"][name] for run in runs if run["net"] == net] for net in ("grown", "fixed")
        )
        differences = [one - other for one, other in zip(grown, fixed, strict=True)]
        spread = statistics.stdev(differences) if len(differences) > 1 else 0.0
        means = f"grown {statistics.fmean(grown):.4f}, fixed {statistics.fmean(fixed):.4f}"
        print(f"{name}: {means}, difference {statistics.fmean(differences):+.4f} +- {spread:.4f}")


if __name__ == "__main__":
    main()
