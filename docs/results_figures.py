"""Sections of docs/results.md on the paper's figures 4 to 6 and table 1; called by docs/results.py."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from typing import Any

from stored_results import is_stored, runs_of, spread, stored, table


def full_size(name: str, section: Callable[[Any], Iterator[str]]) -> Iterator[str]:
    """The paper's size: its results where they are stored, and otherwise how to get them."""
    if is_stored(f"{name}_full"):
        found = stored(f"{name}_full")
        yield f"At the paper's size, `{found['command']}`:\n"
        yield from section(found)
    else:
        command = f"senn reproduce {name.replace('_', '-')} --full --device cuda"
        yield f"At the paper's size it has not been measured: `{command}`.\n"


def mnist() -> Iterator[str]:
    """Figure 4 left."""
    found = stored("mnist")
    yield f"## Figure 4 left, MNIST from ten hidden units\n\n`{found['command']}`\n"
    settings = found["settings"]
    epochs = settings["epochs"]
    yield (
        f"{settings['images']:,} images to train on and {settings['held_out']:,} held out, other ones for each seed; "
        "the test images are scored once, with the last weights. Adam trains for "
        f"{epochs['Adam']} epochs, natural gradient for {epochs['natural gradient']}; mean ± standard deviation over "
        "the seeds. The last columns are the largest changes of training loss and validation accuracy by an addition, "
        "right before it and right after.\n"
    )
    yield from mnist_table(found)
    yield "![Hidden units and validation accuracy over the steps](mnist.png)\n"
    yield (
        "Not the paper's: ReLU instead of rational units, K-FAC instead of conjugate gradients, a price instead of "
        "`tau` and `alpha`, rounds within the first third of the steps instead of every ten epochs, far fewer epochs.\n"
    )
    yield from full_size("mnist", mnist_table)


def mnist_table(found: Any) -> Iterator[str]:
    """A line for each arm."""
    rows = []
    for arm, runs in runs_of(found).items():
        largest = [
            max(run["largest"][change] for run in runs)
            for change in ("loss_change", "accuracy_change")
        ]
        rows.append((
            arm, *(spread([run[part]["accuracy"] for run in runs]) for part in ("test", "validation")),
            ", ".join("-".join(map(str, run["hidden"])) for run in runs),
            f"{statistics.fmean(run['parameters'] for run in runs):,.0f}",
            f"{statistics.fmean(run['seconds'] for run in runs):.0f}", f"{largest[0]:.1e}", f"{largest[1]:.1g}",
        ))  # fmt: skip
    head = (
        "arm",
        "test accuracy",
        "validation",
        "hidden units",
        "parameters",
        "seconds",
        "loss change",
        "accuracy change",
    )
    yield table(head, rows) + "\n"


def mnist_sizes() -> Iterator[str]:
    """Figure 4 right."""
    found = stored("mnist_sizes")
    yield f"## Figure 4 right, the size follows the number of images\n\n`{found['command']}`\n"
    settings = found["settings"]
    yield (
        "N images a class of MNIST's training split, a tenth of them held out of training for validation; every net "
        f"makes at most {settings['steps']:,} steps of about {settings['batch_size']} images by one recipe, and the "
        "epoch with the best validation is kept and scored once. Differences of test accuracy: grown less fixed, "
        "paired by seed, ± standard error. The best fixed net is chosen twice: by mean validation accuracy, as a user "
        "would, and by mean test accuracy, which favours it. Where it is the largest of the grid, a larger one might "
        "be better still.\n"
    )
    yield from mnist_sizes_table(found)
    yield "![Hidden units and test accuracy over the number of images](mnist_sizes.png)\n"
    yield (
        "Not the paper's: as for figure 4 left, and Adam instead of natural gradient. Classes are drawn at random and "
        "not exactly even. Not `senn fit`'s: both figures use their own rates of learning, more and earlier rounds, "
        "and no removals, found on other seeds.\n"
    )
    yield from full_size("mnist_sizes", mnist_sizes_table)


def mnist_sizes_table(found: Any) -> Iterator[str]:
    """A line for each N."""
    rows = []
    for line in found["comparison"]:
        best = (line["best by validation"], line["best by test"])
        rows.append((
            f"{line['images']:,}", ", ".join(map(str, line["units"])), f"{line['accuracy']:.4f}",
            *(f"{b['difference']:+.4f} ± {b['error']:.4f} ({b['net']} units: {b['accuracy']:.4f})" for b in best),
        ))  # fmt: skip
    head = (
        "N",
        "units that grew",
        "test accuracy",
        "less the best fixed by validation",
        "less the best fixed by test",
    )
    yield table(head, rows)
    yield f"\nRank correlation (Spearman) of N and the units that grew: {found['rank_correlation']:.3f}.\n"


