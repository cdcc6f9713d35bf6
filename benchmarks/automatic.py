"""Does a network that grows by itself learn images as well as one whose size was chosen?

A ResNet-8 and a VGG of width 4 on a part of CIFAR-10 at 16 x 16 pixels. Each is trained by the library's recipe for
images (`grown`); from new random weights at exactly the size that the grown one ended with (`twin`); and at fixed
widths, that of the start among them. Optimizer, schedule, epochs and order of the images are the same for all.

    python benchmarks/automatic.py --data-dir ../shared/data --seeds 3 --out automatic.json

The folder holds `cifar-10/train*.parquet` and `cifar-10/test*.parquet` with columns img (encoded bytes) and label, or
`cifar-10/cifar-10-binary.tar.gz`; figures in the documentation are of the former, which are compressed. Each seed draws
training and validation images of its own from the training file. The test images are looked at once for each net, after
its last epoch, and not at all with `--tuning`, in which choices are to be made. Seconds are of processor
time. `change` is the largest relative change of the loss on validation images at a growth; rounds that remove units,
which may change it, are apart.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

import senn
from senn.data.images import load_images
from senn.data.images.image_arrays import Images as Pixels
from senn.schedule import GrowthSchedule
from senn.training.image_training import PRICES, image_config
from senn.training.train_config import TrainConfig
from senn.training.train_step import TrainStep

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "helpers"))

from zoo.convolutional import Basic, ResNet

SIDE, CLASSES = 16, 10
PARTS = ("train", "validation", "test")
KEPT = (
    "round",
    "kind",
    "place",
    "width_before",
    "width_after",
    "parameters",
    "expected_decrease",
    "price",
    "realized_decrease",
    "loss_before",
)
Images = tuple[Tensor, Tensor]


def resnet(width: int) -> nn.Module:
    """ResNet-8, a block each of once, twice and four times the width."""
    a, b, c = width, 2 * width, 4 * width
    model = ResNet([Basic(a, a, a), Basic(a, b, b, 2), Basic(b, c, c, 2)], a, c)
    model.fc = nn.Linear(c, CLASSES)
    return model


def vgg(width: int) -> nn.Module:
    """Six convolutions with norm and ReLU, two each of once, twice and four times the width."""
    layers: list[nn.Module] = []
    entering = 3
    for part in (width, 2 * width, 4 * width):
        for leaving in (part, part):
            layers += [
                nn.Conv2d(entering, leaving, 3, padding=1, bias=False),
                nn.BatchNorm2d(leaving),
                nn.ReLU(),
            ]
            entering = leaving
        layers.append(nn.AdaptiveAvgPool2d(1) if part == 4 * width else nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(entering, CLASSES))


NETS = {"resnet": resnet, "vgg": vgg}


def small(images: Pixels) -> Images:
    """Images (n, 3, SIDE, SIDE), standardised, and labels (n,)."""
    resized = (
        Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BOX) for image in images.pixels
    )
    pixels = np.stack([np.asarray(image) for image in resized])
    mean, std = torch.tensor([0.4913, 0.4821, 0.4465]), torch.tensor([0.2452, 0.2428, 0.2606])
    x = (torch.from_numpy(pixels).float() / 255 - mean) / std
    return x.permute(0, 3, 1, 2).contiguous(), torch.tensor(images.labels)


def augmented(x: Tensor, generator: torch.Generator) -> Tensor:
    """Each image flipped or not, the batch shifted by up to two pixels."""
    flip = torch.rand(len(x), generator=generator) < 0.5
    x = torch.where(flip[:, None, None, None], x.flip(-1), x)
    left, top = torch.randint(0, 5, (2,), generator=generator).tolist()
    return F.pad(x, (2, 2, 2, 2))[..., top : top + SIDE, left : left + SIDE]


def batches(train: Images, size: int, generator: torch.Generator) -> Iterator[Images]:
    """One epoch."""
    x, y = train
    for rows in torch.randperm(len(x), generator=generator).split(size):
        if len(rows) == size:
            yield augmented(x[rows], generator), y[rows]


def scores(model: nn.Module, images: Images) -> dict[str, float]:
    """Loss and accuracy in eval mode."""
    model.eval()
    with torch.no_grad():
        logits = torch.cat([model(x) for x in images[0].split(500)])
    model.train()
    return {
        "loss": float(F.cross_entropy(logits, images[1])),
        "accuracy": float((logits.argmax(1) == images[1]).float().mean()),
    }


def recipe_of(options: argparse.Namespace, seed: int, grow: bool) -> TrainConfig:
    """The recipe for images, with what the command line says otherwise."""
    own = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in options.recipe.items()
    }
    policy = replace(PRICES, **own.pop("policy", {}))
    return image_config(
        policy=policy,
        epochs=options.epochs,
        batch_size=options.batch_size,
        seed=seed,
        grow=grow,
        **own,
    )


def train(
    model: nn.Module, data: dict[str, Images], seed: int, options: argparse.Namespace, grow: bool
) -> dict[str, Any]:
    """Train a model and, if asked for, grow it; what came of it."""
    generator = torch.Generator().manual_seed(1000 + seed)
    recipe = recipe_of(options, seed, grow)
    learner = TrainStep(model, recipe, "classification", samples=len(data["train"][0]))
    steps = options.epochs * (len(data["train"][0]) // options.batch_size)
    rounds = GrowthSchedule(recipe, steps)
    step, looking, start = 0, 0.0, time.process_time()
    changes: list[dict[str, Any]] = []
    events: list[senn.GrowthEvent] = []
    seen = data["validation"][0][:500], data["validation"][1][:500]
    for _ in range(options.epochs):
        for x, y in batches(data["train"], options.batch_size, generator):
            learner.set_lr(recipe.lr_factor(step / steps))
            learner.step(x, y)
            step += 1
            if moves := rounds.due(step):
                looked, before = time.process_time(), scores(model, seen)["loss"]
                found = learner.grow(probe(data["train"], recipe, step), moves)
                after = scores(model, seen)["loss"]
                looking += time.process_time() - looked
                print(
                    f"    step {step}: {'; '.join(map(str, found)) or 'nothing pays'}",
                    file=sys.stderr,
                )
                events += found
                if found:
                    kinds = sorted({event.kind for event in found})
                    changes.append(
                        {"step": step, "kinds": kinds, "change": abs(after / before - 1)}
                    )
    return {
        "seconds": time.process_time() - start,
        "looking": looking,
        "parameters": sum(p.numel() for p in model.parameters()),
        "widths": widths(model, data["train"][0][:2]),
        "changes": changes,
        "events": [{key: event.as_dict()[key] for key in KEPT} for event in events],
        **{part: scores(model, images) for part, images in data.items()},
    }


def probe(images: Images, recipe: TrainConfig, step: int) -> list[Images]:
    """Training images that a round looks at, as they are, drawn by the step's number."""
    rows = torch.randperm(len(images[0]), generator=torch.Generator().manual_seed(step))[
        : recipe.max_scoring_samples
    ]
    return [(images[0][part], images[1][part]) for part in rows.split(256)]


