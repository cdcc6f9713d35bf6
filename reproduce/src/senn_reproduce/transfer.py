"""Figure 6 and table 1: from CIFAR-10 to Tiny-ImageNet, at fixed size and self-expanding.

A net of dense blocks is trained on CIFAR-10. For the classes of the target its head is replaced by one of zeros, as in
the paper's code, and it is trained on: as it is (`fixed`), and with a `Grower` that adds and removes channels
(`grown`). `scratch` has the size that the grown net ended with, and new random weights. All three take the same steps
on the same batches in the same order.
"""

from __future__ import annotations

import copy
import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from senn.candidates.candidate_config import CandidateConfig
from senn.nn import DenseConvNet
from senn.policies import PaperPolicy, PricePolicy
from senn.training.augment import augment
from senn_reproduce.image_runs import Data, accuracy_and_loss, batches, load, one_cycle, pick_device
from senn_reproduce.results import Record, write_results
from senn_reproduce.step_threads import step_threads
from senn_reproduce.transfer_figure import figure
from senn_reproduce.transfer_growth import Growth, Trace, size, widths
from senn_reproduce.transfer_table import ARMS, summary

SOURCE, TARGET = "cifar-10", "tiny-imagenet"
POLICY = PricePolicy(kappa=0.03, confidence=1.0)
CANDIDATE_CONFIG = CandidateConfig(units=16, data_direction_fraction=1.0)


@dataclass(frozen=True)
class Settings:
    """How a run goes; found on validation images and on seeds from 100 on, which no figure reports.

    Args:
        hidden: channels of the pre-trained net's layers, block by block.
        side: of the images of both sets, in pixels.
        source_images: training images of the source; None for all that aren't held out.
        target_images: those of the target.
        held_out: validation images of each set.
        source_epochs: of pre-training.
        target_epochs: of what follows.
        batch_size: images in a step.
        lr: peak of the one cycle of AdamW's learning rate.
        weight_decay: AdamW's.
        shift: images are flipped, and shifted by up to so many pixels.
        rounds: fractions of the steps after which units may be added, and removed.
        pruning_rounds: fractions of the steps after which units may be removed only.
        policy: when they are.
        candidate_config: what to grow by.
        most: parameters that growth may end with, over the pre-trained net's with its new head.
        looked_at: training images that a consideration looks at.
        points: of the curves of validation accuracy, the start not counted.
    """

    hidden: tuple[tuple[int, ...], ...] = ((8, 8), (8, 8), (8, 8))
    side: int = 16
    source_images: int | None = None
    target_images: int | None = None
    held_out: int = 2500
    source_epochs: int = 10
    target_epochs: int = 6
    batch_size: int = 64
    lr: float = 5e-3
    weight_decay: float = 0.01
    shift: int = 1
    rounds: tuple[float, ...] = (0.01, 0.02, 0.04, 0.06, 0.09, 0.12)
    pruning_rounds: tuple[float, ...] = (0.2, 0.4)
    policy: PricePolicy | PaperPolicy = POLICY
    candidate_config: CandidateConfig = CANDIDATE_CONFIG
    most: float = 2.0
    looked_at: int = 4096
    points: int = 16


FULL = Settings(
    hidden=((128,) * 3,) * 4, side=64, source_epochs=120, target_epochs=100, lr=3e-4, shift=8,
    rounds=tuple(epoch / 100 for epoch in range(1, 41)), pruning_rounds=(),
    policy=PaperPolicy(tau=1e-4, alpha=1e-9, prune_fraction=1e-4), most=4.0,
    candidate_config=CandidateConfig(data_direction_fraction=1.0),
)  # fmt: skip
"""The paper's size, for a GPU, with the thresholds of its authors' code: a channel comes that gains more than 1e-4 of
eta and goes if it costs less, in the first 40 epochs.

Their code decides on a few channels in every step, ours once an epoch on a quarter as many candidates as there are
channels; theirs keeps eight channels a layer, ours one; theirs has 200 classes, ours 50.
"""


