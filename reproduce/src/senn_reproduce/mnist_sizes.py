"""Figure 4 right: the more images of MNIST, the larger the net that grows, next to nets of fixed sizes.

A net with ten hidden units grows on N images a class, by the recipe of `senn.training` for tables; nets of fixed sizes
are trained by the same recipe, numbers of steps and rates included. A tenth of the images is held out of training for
validation, which decides which epoch is kept.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from senn.data.images import ImageSet, planes
from senn.errors import SennError
from senn.training import TrainConfig, train
from senn.training.augment import ChannelStats
from senn_reproduce.image_runs import pick_device
from senn_reproduce.image_sets import load_images
from senn_reproduce.mnist import EARLY, ORANGE, PAPER, PRICE, WIDTH, accuracy_axis, judge
from senn_reproduce.results import Record, write_results

CLASSES = 10
GROWN = "grown"
# As many steps for every N, so that sizes are considered at the same ones.
RECIPE = TrainConfig(
    members=1,
    birth="silent",
    hidden=(10,), shortcut=False, optimizer="adam", lr=2e-3, batch_size=128, steps=3000, min_epochs=1,
    max_epochs=1000, moves=WIDTH, policy=PRICE, addition_rounds=EARLY, pruning_rounds=(),
)  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """How the runs go; found on training images of seeds from 100 on, which no figure reports.

    Args:
        images: N, images a class; all of them together are drawn at random, so that classes are not exactly even.
        fixed: hidden units of the fixed nets.
        recipe: of all nets; fixed ones start at their size and do not grow.
    """

    images: tuple[int, ...] = (60, 300, 600, 1500, 3000, 6000)
    fixed: tuple[int, ...] = (8, 16, 32, 64, 128, 256)
    recipe: TrainConfig = RECIPE


FULL = Settings(recipe=replace(PAPER, moves=WIDTH))
"""The paper's size: the recipe of figure 4 left for nets that may widen."""


@dataclass(frozen=True, eq=False)
class Sample:
    """Rows (n, 784) of standardized pixels with their labels (n,), to train on and to test with."""

    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]

    @classmethod
    def of(cls, whole: ImageSet, images: int, seed: int, device: torch.device) -> Sample:
        """Draw N images of each class by the seed; a smaller N has a part of a larger one's.

        Args:
            whole: the set.
            images: N.
            seed: decides everything that is drawn.
            device: where to compute.

        Returns:
            The images, on the device.
        """
        count = CLASSES * images
        if count > len(whole.train):
            raise SennError(
                f"{count:,} images of {whole.name} are asked for, and there are {len(whole.train):,}"
            )
        chosen = whole.train.take(np.random.default_rng(seed).permutation(len(whole.train))[:count])
        train, test = (
            (torch.tensor(planes(part)), torch.tensor(part.labels)) for part in (chosen, whole.test)
        )
        standard = ChannelStats.of(train[0])
        train, test = (
            (standard(pixels).flatten(1).to(device), labels.to(device))
            for pixels, labels in (train, test)
        )
        return cls(train, test)


def run(net: str, images: int, seed: int, sample: Sample, settings: Settings) -> Record:
    """Train one net.

    Args:
        net: `grown`, or the number of hidden units of a fixed one.
        images: number of training images of each class.
        seed: decides everything that is drawn.
        sample: the images.
        settings: sizes of the experiment.

    Returns:
        A record of the run.
    """
    recipe = replace(settings.recipe, seed=seed)
    if net != GROWN:
        recipe = replace(recipe, hidden=(int(net),), grow=False)
    trained = train(*sample.train, task="classification", outputs=CLASSES, recipe=recipe)
    return {
        "arm": f"{net}, {images}", "net": net, "images": images, "seed": seed, "validation": trained.validation,
        "test": judge(trained.model, sample.test), "units": sum(trained.architecture),
        "parameters": trained.parameters, "seconds": trained.seconds, "threads": trained.threads,
    }  # fmt: skip


def main(
    seeds: int,
    out: Path,
    settings: Settings | None = None,
    *,
    data_dir: Path | None = None,
    device: str | None = None,
) -> list[Record]:
    """Run the experiment with several seeds; write `results.json` and `figure.png`, print a table.

    Args:
        seeds: number of seeds: 0, 1, ... are run one after the other.
        out: folder for the results, which exists.
        settings: sizes of the experiment; None for those for two cores.
        data_dir: folder of the image sets; None for that in `SENN_DATA`, else they are downloaded.
        device: cpu, cuda, ...; None for a GPU where there is one, else the CPU.

    Returns:
        A record for each run.
    """
    place = pick_device(device)
    settings = settings or Settings()
    whole = load_images("mnist", data_dir)
    records = []
    for images in settings.images:
        for seed in range(seeds):
            sample = Sample.of(whole, images, seed, place)
            nets = (GROWN, *map(str, settings.fixed))
            records += [run(net, images, seed, sample, settings) for net in nets]
    grown = [record for record in records if record["net"] == GROWN]
    correlation = rank_correlation(
        *([record[key] for record in grown] for key in ("images", "units"))
    )
    lines = compare(records)
    command = f"senn reproduce mnist-sizes --seeds {seeds}" + " --full" * (settings == FULL)
    about = {key: getattr(settings.recipe, key) for key in ("epochs", "steps", "batch_size")}
    found = {"settings": about, "rank_correlation": correlation, "comparison": lines}
    write_results(records, out / "results.json", command, arms=True, **found)
    figure(records, out / "figure.png")
    print(f"{table(lines)}\nrank correlation of size and images: {correlation:.3f}")
    return records


