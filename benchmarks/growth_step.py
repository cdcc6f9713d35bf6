"""Cost of one full consideration over a plain forward and backward pass of the same samples, gromo beside it.

    python benchmarks/growth_step.py [--repeats 9] [--threads 1] [--only NAME] [--short] [--out results.json]

The nets are 784-256-256-10 with ReLU, and convolutions 16-16-pool-32-32-pool with a linear layer on 32x32x3 images; a
consideration scores width, depth and pruning at every place. A ratio is its cost for some batches over one pass of the
training loop forwards and backwards over the same batches. All contenders run in turn in one process, so that drift of
the machine hits all; figures are medians of CPU time. `first` is a Grower's first consideration, analysis of the model
included; `again` a later one of the same Grower. gromo (an optional package: pip install gromo==0.1.0 torchmetrics
deprecated) does its own growth step on all layers: statistics, optimal updates, choice, change; for convolutions with
both of its kinds of module. Memory is the peak over what the process holds after the same with eight images, each
contender in a process of its own.

Nets with a class per position (`language_models`): a GPT of 4 layers (width 128, context 128, 65 characters, 32
sequences a batch), one layer of GPT-2 small's width under its vocabulary of 50,257, and segmentation of 16 images of
64 x 64 pixels into 21 classes. `--short` measures these alone, once each and without a warm-up.
"""

from __future__ import annotations

import argparse
import copy
import functools
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable
from multiprocessing.queues import Queue
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

import senn

if __package__:
    from benchmarks.language_models import segmentation, small_gpt, token_loss, wide_head
else:
    from language_models import segmentation, small_gpt, token_loss, wide_head

Batches = list[tuple[torch.Tensor, torch.Tensor]]
Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)
    )  # fmt: skip


def convolutional_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        *(
            nn.Conv2d(3, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 16, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
        ),
        *(
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
        ),
        *(nn.Flatten(), nn.Linear(2048, 10)),
    )


def data(samples: int) -> Batches:
    """Images with strokes' statistics: smooth, mostly empty, ten classes."""
    g = torch.Generator().manual_seed(1)
    centres = F.avg_pool2d(torch.randn(10, 1, 32, 32, generator=g), 5, 1).reshape(10, 784)
    y = torch.randint(0, 10, (samples,), generator=g)
    x = (2 * centres[y] + 0.5 * torch.randn(samples, 784, generator=g)).clamp_min(0)
    return list(zip(x.split(1024), y.split(1024), strict=True))


def images(samples: int) -> Batches:
    """Smooth colour images of ten classes, one batch."""
    g = torch.Generator().manual_seed(1)
    centres = F.avg_pool2d(torch.randn(10, 3, 36, 36, generator=g), 5, 1)
    y = torch.randint(0, 10, (samples,), generator=g)
    return [(2 * centres[y] + 0.5 * torch.randn(samples, 3, 32, 32, generator=g), y)]