# -- nets


def fresh(
    hidden: Sequence[Sequence[int]], classes: int, seed: int, device: torch.device
) -> DenseConvNet:
    """Make a net for color images with random weights; the global random state is left alone.

    Args:
        hidden: channels of the layers of each block.
        classes: number of classes.
        seed: decides the weights.
        device: where to compute.

    Returns:
        The net, on the device.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return DenseConvNet(3, hidden, classes).to(device)


def transferred(model: DenseConvNet, classes: int) -> DenseConvNet:
    """Copy a net, with a head of zeros for other classes.

    Args:
        model: the network.
        classes: number of classes.

    Returns:
        The copy.
    """
    model = copy.deepcopy(model)
    head = model.head.weight
    model.head = nn.Linear(head.shape[1], classes, bias=False, device="meta").to_empty(
        device=head.device
    )
    nn.init.zeros_(model.head.weight)
    return model


# -- training and growth


def fit(
    model: DenseConvNet, data: Data, epochs: int, seed: int, settings: Settings, grow: bool = False
) -> Trace:
    """Train a net with AdamW and one cycle of the learning rate.

    Args:
        model: the network.
        data: the images.
        epochs: passes over the images.
        seed: decides batches, augmentation and candidates.
        settings: sizes of the experiment.
        grow: True for a net that grows.

    Returns:
        Curves over the steps.
    """
    optimizer = torch.optim.AdamW(
        model.parameters(), settings.lr, weight_decay=settings.weight_decay
    )
    generator = torch.Generator().manual_seed(seed)
    steps = epochs * (len(data.train) // min(settings.batch_size, len(data.train)))
    growth = Growth(model, optimizer, data, seed, steps, settings) if grow else None
    watched = {round(steps * point / settings.points) for point in range(settings.points)}
    trace = Trace(widths=[(0, widths(model))])
    epoch_by_epoch = (batches(data.train, settings.batch_size, generator) for _ in range(epochs))
    start = time.perf_counter()
    with step_threads(model, data.standard(data.train.pixels[:1]), settings.batch_size) as threads:
        for step, (pixels, labels) in enumerate(itertools.chain.from_iterable(epoch_by_epoch)):
            if step in watched:
                start += _watch(model, data, step, trace)
            for group in optimizer.param_groups:
                group["lr"] = settings.lr * one_cycle(step / steps)
            x = augment(data.standard(pixels), generator, shift=settings.shift)
            optimizer.zero_grad()
            F.cross_entropy(model(x), labels).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            if growth is not None:
                start += growth.after(step + 1, trace)
                if step + 1 in growth.rounds:
                    threads.follow(step + 1)
    trace.seconds, trace.threads = time.perf_counter() - start, threads.record
    _watch(model, data, steps, trace)
    trace.widths.append((steps, widths(model)))
    return trace


def _watch(model: DenseConvNet, data: Data, step: int, trace: Trace) -> float:
    """Note the validation accuracy; the seconds that this took."""
    start = time.perf_counter()
    trace.steps.append(step)
    trace.accuracy.append(accuracy_and_loss(model, data.validation, data.standard)["accuracy"])
    return time.perf_counter() - start


# -- the experiment


def run(
    seed: int, settings: Settings, source: Data, target: Data, device: torch.device
) -> tuple[Record, dict[str, DenseConvNet]]:
    """Pre-train one net, and from there train one for each of `ARMS`.

    Args:
        seed: decides all random weights, batches and proposals.
        settings: how.
        source: images to pre-train on.
        target: images to learn then.
        device: where the images are.

    Returns:
        What `results.json` says (for each arm test, train and validation accuracy, parameters and seconds; curves and
        widths as lists), and the trained nets by arm, the pre-trained one as `source`.
    """
    first = fresh(settings.hidden, source.classes, seed, device)
    pretraining = fit(first, source, settings.source_epochs, seed, settings)
    print(
        f"seed {seed}, {SOURCE}: {size(first):,} parameters, {pretraining.seconds:.0f} s",
        flush=True,
    )
    nets = {"source": first}
    traces: dict[str, Trace] = {}
    for arm in ARMS:
        if (
            arm == "scratch"
        ):  # a seed of its own: its weights are not the pre-trained net's first ones
            net = fresh(nets["grown"].hidden, target.classes, seed + 1_000_000, device)
        else:
            net = transferred(first, target.classes)
        traces[arm] = fit(net, target, settings.target_epochs, seed, settings, grow=arm == "grown")
        nets[arm] = net
        found = f"validation accuracy {traces[arm].accuracy[-1]:.4f}"
        print(
            f"seed {seed}, {arm}: {size(net):,} parameters, {found}, {traces[arm].seconds:.0f} s",
            flush=True,
        )
    record = _record(
        seed,
        _setting(settings, source, target),
        source,
        target,
        nets,
        {"source": pretraining, **traces},
    )
    return record, nets


def _record(
    seed: int,
    setting: str,
    source: Data,
    target: Data,
    nets: dict[str, DenseConvNet],
    traces: dict[str, Trace],
) -> Record:
    record: Record = {"seed": seed, "setting": setting}
    for name in ("test", "train", "validation"):
        part = getattr(target, name)
        record[name] = {
            arm: accuracy_and_loss(nets[arm], part, target.standard)["accuracy"] for arm in ARMS
        }
    grown = traces["grown"]
    record["gain"] = {
        f"over {arm}": record["test"]["grown"] - record["test"][arm] for arm in ("fixed", "scratch")
    }
    record["parameters"] = {arm: size(nets[arm]) for arm in ARMS}
    record["seconds"] = {name: trace.seconds for name, trace in traces.items()}
    record["threads"] = {name: trace.threads for name, trace in traces.items()}
    record["growth"] = {
        "loss change": grown.change,
        "loss change at removals": grown.removal,
        "seconds": grown.considering,
        "events": grown.events,
    }
    record["source"] = {
        "test": accuracy_and_loss(nets["source"], source.test, source.standard)["accuracy"]
    }
    record["hidden"] = widths(nets["grown"])
    record["widths"] = grown.widths
    record["blocks"] = [len(block) for block in nets["source"].hidden]
    record["curves"] = {
        name: [list(point) for point in zip(t.steps, t.accuracy, strict=True)]
        for name, t in traces.items()
    }
    return record


def _setting(settings: Settings, source: Data, target: Data) -> str:
    """Describe the size of the experiment in words."""
    hidden = ", ".join("-".join(map(str, block)) for block in settings.hidden)
    return (
        f"Blocks of dense convolutions of {hidden} channels; {settings.side} x {settings.side} pixels; "
        f"{len(source.train):,} images and {settings.source_epochs} epochs of pre-training, then {len(target.train):,} "
        f"images and {settings.target_epochs} epochs; growth may end at {settings.most:g} times the parameters."
    )


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
        seeds: how many.
        out: folder to write into.
        settings: how; by default a size for two cores.
        data_dir: folder of the images, as in `load_images`.
        device: by default a GPU where there is one.
    """
    settings, place = settings or Settings(), pick_device(device)
    command = f"senn reproduce transfer --seeds {seeds}" + " --full" * (settings == FULL)
    records: list[Record] = []
    for seed in range(seeds):
        source, target = (
            load(name, settings.side, images, settings.held_out, seed, data_dir, place)
            for name, images in ((SOURCE, settings.source_images), (TARGET, settings.target_images))
        )
        records.append(run(seed, settings, source, target, place)[0])
        # after each seed, so that a run that is stopped leaves what it has measured
        write_results(records, out / "results.json", command)
    figure(records, out / "figure.png")
    print(summary(records))
    return records
