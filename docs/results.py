"""Write docs/results.md from the stored results of the benchmarks and experiments.

    python docs/results.py

Every number on that page comes from a JSON file in benchmarks/results, as the command named beside it writes it with
`--out`; those of auto_size.py and calibration.py are kept without their single runs.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
STORED = HERE.parent / "benchmarks" / "results"


def stored(name: str) -> Any:
    """One stored results file."""
    return json.loads((STORED / f"{name}.json").read_text())


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def spread(values: Sequence[float], digits: int = 4) -> str:
    """Mean and standard deviation."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.fmean(values):.{digits}f} ± {deviation:.{digits}f}"


def digits() -> Iterator[str]:
    """`senn fit digits`."""
    found = stored("fit_digits")
    yield "## `senn fit digits`\n\n`python benchmarks/fit_digits.py`\n"
    rows = [
        (r["seed"], f"{r['test'][found['metric']]:.4f}", r["architecture"], r["parameters"], f"{r['seconds']:.1f}",
         f"{r['loss_change']:.1e}") for r in found["runs"]
    ]  # fmt: skip
    yield table(("seed", "test accuracy", "widths", "parameters", "seconds", "relative loss change at growth"), rows)
    yield f"\nMean and standard deviation: {spread([r['test'][found['metric']] for r in found['runs']])}.\n"


def images() -> Iterator[str]:
    """`senn fit FOLDER`."""
    found = stored("fit_images")
    runs, head = found["runs"], ("net", "seed", "widths", "parameters", "CPU seconds")
    parts = list(runs[0]["test"])
    yield "## `senn fit` with a folder of images\n\n`python benchmarks/fit_images.py`\n"
    yield (
        f"{found['images']:,} training images of CIFAR-10 as PNG files, {found['epochs']} epochs, one fifth of the "
        "images held out for the test; the fixed net has the grown one's widths from the start.\n"
    )
    rows = [
        (r["net"], r["seed"], "-".join(map(str, r["architecture"])), f"{r['parameters']:,}", f"{r['cpu_seconds']:.0f}",
         *(f"{r['test'][part]:.4f}" for part in parts)) for r in runs
    ]  # fmt: skip
    yield table((*head, *parts), rows)
    for part in parts:
        grown, fixed = ([r["test"][part] for r in runs if r["net"] == net] for net in ("grown", "fixed"))
        less = [one - other for one, other in zip(grown, fixed, strict=True)]
        yield f"\n{part}: grown {spread(grown)}, fixed {spread(fixed)}, grown less fixed {spread(less)}."
    yield ""


def auto_size() -> Iterator[str]:
    """Against a grid of fixed sizes."""
    yield "## Grown against a grid of fixed sizes\n\n`python benchmarks/auto_size.py --seeds 5`\n"
    for title, name in (
        ("Fixed nets are plain", "auto_size"),
        ("Fixed nets have the linear shortcut too", "auto_size_shortcut"),
    ):
        found = stored(name)
        seeds = found["settings"]["seeds"]
        yield f"{title}; 5-fold cross-validation, {seeds} seeds, score ± standard error (parameters).\n"
        sets = found["summary"]
        rows = [
            (method, *(f"{s[method]['score']:.4f} ± {s[method]['standard_error']:.4f} ({s[method]['parameters']:,.0f})"
                       for s in sets.values())) for method in found["settings"]["methods"]
        ]  # fmt: skip
        compared = found["comparisons"]["sets"]
        rows.append(
            ("grown less the best fixed", *(f"{c['margin']:+.4f} ({c['best_fixed']})" for c in compared.values()))
        )
        rows.append(("parameters over its", *(f"{c['parameter_ratio']:.2f}" for c in compared.values())))
        rows.append(("seconds, grown / grid", *(f"{found['comparisons']['sets'][s]['time_ratio']:.2f}" for s in sets)))
        yield table(("net", *sets), rows) + "\n"


