"""Write docs/results.md from the stored results of the benchmarks and experiments.

    python docs/results.py

Every number on that page comes from a JSON file in benchmarks/results, as the command named beside it writes it with
`--out`; those of auto_size.py and calibration.py are kept without their single runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from continual_page import continual
from equal_flops_page import equal_flops
from gpt_page import gpt
from lora_page import lora
from results_figures import cifar_cycles, mnist, mnist_sizes, transfer
from results_frontier import smaller_sizes
from results_models import hard_tables, models
from results_paper import experiments
from results_running import running
from results_tables import table_sizes
from stored_results import is_stored, spread, stored, table
from table_bins_page import table_bins

HERE = Path(__file__).parent


COMMANDS = """## Measure it yourself

Each command prints its table and writes a JSON file.

```sh
python benchmarks/auto_size.py --seeds 5 --out auto_size.json
python benchmarks/fit_digits.py --seeds 12 --out fit_digits.json
python benchmarks/table_sizes.py --arms grown 128-128 --out table_sizes.json
python benchmarks/hard_tables.py --out hard_tables.json       # many columns, heavy tails, wild cells, few rows
python benchmarks/tables.py --out tables.json                 # with LightGBM, XGBoost, CatBoost and pytabkit beside it
python benchmarks/table_bins.py --out table_bins.json         # bins of numbers, chosen and shuffled
python benchmarks/fit_images.py --out fit_images.json         # grown and fixed nets, on CIFAR-10 written out as files
python benchmarks/growth_step.py --out growth_step.json       # pip install gromo==0.1.0 to compare with it
python benchmarks/natural_gradient.py --out natural_gradient.json
python benchmarks/calibration.py --seeds 5 --out calibration
python benchmarks/automatic.py --seeds 3 --out automatic.json
python benchmarks/lightning_overhead.py --out lightning_overhead.json
python benchmarks/communication.py --out communication.json   # bytes and time of a round on several processes
python benchmarks/resume.py --out resume.json                 # what checkpoints cost, and how soon a signal ends a run
python benchmarks/damaged_folders.py --out damaged_folders.json
python benchmarks/report_load.py --out report_load.json
python benchmarks/import_time.py --out import_time.json
python benchmarks/grown_and_fixed.py --seeds 5 --out grown_and_fixed.json   # fixed nets of the final size
python benchmarks/criteria.py --out criteria.json             # the score against chance and other criteria
python benchmarks/equal_flops.py --out equal_flops.json       # grown and fixed nets at equal operations
python benchmarks/lora_ranks.py --test --out lora_ranks.json  # LoRA adapters at equal budgets of parameters
python benchmarks/continual.py permuted --out continual.json  # streams of data that change; then `classes`
python benchmarks/gpt.py --seeds 5 --out gpt.json             # a GPT grown while it trains, at equal operations
```