def widths(model: nn.Module, inputs: Tensor) -> dict[str, int]:
    """Width of each hidden dimension."""
    return {group.name: group.width for group in senn.analyze(model, inputs).groups}


def fresh(grown: nn.Module) -> nn.Module:
    """A model of the size of a grown one, with new random weights: every parameter is that of a module of torch."""
    model = copy.deepcopy(grown)
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    return model


def draw(files: dict[str, Images], seed: int, options: argparse.Namespace) -> dict[str, Images]:
    """A seed's images: training and validation from the training file, test as it is."""
    x, y = files["train"]
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    split = {
        "train": order[: options.images],
        "validation": order[options.images :][: options.validation],
    }
    found = {part: (x[rows], y[rows]) for part, rows in split.items()}
    return found if options.tuning else {**found, "test": files["test"]}


def measure(
    net: str, seed: int, files: dict[str, Images], options: argparse.Namespace
) -> list[dict[str, Any]]:
    """One row for each method; all start from the same random state."""
    data, build = draw(files, seed, options), NETS[net]
    rows: list[dict[str, Any]] = []
    grown = nn.Module()
    for method in ("grown", "twin", *(f"width {width}" for width in options.widths)):
        torch.manual_seed(seed)
        width = int(method.split()[-1]) if method.startswith("width") else options.start
        model = fresh(grown) if method == "twin" else build(width)
        print(f"  {net} seed {seed} {method}", file=sys.stderr)
        row = train(model, data, seed, options, grow=method == "grown")
        grown = model if method == "grown" else grown
        rows.append({"net": net, "seed": seed, "method": method, **row})
        print("    " + line(rows[-1]), file=sys.stderr)
    return rows


def loss_change(row: dict[str, Any]) -> float:
    """Largest relative change of the loss at the moment of a growth that only added."""
    return max(
        (one["change"] for one in row["changes"] if "prune" not in one["kinds"]), default=0.0
    )


def line(row: dict[str, Any]) -> str:
    """One row in words."""
    accuracies = ", ".join(f"{part} {row[part]['accuracy']:.4f}" for part in PARTS if part in row)
    sizes = "-".join(map(str, row["widths"].values()))
    return (
        f"{accuracies}; {row['parameters']:,} parameters, widths {sizes}, {row['seconds']:.0f} s "
        f"({row['looking']:.0f} s looking), loss changed by {loss_change(row):.1e} at growth"
    )