def trained(model: nn.Module, batches: Batches, loss: Loss) -> nn.Module:
    """The net after the same dozen steps whatever the number of samples, where considerations happen."""
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for x, y in batches * (12 // len(batches)):
        optimizer.zero_grad()
        loss(model(x), y).backward()
        optimizer.step()
    return model


def forward_backward(model: nn.Module, batches: Batches, loss: Loss) -> None:
    for x, y in batches:
        model.zero_grad()
        loss(model(x), y).backward()


def gromo_steps(batches: Batches) -> dict[str, Callable[[], None]]:
    """The growth step of gromo in its own order; nothing where it is not installed."""
    try:
        from gromo.containers.growing_mlp import GrowingMLP
        from gromo.containers.vgg import VGG
        from gromo.modules.conv2d_growing_module import (
            FullConv2dGrowingModule,
            RestrictedConv2dGrowingModule,
        )
        from gromo.utils.training_utils import compute_statistics
    except ImportError:
        return {}
    cpu = torch.device("cpu")

    def step(start: nn.Module) -> None:
        model = copy.deepcopy(start)
        model.set_growing_layers(scheduling_method="all")
        loss = nn.CrossEntropyLoss(reduction="sum")
        compute_statistics(model, batches, loss_function=loss, device=cpu)
        model.compute_optimal_updates()
        model.reset_computation()
        model.select_best_update()
        model.set_scaling_factor(0.5)
        model.apply_change()

    if batches[0][1].dim() > 1:
        return {}  # a class per position, which gromo has no loss for
    if batches[0][0].dim() == 2:
        starts = {"gromo": GrowingMLP(784, 10, 256, 2, activation=nn.ReLU(), device=cpu)}
    else:
        small, large = [16, 16, "M", 32, 32, "M"], [32, 32, "M", 64, 64, "M"]
        starts = {
            f"gromo, {kind.__name__.partition('Conv')[0].lower()}": VGG(
                small, large, normalization=None, num_classes=10, number_of_fc_layers=1, input_spatial_shape=(32, 32),
                growing_conv_type=kind, device=cpu,
            )
            for kind in (RestrictedConv2dGrowingModule, FullConv2dGrowingModule)
        }  # fmt: skip
    return {name: functools.partial(step, start) for name, start in starts.items()}


def contenders(model: nn.Module, batches: Batches, loss: Loss) -> dict[str, Callable[[], object]]:
    """What is measured, by name; the first is what the others are compared with."""
    samples = sum(len(y) for _, y in batches)
    warm = senn.Grower(model, loss=loss, samples=samples)
    return {
        "forward+backward": lambda: forward_backward(model, batches, loss),
        "senn, again": lambda: forget(warm).score_candidates(batches),
        "senn, first": lambda: senn.Grower(model, loss=loss, samples=samples).score_candidates(
            batches
        ),
        **gromo_steps(batches),
    }


CASES: dict[str, Callable[[], tuple[nn.Module, Batches]]] = {
    "linear, 1024 samples": lambda: (net(), data(1024)),
    "linear, 4096 samples": lambda: (net(), data(4096)),
    "convolutions, 256 images": lambda: (convolutional_net(), images(256)),
}

POSITIONS: dict[str, tuple[Callable[[], tuple[nn.Module, Batches]], Loss]] = {
    "GPT of 4 layers, 1 batch": (lambda: small_gpt(1), token_loss),
    "GPT of 4 layers, 4 batches": (lambda: small_gpt(4), token_loss),
    "segmentation, 16 images": (segmentation, F.cross_entropy),
    "vocabulary of 50,257": (wide_head, token_loss),
}
"""Nets with a class per position, with their losses."""


def made(case: str) -> tuple[nn.Module, Batches, Loss]:
    """The net of a case, its batches and its loss."""
    if case in POSITIONS:
        make, loss = POSITIONS[case]
        return (*make(), loss)
    return (*CASES[case](), F.cross_entropy)


def measure(case: str, repeats: int) -> dict[str, float]:
    """Median CPU seconds of each contender, and ratios over forward and backward; peak memory likewise."""
    model, batches, loss = made(case)
    runs = contenders(trained(model, batches, loss), batches, loss)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats + 1):
        for name, run in runs.items():
            start = time.process_time()
            run()
            if repeat or not repeats:
                seconds[name].append(time.process_time() - start)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    memory = (
        {name: alone(case, name) for name in runs if name != "senn, again"}
        if "images" in case or case in POSITIONS
        else {}
    )
    return {
        **{f"{name}, ms": 1e3 * value for name, value in median.items()},
        **{f"{name}, ratio": value / median["forward+backward"] for name, value in median.items()},
        **{f"{name}, MiB": value for name, value in memory.items()},
        **{
            f"{name}, memory ratio": value / memory["forward+backward"]
            for name, value in memory.items()
        },
    }


def alone(case: str, name: str) -> float:
    """MiB that one contender needs at most beyond what is there before it runs, in a process of its own."""
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    process = context.Process(target=peak, args=(case, name, results))
    process.start()
    found: float = results.get()
    process.join()
    return found


def peak(case: str, name: str, results: Queue[float]) -> None:
    """Put the peak of one contender's memory."""
    torch.set_num_threads(1)
    model, batches, loss = made(case)
    few = [(x[: min(8, len(x) // 2)], y[: min(8, len(y) // 2)]) for x, y in batches]
    contenders(model, few, loss)[name]()  # code that is loaded and memory that kernels take once
    run = contenders(model, batches, loss)[name]
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts from what is held now
    before = held("VmHWM")
    run()
    results.put(held("VmHWM") - before)


def held(kind: str) -> float:
    """MiB of this process, as Linux counts them."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(kind))


def forget(grower: senn.Grower) -> senn.Grower:
    """Start a new consideration."""
    grower.reset()
    return grower


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", help="cases whose names hold this")
    parser.add_argument("--short", action="store_true", help="a class per position, once each")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    cases = [*POSITIONS] if args.short else [*CASES, *POSITIONS]
    repeats = 0 if args.short else args.repeats
    results = {case: measure(case, repeats) for case in cases if (args.only or "") in case}
    for case, found in results.items():
        print(f"{case:34s}{'time':>20s}{'peak memory':>24s}")
        for name in (key.removesuffix(", ratio") for key in found if key.endswith(", ratio")):
            cells = [f"{found[f'{name}, ms']:.0f} ms = {found[f'{name}, ratio']:.2f} x"]
            if f"{name}, MiB" in found:
                cells.append(
                    f"{found[f'{name}, MiB']:.0f} MiB = {found[f'{name}, memory ratio']:.2f} x"
                )
            print(f"  {name:32s}" + "".join(f"{cell:>22s}" for cell in cells))
    if args.out:
        args.out.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