def automatic() -> Iterator[str]:
    """Image networks that grow by themselves."""
    found = stored("automatic")
    settings, parts = found["settings"], ("train", "validation", "test")
    yield "## Grown by itself on images\n"
    options = " ".join(
        f"--{name} {' '.join(map(str, value)) if isinstance(value, list) else value}"
        for name, value in settings.items() if name in ("nets", "seeds", "epochs", "widths") and value is not None
    )  # fmt: skip
    yield f"`python benchmarks/automatic.py --data-dir folder {options}`\n"
    yield (
        f"{settings['images']:,} images of CIFAR-10 (JPEG, 16 x 16 pixels), {settings['epochs']} epochs, "
        f"considerations of {settings['looked_at']:,} images; accuracy, mean ± standard deviation over "
        f"{settings['seeds']} seeds. `twin` has new random weights at exactly the size that the grown net ended with. "
        f"Seconds include those of looking; other work shared the machine.\n"
    )
    for net, methods in found["summary"].items():
        rows = [
            (method, *(f"{f[p]['mean']:.4f} ± {f[p]['spread']:.4f}" for p in parts), f"{f['parameters']['mean']:,.0f}",
             f"{f['seconds']['mean']:.0f}", f"{f['looking']['mean']:.0f}") for method, f in methods.items()
        ]  # fmt: skip
        yield table((net, *parts, "parameters", "seconds", "looking"), rows)
        grown = methods["grown"]
        yield (
            f"\nGrown less twin, on the same seed: {grown['over_twin']['mean']:+.4f} ± "
            f"{grown['over_twin']['spread']:.4f} of the test images, at {grown['seconds_over_twin']['mean']:.2f} times "
            f"its seconds. Largest relative change of the loss at a growth: {grown['loss_change']:.1e}.\n"
        )


def growth_step() -> Iterator[str]:
    """Cost of a consideration."""
    found = stored("growth_step")
    yield "## Cost of a consideration\n\n"
    yield "`python benchmarks/growth_step.py`, over forward and backward of the same samples.\n"
    for case, figures in found.items():
        names = [key.removesuffix(", ratio") for key in figures if key.endswith(", ratio")]
        rows = []
        for name in names:
            time = f"{figures[f'{name}, ms']:.0f} ms = {figures[f'{name}, ratio']:.2f} times"
            known = f"{name}, MiB" in figures
            memory = (
                f"{figures[f'{name}, MiB']:.0f} MiB = {figures[f'{name}, memory ratio']:.2f} times" if known else ""
            )
            rows.append((name, time, memory))
        yield table((case, "CPU time", "peak memory"), rows) + "\n"


def natural_gradient() -> Iterator[str]:
    """Against Adam."""
    found = stored("natural_gradient")
    yield "## Natural gradient against Adam\n"
    yield "`SENN_DATA=folder python benchmarks/natural_gradient.py`, 784-256-256-10 on MNIST.\n"
    rows = []
    for name in ("tanh", "relu"):
        step, loss = found[name]["step seconds, batch 1024"], found[name]["loss after 100 steps"]
        adam = min(value for key, value in loss.items() if key.startswith("adam") and "seconds" not in key)
        rows.append((name, f"{step['ratio']:.2f}", f"{loss['natural']:.2g}", f"{adam:.2g}", f"{loss['ratio']:.3f}"))
    head = ("net", "step over Adam's", "loss after 100 steps", "Adam's at its best rate", "ratio")
    yield table(head, rows) + "\n"


def calibration() -> Iterator[str]:
    """What growth promised against what it brought."""
    found = stored("calibration")["summary"]
    yield "## Promised and realised\n"
    yield "`python benchmarks/calibration.py --seeds 5`: 20 natural-gradient steps after each growth.\n"
    head = list(found[0])
    rows = [[f"{v:.2f}" if isinstance(v, float) else v for v in row.values()] for row in found]
    yield table(head, rows) + "\n"
    yield "![Promised against realised decreases](calibration.png)\n"


def experiments() -> Iterator[str]:
    """The paper's figures 2 and 3."""
    for name, metric, title in (
        ("regression", "error", "Figure 2, one-dimensional regression: squared error over the target's variance"),
        ("moons", "accuracy", "Figure 3, half-moons: accuracy"),
    ):
        found = stored(name)
        yield f"## {title}\n\n`{found['command']}`\n"
        rows = [
            (r["seed"], f"{r['test'][metric]:.3g}", r["hidden"], r["parameters"], f"{r['seconds']:.1f}")
            for r in found["runs"]
        ]
        yield table(("seed", f"test {metric}", "hidden units", "parameters", "seconds"), rows)
        values = [r["test"][metric] for r in found["runs"]]
        yield f"\nMedian {statistics.median(values):.3g}, mean {statistics.fmean(values):.3g}.\n"


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


def main() -> None:
    """Write the page."""
    parts = [
        "# Results\n\nMade by `python docs/results.py` from `benchmarks/results`; two cores of a shared machine.\n"
    ]
    measured = (digits, images, auto_size, automatic, growth_step, natural_gradient, calibration)
    for section in (*measured, experiments, cifar_cycles):
        parts += section()
    (HERE / "results.md").write_text("\n".join(parts))


if __name__ == "__main__":
    main()