def summarise(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """By net and method: mean and standard deviation over the seeds of each figure; the largest change of the loss."""
    summary: dict[str, dict[str, Any]] = {}
    for net in dict.fromkeys(row["net"] for row in rows):
        for method in dict.fromkeys(row["method"] for row in rows if row["net"] == net):
            mine = [row for row in rows if (row["net"], row["method"]) == (net, method)]
            figures = {
                part: [row[part]["accuracy"] for row in mine] for part in PARTS if part in mine[0]
            }
            figures |= {
                key: [row[key] for row in mine] for key in ("parameters", "seconds", "looking")
            }
            summary.setdefault(net, {})[method] = {
                **{
                    key: {"mean": statistics.fmean(values), "spread": spread(values)}
                    for key, values in figures.items()
                },
                "loss_change": max(map(loss_change, mine)),
            }
        pairs = zip(*([row for row in rows if (row["net"], row["method"]) == (net, m)] for m in ("grown", "twin")),
                    strict=True)  # fmt: skip
        part = "test" if "test" in mine[0] else "validation"
        margins, ratios = zip(*((g[part]["accuracy"] - t[part]["accuracy"], g["seconds"] / t["seconds"])
                                for g, t in pairs), strict=True)  # fmt: skip
        summary[net]["grown"] |= {
            "over_twin": {
                "mean": statistics.fmean(margins),
                "error": spread(margins) / len(margins) ** 0.5,
            },
            "seconds_over_twin": {"mean": statistics.fmean(ratios), "spread": spread(ratios)},
        }
    return summary


def spread(values: Sequence[float]) -> float:
    """Standard deviation; 0 for a single value."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


def print_table(summary: dict[str, dict[str, Any]]) -> None:
    """Means and standard deviations over the seeds; the standard error of the difference from the twin."""
    for net, methods in summary.items():
        parts = [part for part in PARTS if part in methods["grown"]]
        head = [
            *(f"{part:>18s}" for part in parts),
            f"{'parameters':>18s}",
            f"{'seconds':>9s}",
            f"{'looking':>9s}",
        ]
        print(f"{net:10s}" + "".join(head))
        for method, found in methods.items():
            cells = [
                f"{found[part]['mean']:>9.4f} +- {found[part]['spread']:.4f}" for part in parts
            ]
            cells.append(
                f"{found['parameters']['mean']:>9,.0f} +- {found['parameters']['spread']:<5,.0f}"
            )
            cells += [f"{found[key]['mean']:>9.0f}" for key in ("seconds", "looking")]
            print(f"{method:10s}" + "".join(cells))
        grown = methods["grown"]
        print(
            f"grown less twin {grown['over_twin']['mean']:+.4f} +- {grown['over_twin']['error']:.4f}, at "
            f"{grown['seconds_over_twin']['mean']:.2f} times its seconds; largest relative change of the loss at a "
            f"growth: {grown['loss_change']:.1e}\n"
        )


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-dir", type=Path, help="else SENN_DATA, else CIFAR-10 is downloaded")
    parser.add_argument("--nets", nargs="+", choices=list(NETS), default=list(NETS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--first-seed", type=int, default=0, help="choices are to be made from 100 on"
    )
    parser.add_argument("--images", type=int, default=5000, help="training images")
    parser.add_argument("--validation", type=int, default=2000, help="validation images")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--start", type=int, default=4, help="width at which growth starts")
    parser.add_argument("--widths", type=int, nargs="*", default=[4, 8, 16, 32], help="fixed ones")
    parser.add_argument("--recipe", type=json.loads, default={},
                        help="choices of `image_config` made otherwise, as JSON; `policy` of PricePolicy")  # fmt: skip
    parser.add_argument("--tuning", action="store_true", help="leave the test images alone")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="where to write the results, as JSON")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(argv)
    torch.set_num_threads(options.threads)
    images = load_images("cifar-10", options.data_dir)
    files = {"train": small(images.train)} | (
        {} if options.tuning else {"test": small(images.test)}
    )
    rows: list[dict[str, Any]] = []
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        for net in options.nets:
            rows += measure(net, seed, files, options)
            if (
                options.out
            ):  # after each net, so that a run that is stopped leaves what it has measured
                write(rows, options)
    print_table(summarise(rows))
    return 0


def write(rows: list[dict[str, Any]], options: argparse.Namespace) -> None:
    """Everything measured so far, as JSON."""
    settings = {
        key: value for key, value in vars(options).items() if key not in ("data_dir", "out")
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    document = {"settings": settings, "summary": summarise(rows), "rows": rows}
    options.out.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