# -- what is compared


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Compute Spearman's correlation of ranks; equal values share theirs.

    Args:
        first: values.
        second: as many others.

    Returns:
        From -1 to 1; 0 where one of them doesn't vary.
    """

    def communicator(values: Sequence[float]) -> list[float]:
        return [sum(v < u for v in values) + sum(v == u for v in values) / 2 for u in values]

    if len(set(first)) < 2 or len(set(second)) < 2:
        return 0.0
    return float(np.corrcoef(communicator(first), communicator(second))[0, 1])


def compare(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Compare, for each N, the grown net with the best fixed one: by mean validation and by mean test accuracy.

    The second choice is made on the test images and favors the fixed net. Differences of the test accuracy are grown
    less fixed, paired by seed, with their standard error.
    """
    lines = []
    for images in sorted({record["images"] for record in records}):
        nets = accuracies(records, images)
        grown = nets.pop(GROWN)
        units = [
            record["units"]
            for record in records
            if record["images"] == images and record["net"] == GROWN
        ]
        line: dict[str, Any] = {
            "images": images,
            "units": units,
            "accuracy": statistics.fmean(grown["test"]),
        }
        for part in ("validation", "test"):
            best = max(nets, key=lambda net: statistics.fmean(nets[net][part]))
            differences = [a - b for a, b in zip(grown["test"], nets[best]["test"], strict=True)]
            line[f"best by {part}"] = {
                "net": best,
                "accuracy": statistics.fmean(nets[best]["test"]),
                "difference": statistics.fmean(differences),
                "error": statistics.stdev(differences) / len(differences) ** 0.5
                if len(differences) > 1
                else 0.0,
            }
        lines.append(line)
    return lines


def accuracies(records: Sequence[Record], images: int) -> dict[str, dict[str, list[float]]]:
    """Collect the accuracies at one N.

    Args:
        records: one for each run.
        images: N.

    Returns:
        By net and part, in the order of the records.
    """
    nets: dict[str, dict[str, list[float]]] = {}
    for record in records:
        if record["images"] == images:
            for part in ("validation", "test"):
                nets.setdefault(record["net"], {}).setdefault(part, []).append(
                    record[part]["accuracy"]
                )
    return nets


def table(lines: Sequence[Mapping[str, Any]]) -> str:
    """One line for each N."""
    text = [
        "images a class  grown units      accuracy  best fixed by validation    best fixed by test"
    ]
    for line in lines:
        fixed = [
            f"{best['net']:>4} units {best['difference']:+.4f} ± {best['error']:.4f}"
            for best in (line["best by validation"], line["best by test"])
        ]
        units = ", ".join(map(str, line["units"]))
        text.append(
            f"{line['images']:>14}  {units:<15} {line['accuracy']:>9.4f}  {'   '.join(fixed)}"
        )
    return "\n".join(text)


# -- the figure


TICKS = (
    0.5,
    0.6,
    0.7,
    0.75,
    0.8,
    0.82,
    0.84,
    0.86,
    0.88,
    0.9,
    0.92,
    0.94,
    0.95,
    0.96,
    0.97,
    0.975,
    0.98,
    0.985,
)


def figure(records: Sequence[Record], path: Path) -> None:
    """Draw the size that grew over the number of images, and its accuracy among those of fixed sizes.

    Args:
        records: one for each run.
        path: of the PNG file.
    """
    canvas = Figure(figsize=(11, 4.8), layout="constrained")
    FigureCanvasAgg(canvas)
    left, right = canvas.subplots(1, 2)
    images = sorted({record["images"] for record in records})
    for axes in (left, right):
        axes.set_xscale("log")
        axes.set_xticks(images, [f"{n:,}" for n in images])
        axes.set_xticks([], minor=True)
        axes.set_xlabel("images a class")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="0.93", linewidth=0.8)
    _sizes(left, [record for record in records if record["net"] == GROWN])
    _accuracies(right, records)
    canvas.savefig(path, dpi=160, format="png")


def _sizes(axes: Axes, grown: Sequence[Record]) -> None:
    images = sorted({record["images"] for record in grown})
    means = [
        statistics.fmean(record["units"] for record in grown if record["images"] == n)
        for n in images
    ]
    axes.plot(images, means, color=ORANGE, linewidth=2, label="mean")
    x, y = ([record[key] for record in grown] for key in ("images", "units"))
    axes.scatter(x, y, s=26, facecolor="white", edgecolor=ORANGE, zorder=3, label="one seed")
    axes.set_yscale("log")
    low, high = min(y) / 1.2, max(y) * 1.2
    ticks = [
        tick for power in range(12) for tick in (2**power, 1.5 * 2**power) if low < tick < high
    ]
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_yticks([], minor=True)
    axes.set_ylim(low, high)
    axes.set_ylabel("hidden units of the grown net")
    axes.legend(frameon=False)


def _accuracies(axes: Axes, records: Sequence[Record]) -> None:
    images = sorted({record["images"] for record in records})
    means = [
        {net: statistics.fmean(of["test"]) for net, of in accuracies(records, n).items()}
        for n in images
    ]
    fixed = [net for net in means[0] if net != GROWN]
    for number, net in enumerate(fixed):
        color = colormaps["Blues"](0.3 + 0.6 * number / max(len(fixed) - 1, 1))
        axes.plot(images, [mean[net] for mean in means], color=color, label=f"{net} units")
    axes.plot(
        images,
        [mean[GROWN] for mean in means],
        color=ORANGE,
        linewidth=2.2,
        marker="o",
        label="grown",
    )
    accuracy_axis(axes, "test accuracy, mean", TICKS)
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles[::-1], labels[::-1], frameon=False, loc="upper left")
