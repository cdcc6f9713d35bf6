"""Write docs/deficit.md from the stored results of benchmarks/deficit.py and benchmarks/grown_and_fixed.py.

python docs/deficit.py
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from results import stored, table

HERE = Path(__file__).parent
TRIALS = "mnist 12,000 rows"


def pm(pair: Sequence[float], digits: int = 4) -> str:
    """A difference and its standard error."""
    return f"{pair[0]:+.{digits}f} ± {pair[1]:.{digits}f}"


def question() -> Iterator[str]:
    """What is asked and how it is measured."""
    yield (
        "# Why a grown net need not end below a fixed one\n\nNets that grew while they trained used to end "
        "below fixed nets of their final size, trained as long. This page says why that was so and what was "
        "done about it. Made by `python docs/deficit.py` from `benchmarks/results`.\n\nA *twin* is a fixed net "
        "of exactly the final widths of a grown one, with the same rows, batches, epochs, optimizer, learning "
        "rates and stopping rule, paired seed by seed. Differences are grown less twin, ± the standard error "
        "over the seeds. Recipes were chosen on rows held out of training. Test rows were scored once, with "
        "what was chosen; but those of CIFAR-10 twice, since the recipe for images was changed, on other rows "
        "and seeds, after a first one had ended below its twins there.\n"
    )


def late() -> Iterator[str]:
    """Late units."""
    found = stored("deficit")[TRIALS]
    yield (
        f"## Late units hardly learn\n\n`{found['command']}`: 784-[10]-10, 15 epochs, validation rows. 32 units "
        "are forced in at one moment, as a fraction of all steps, or four after each of eight epochs:\n"
    )
    names = [name for name in found["summary"] if name.split(",")[0].startswith(("32 at", "4 x 8"))]
    yield trials(found["summary"], names) + "\n"
    yield (
        "Early units cost nothing; late ones do. New against old units of those growths, mean norms a unit:\n"
    )
    after = stored("deficit")["after growth, 200 steps"]
    kept = (
        "gradient in 1-10",
        "gradient in 51-200",
        "gradient out 51-200",
        "length in",
        "moved in 200",
        "moved out 200",
    )
    rows = []
    for name, figures in after["recipes"].items() if "recipes" in after else after.items():
        cells = [
            f"{figures[key]['old']:.3g} / {figures[key]['new']:.3g}"
            for key in kept
            if key in figures
        ]
        if cells:
            rows.append((name, *cells))
    yield table(("recipe, old / new", *kept), rows) + "\n"
    yield (
        "Two causes show. **Length:** units drawn in white directions are born several times longer than "
        "trained ones, in directions in which the data hardly vary, and later training can't turn them. "
        "Directions that follow the data (`smooth`) remove that. **Clock:** Adam corrects new moments, which "
        "start at zero, by the old step count, so that the first steps of new units are several times too long "
        "and many of their ReLUs die. Smooth directions and a clock of their own (`own clock`) together repair "
        "most of what late growth loses; starting the squares at the old units' mean (`inherit`), longer steps "
        "(`x3`) and short births (`born short`) make it worse. Where growth is over in the first steps of a "
        "run, the clock makes no difference, and so the library leaves optimizers alone.\n"
    )


def trials(summary: dict[str, Any], names: Sequence[str]) -> str:
    """A line a recipe."""
    rows = []
    for name in names:
        one = summary[name]
        pairs = [(one[key]["difference"], one[key]["error"] or 0.0) for key in ("accuracy", "loss")]
        units = sum(one["hidden"]) / len(one["hidden"])
        rows.append(
            (name, one["seeds"], f"{units:.0f}", f"{one['accuracy']['grown']:.4f}", *map(pm, pairs))
        )
    return table(("recipe", "seeds", "units", "accuracy", "less twin", "loss less twin"), rows)


def schedules() -> Iterator[str]:
    """Rounds with prices."""
    for name in (TRIALS, "digits"):
        found = stored("deficit")[name]
        kept = [one for one in found["summary"] if one.split(",")[0] in ("early", "each epoch")]
        yield f"## Rounds with prices: {name}\n\n`{found['command']}`, validation rows.\n"
        yield trials(found["summary"], kept) + "\n"
    yield (
        "Rounds after whole epochs stop early, with few units: by then the first units have taken what there "
        "was. Early rounds with smooth directions, at .3 of the price, and removals of what isn't worth half "
        "of it later (`past and back`) end above their twins. Cosine and one-cycle schedules and "
        "re-warming end level or below; longer steps and short births show no clear gain.\n"
    )


def variants() -> Iterator[str]:
    """What each choice of the default recipe does."""
    found = stored("deficit_variants")
    summary = found["summary"]["mnist"]
    yield (
        "## What each choice of the default recipe does\n\n`python benchmarks/grown_and_fixed.py --sets mnist "
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
        "## The default recipe, on test rows\n\n`python benchmarks/grown_and_fixed.py --data-dir DIR --seeds "
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


def main() -> None:
    """Write the page."""
    parts = [
        line for section in (question, winner, variants, late, schedules) for line in section()
    ]
    (HERE / "deficit.md").write_text("\n".join(parts))


if __name__ == "__main__":
    main()
