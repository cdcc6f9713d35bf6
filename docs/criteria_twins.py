"""Sections of docs/criteria.md from the stored results of benchmarks/grown_and_fixed.py."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from stored_results import stored, table


def pm(pair: Sequence[float], digits: int = 4) -> str:
    """A difference and its standard error."""
    return f"{pair[0]:+.{digits}f} ± {pair[1]:.{digits}f}"


def variants() -> Iterator[str]:
    """What each choice of the default recipe does."""
    found = stored("grown_and_fixed_variants")
    summary = found["summary"]["mnist"]
    yield (
        "### What each choice of the default recipe does\n\n`python benchmarks/grown_and_fixed.py --sets mnist "
        f"--variants --tuning --seeds {found['settings']['seeds']} --first-seed "
        f"{found['settings']['first_seed']}`: 50,000 rows, 15 epochs, scores on 10,000 other training rows. "
        "Twins start as the grown net's units do, with output weights of zero.\n"
    )
    rows = []
    for name, one in summary.items():
        twin = summary.get(f"{name}, fixed")
        if twin is not None:
            rows.append((
                name, f"{one['units']:.0f}", f"{one['accuracy']:.4f}", pm(twin["grown less, accuracy"]),
                pm(twin["grown less, loss"]), f"{twin['time ratio']:.2f}",
            ))  # fmt: skip
    yield (
        table(
            ("recipe", "units", "accuracy", "less twin", "loss less twin", "time over twin's"), rows
        )
        + "\n"
    )


def winner() -> Iterator[str]:
    """The default recipe on test rows."""
    found = stored("grown_and_fixed")
    summary, settings = found["summary"], found["settings"]
    yield (
        "## Grown against fixed nets of the final size\n\nA *twin* is a fixed net of exactly the final widths "
        "of a grown one, with the same rows, batches, epochs, optimizer, learning rates and stopping rule, "
        "paired seed by seed; differences are grown less twin. Here growth decides how many units there are, by "
        "price, with the default recipe, on test rows: `python benchmarks/grown_and_fixed.py --data-dir DIR --seeds "
        f"{settings['seeds']}` with `--prices {' '.join(f'{p:g}' for p in settings['prices'])} --sizes "
        f"{' '.join(map(str, settings['sizes']))}`. Rounds in the first steps, each choosing among many "
        "candidates in smooth directions, one round of removals. MNIST and digits from ten hidden units; "
        f"CIFAR-10: {settings['images']:,} images (JPEG copy, 16 x 16 pixels), the conv net of `senn fit "
        "FOLDER`. `silent` twins start with output weights of zero, as units that grow do and as the library's "
        "own nets; `drawn` ones as `torch.nn.Linear` draws them.\n"
    )
    rows = []
    for name in ("mnist", "digits", "cifar-10"):
        nets = summary[name]
        grown = nets["grown"]
        for twin, one in nets.items():
            if twin.startswith("fixed"):
                rows.append((
                    name, f"{grown['units']:.0f}", f"{grown['accuracy']:.4f} ± {grown['accuracy spread']:.4f}", twin,
                    f"{one['accuracy']:.4f}", pm(one["grown less, accuracy"]), pm(one["grown less, loss"]),
                    f"{one['time ratio']:.2f}", f"{grown['loss_change']:.0e}",
                ))  # fmt: skip
    head = (
        "set",
        "units",
        "test accuracy",
        "twin",
        "its",
        "grown less twin",
        "loss",
        "time over twin's",
        "loss change",
    )
    yield table(head, rows) + "\n"
    seconds = summary["mnist"]["grown"]
    yield (
        f"The MNIST run takes {seconds['cpu_seconds']:.1f} seconds of processor time. The last column is the "
        "largest relative change of the loss by an addition. A silent start is worth as much to a fixed net as "
        "to a grown one: part of what growth does is that units come in silently.\n"
    )
    yield "### Accuracy against size, MNIST\n"
    nets = summary["mnist"]
    sizes = [(int(name.split(",")[0]), name) for name in nets if name[0].isdigit()]
    rows = [
        (size, *(f"{nets[f'{size}, {kind}']['accuracy']:.4f}" for kind in ("silent", "drawn")))
        for size in sorted({size for size, _ in sizes})
    ]
    yield table(("fixed units", "silent", "drawn"), rows) + "\n"
    lines = summary["frontier"]
    rows = []
    for name in dict.fromkeys(line["net"] for line in lines):
        ahead = {line["fixed"]: line["ahead"] for line in lines if line["net"] == name}
        one = nets[name]
        rows.append(
            (
                name,
                f"{one['units']:.0f}",
                f"{one['accuracy']:.4f}",
                *(f"{ahead[k]:+.4f}" for k in ("silent", "drawn")),
            )
        )
    yield (
        table(("net", "units", "accuracy", "above silent fixed nets", "above drawn ones"), rows)
        + "\n"
    )
    yield (
        "Fixed nets are interpolated in the logarithm of their size. At the highest price the round of "
        "removals takes so many units that the best epoch by validation can be one before it: the net that is "
        "kept is then large and little trained.\n"
    )