def transfer() -> Iterator[str]:
    """The paper's figure 6 and table 1."""
    found = stored("transfer")
    runs = found["runs"]
    yield "## Figure 6 and table 1, transfer: pre-trained on CIFAR-10, then Tiny-ImageNet\n"
    yield f"`{found['command']}`; the paper's size, for a GPU: `{found['command']} --full --device cuda`.\n"
    seeds = f"mean ± standard deviation over {len(runs)} seeds" if len(runs) > 1 else "of one seed"
    yield f"{runs[0]['setting']} Accuracy, {seeds}.\n"
    names = {
        "fixed": "pre-trained, fixed size",
        "grown": "pre-trained, self-expanding",
        "scratch": "from scratch, grown size",
    }
    rows = [
        (name, *(spread([r[part][arm] for r in runs]) for part in ("test", "train")),
         *(f"{statistics.fmean([r[part][arm] for r in runs]):,.0f}" for part in ("parameters", "seconds")))
        for arm, name in names.items()
    ]  # fmt: skip
    yield table(("net", "test accuracy", "train accuracy", "parameters", "seconds"), rows) + "\n"
    for arm, name in (("fixed", "the fixed net"), ("scratch", "the net from scratch")):
        gains = [100 * r["gain"][f"over {arm}"] for r in runs]
        each = ", ".join(f"{gain:+.1f}" for gain in gains)
        yield f"Self-expanding over {name}: {statistics.fmean(gains):+.1f} points of test accuracy ({each} by seed).\n"
    change, growing = (max(r["growth"][key] for r in runs) for key in ("loss change", "seconds"))
    removal = max(r["growth"].get("loss change at removals", -1.0) for r in runs)
    removals = f", by a round with removals: {removal:.1e}" if removal >= 0 else ""
    widths = "; ".join("-".join(map(str, r["hidden"])) for r in runs)
    yield (
        f"Widths at the end: {widths}. Considering growth took up to {growing:.0f} of the seconds. Largest relative "
        f"change of the loss by an addition: {change:.1e}{removals}.\n"
    )
    if not removals:
        yield "These runs are from before the experiment had rounds with removals: channels were only added.\n"
    removed = [sum(": prune " in event for event in r["growth"]["events"]) for r in runs]
    if removals:
        yield (
            "Not the paper's: a price instead of thresholds relative to eta, six rounds that add and remove within the "
            "first 12 % of the steps, two that only remove, at 20 and 40 %; at most twice the parameters; the arm from "
            f"scratch. Changes that removed channels, by seed: {', '.join(map(str, removed))}.\n"
        )
    yield "![Accuracy before and after the change of data, and widths](transfer.png)\n"


def cifar_cycles() -> Iterator[str]:
    """Figure 5."""
    found = stored("cifar_cycles")
    yield f"## Figure 5, convolutions under a cyclic learning rate\n\n`{found['command']}`\n"
    rows = [
        (r["seed"], f"{r['correlation']:.2f}", r["lag"], f"{r['peak_to_trough']:.1%}", f"{r['test']['grown']:.4f}",
         f"{r['test']['fixed']:.4f}", "-".join(map(str, r["hidden"])), f"{r['parameters']:,}", f"{r['seconds']:.0f}",
         f"{r['seconds_fixed']:.0f}", f"{r['change']['additions']:.1e}", f"{r['change']['removals']:.1e}")
        for r in found["runs"]
    ]  # fmt: skip
    head = ("seed", "correlation", "lag, steps", "peak to trough", "test, grown", "test, fixed", "channels",
            "parameters", "seconds", "seconds, fixed", "loss change at additions", "with removals")  # fmt: skip
    yield table(head, rows)
    margin = [r["test"]["grown"] - r["test"]["fixed"] for r in found["runs"]]
    yield (
        f"\nGrown less fixed, on the same seed: {spread(margin)}. `correlation` is that of the channels of the first "
        "block's last layers with the learning rate `lag` steps before, over the last four cycles; `peak to trough` "
        "how far they fall within a cycle. The fixed net has the grown one's last size, new random weights, the same "
        "batches and schedule. The paper's size: `senn reproduce cifar-cycles --full`.\n"
    )
    yield "![Channels and the learning rate](cifar_cycles.png)\n"