Image sets are read from the folder in `--data-dir` or `SENN_DATA` (`mnist/*.gz`, `cifar-10/*.parquet` or
`cifar-10-binary.tar.gz`, `tiny-imagenet/*.zip`), otherwise downloaded once; decoded copies lie in `SENN_CACHE`
or your user cache.
"""


def digits() -> Iterator[str]:
    """`senn fit digits`."""
    found = stored("fit_digits")
    command = f"python benchmarks/fit_digits.py --seeds {len(found['runs'])}"
    yield f"## `senn fit digits`\n\n`{command}`\n"
    yield "An ensemble of networks of the widths that were found; parameters are those of all.\n"
    rows = [
        (r["seed"], f"{r['test'][found['metric']]:.4f}", r["architecture"], r["parameters"], f"{r['seconds']:.1f}",
         f"{r['loss_change']:.1e}") for r in found["runs"]
    ]  # fmt: skip
    yield table(
        (
            "seed",
            "test accuracy",
            "widths",
            "parameters",
            "seconds",
            "relative loss change at growth",
        ),
        rows,
    )
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
        grown, fixed = (
            [r["test"][part] for r in runs if r["net"] == net] for net in ("grown", "fixed")
        )
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
            (
                "grown less the best fixed",
                *(f"{c['margin']:+.4f} ({c['best_fixed']})" for c in compared.values()),
            )
        )
        rows.append(
            ("parameters over its", *(f"{c['parameter_ratio']:.2f}" for c in compared.values()))
        )
        rows.append(
            (
                "seconds, grown / grid",
                *(f"{found['comparisons']['sets'][s]['time_ratio']:.2f}" for s in sets),
            )
        )
        yield table(("net", *sets), rows) + "\n"


def automatic() -> Iterator[str]:
    """Image networks that grow by themselves."""
    found = stored("automatic")
    settings, parts = found["settings"], ("train", "validation", "test")
    yield "## Grown by itself on images\n"
    options = " ".join(
        f"--{name} {' '.join(map(str, value)) if isinstance(value, list) else value}"
        for name, value in settings.items() if name in ("nets", "seeds", "epochs", "widths")
    )  # fmt: skip
    yield f"`python benchmarks/automatic.py --data-dir folder {options}`\n"
    yield (
        f"{settings['images']:,} images of CIFAR-10 (JPEG, 16 x 16 pixels), {settings['epochs']} epochs, "
        f"otherwise the recipe of `train_images` but for batches of {settings['batch_size']}, growing from width "
        f"{settings['start']}; accuracy, mean ± standard deviation over {settings['seeds']} seeds. "
        f"`twin` has new random weights at exactly the size that the grown net ended "
        f"with. Seconds are of processor time and include those of looking.\n"
    )
    for net, methods in found["summary"].items():
        rows = [
            (method, *(f"{f[p]['mean']:.4f} ± {f[p]['spread']:.4f}" for p in parts), f"{f['parameters']['mean']:,.0f}",
             f"{f['seconds']['mean']:.0f}", f"{f['looking']['mean']:.0f}") for method, f in methods.items()
        ]  # fmt: skip
        yield table((net, *parts, "parameters", "seconds", "looking"), rows)
        grown = methods["grown"]
        best = max(
            (m for m in methods if m.startswith("width")), key=lambda m: methods[m]["test"]["mean"]
        )
        yield (
            f"\nGrown less twin, on the same seed: {grown['over_twin']['mean']:+.4f} ± "
            f"{grown['over_twin']['error']:.4f} (standard error) of the test images, at "
            f"{grown['seconds_over_twin']['mean']:.2f} times its seconds. Largest relative change of the "
            f"loss at a growth: {grown['loss_change']:.1e}. Less the best fixed net, {best}: "
            f"{grown['test']['mean'] - methods[best]['test']['mean']:+.4f}, with "
            f"{grown['parameters']['mean'] / methods[best]['parameters']['mean']:.2f} times its parameters.\n"
        )


def growth_step() -> Iterator[str]:
    """Cost of a consideration."""
    found = stored("growth_step")
    yield "## Cost of scoring a growth round\n\n"
    yield "`python benchmarks/growth_step.py`, over forward and backward of the same samples.\n"
    for case, figures in found.items():
        names = [key.removesuffix(", ratio") for key in figures if key.endswith(", ratio")]
        rows = []
        for name in names:
            time = f"{figures[f'{name}, ms']:.0f} ms = {figures[f'{name}, ratio']:.2f} times"
            known = f"{name}, MiB" in figures
            memory = (
                f"{figures[f'{name}, MiB']:.0f} MiB = {figures[f'{name}, memory ratio']:.2f} times"
                if known
                else ""
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
        adam = min(
            value for key, value in loss.items() if key.startswith("adam") and "seconds" not in key
        )
        rows.append(
            (
                name,
                f"{step['ratio']:.2f}",
                f"{loss['natural']:.2g}",
                f"{adam:.2g}",
                f"{loss['ratio']:.3f}",
            )
        )
    head = ("net", "step over Adam's", "loss after 100 steps", "Adam's at its best rate", "ratio")
    yield table(head, rows) + "\n"


def calibration() -> Iterator[str]:
    """What growth promised against what it brought."""
    found = stored("calibration")["summary"]
    yield "## Expected and realized decreases\n"
    yield "`python benchmarks/calibration.py --seeds 5`: 20 natural-gradient steps after each growth.\n"
    head = list(found[0])
    rows = [[f"{v:.2f}" if isinstance(v, float) else v for v in row.values()] for row in found]
    yield table(head, rows) + "\n"
    yield "![Expected against realized decreases](calibration.png)\n"


def main() -> None:
    """Write the page."""
    parts = [
        "# Results\n\nMade by `python docs/results.py` from `benchmarks/results`; two cores of a shared machine.\n"
    ]
    tables = (digits, images, auto_size, automatic, growth_step, natural_gradient, calibration)
    for section in tables:
        parts += section()
    parts += table_sizes([*stored("table_sizes").values()], table)
    parts += models([*stored("tables").values()], table)
    parts += table_bins()
    parts += hard_tables([*stored("hard_tables").values()], table)
    parts += equal_flops(stored, is_stored, table)
    parts += lora(stored, is_stored, table)
    parts += gpt(stored, is_stored, table)
    parts += continual(stored("continual"), table)
    parts += smaller_sizes(stored, table)
    parts += experiments(stored, is_stored, table)
    for section in (mnist, mnist_sizes, cifar_cycles, transfer):
        parts += section()
    parts += running(stored, table)
    parts.append(COMMANDS)
    (HERE / "results.md").write_text("\n".join(parts))


if __name__ == "__main__":
    main()
