"""Section of docs/results.md on models for tables; called by docs/results.py."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from hard_tables import table as scores_of
from table_ranks import (
    FIGURES,
    NETWORKS,
    complete,
    elo,
    mean_calibration,
    mean_ranks,
    time_ratio,
    wins,
)

Table = Callable[[Sequence[str], Sequence[Sequence[object]]], str]


def models(records: Sequence[dict[str, Any]], table: Table) -> Iterator[str]:
    """Senn beside other models on ten tables."""
    yield "## Which model for a table\n\n`python benchmarks/tables.py`\n"
    yield (
        "The ten tables, at most 6,000 rows each, one seed; every model at its defaults on the same rows. Ranks "
        "are of means over folds, averaged over tables: of the score (accuracy or R²) and of the loss (log-loss "
        "or RMSE), among all models and *among networks*. *Wins* are tables on which senn is ahead of it, level, "
        "or behind by more than a standard error over folds, by loss; of one fold there are none. *Time* is "
        "senn's processor time over its, the median over tables on one core, two fits at a time; RealMLP's was "
        "taken on a slower day, and is too small by about a half. *ECE* is the expected calibration error, the mean "
        "over the seven tables with classes. The ensemble of eight was chosen with `--tuning`, on rows of the "
        "training folds, as were how long its members are trained, their label smoothing and which columns get bins; "
        "the test folds had been scored before, by the studies of sizes above and by three former versions of senn. "
        "RealMLP is that of pytabkit, on the first fold; TabM of the same package didn't come to an end here.\n"
    )
    tables = {one["table"] for one in records}
    ours = {(one["table"], one["fold"]) for one in records if one["model"] == "senn"}
    everything = [fold for fold in (0, 1, 2) if all((name, fold) in ours for name in tables)]
    for folds in dict.fromkeys((tuple(everything), (0,))):
        kept = complete(records, folds)
        several = f"{len(folds)} folds"
        first = "The first fold, with models that took too long for all"
        yield f"\n{several if len(folds) > 1 else first}:\n"
        among = {figure: mean_ranks(kept, figure, NETWORKS) for figure in FIGURES}
        overall = {
            figure: mean_ranks(kept, figure, [one["model"] for one in kept]) for figure in FIGURES
        }
        rated = {figure: elo(kept, figure) for figure in FIGURES}
        rows = []
        for name in overall["loss"]:
            cells = [name]
            for figure in FIGURES:
                own = among[figure].get(name)
                cells += [
                    f"{overall[figure][name]:.2f}",
                    "-" if own is None else f"{own:.2f}",
                    f"{rated[figure][name]:.0f}",
                ]
            won = "-".join(map(str, wins(kept, "loss", name))) if len(folds) > 1 else "-"
            beside = "-" if name == "senn" else won
            rows.append(
                (
                    *cells,
                    beside,
                    f"{time_ratio(kept, name):.2g}",
                    f"{mean_calibration(kept, name):.3f}",
                )
            )
        yield table(
            (
                "model",
                "score: rank",
                "among networks",
                "Elo",
                "loss: rank",
                "among networks",
                "Elo",
                "wins",
                "time",
                "ECE",
            ),
            rows,
        )
        yield ""


def hard_tables(records: Sequence[dict[str, Any]], table: Table) -> Iterator[str]:
    """Tables that are hard for a network, beside controls."""
    yield "## Tables that are hard for a network\n\n`python benchmarks/hard_tables.py`\n"
    yield (
        "Drawn anew for each seed; accuracy or R², mean and standard error. *Default* is senn as it comes; what is "
        "below it is a control, or what was done to the table.\n"
    )
    yield table(("table", "how", "seeds", "score"), scores_of(records)) + "\n"
