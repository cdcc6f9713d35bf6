"""Where do bins of numbers pay? Chosen by what they tell about the target, beside equal, finer and shuffled ones.

The ten tables of `table_sizes.py`; every arm differs in the bins of the columns of numbers alone:

- `equal`: up to eight bins for each column;
- `chosen`: as senn chooses them, by residuals on held-out rows (`senn.data.tabular.useful_bins`);
- `shuffled`: the same numbers of bins, each at another column, which is drawn (control);
- `finer`: up to 32 bins for each column.

Hypothesis before the run: where a column is chosen, losses are below those of equal bins, and of shuffled ones. It is
refuted where the mean over these tables isn't below 0 by two standard errors. Scores are of a fifth of each training
fold; no row of the test folds is looked at. Every record is written as soon as it is complete; what is there is not
run again.

    SENN_DATA=DIR python benchmarks/table_bins.py --seeds 200 201 --out benchmarks/results/table_bins.json
"""

from __future__ import annotations

import argparse
import shlex
import sys
import unittest.mock
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from criteria import Results
from equal_flops import commit
from table_sizes import FOLDS, REGRESSION, TABLES, read, split
from tables import fit

from senn.data.tabular.number_scale import most_bins
from senn.data.tabular.table_columns import Column, NumberColumn
from senn.data.tabular.useful_bins import FINER, with_useful_bins

ARMS = ("equal", "chosen", "shuffled", "finer")


class Bins:
    """Stands for `with_useful_bins`, and notes what it says.

    Args:
        arm: how bins are chosen.
        seed: of the columns that are drawn.
    """

    def __init__(self, arm: str, seed: int) -> None:
        self.arm, self._draw = arm, np.random.default_rng(seed)
        self.columns: tuple[Column, ...] = ()

    def __call__(
        self, columns: Sequence[Column], frame: pd.DataFrame, encode_target: Any, **options: Any
    ) -> tuple[Column, ...]:
        """Return the columns with the arm's bins."""
        numbers = [one for one in columns if isinstance(one, NumberColumn)]
        equal = most_bins(len(frame), len(numbers), options["task"], options["max_inputs"])
        wanted = {one.name: equal * (FINER if self.arm == "finer" else 1) for one in numbers}
        if self.arm in ("chosen", "shuffled"):
            chosen = with_useful_bins(columns, frame, encode_target, **options)
            before, after = _counts(columns), _counts(chosen)
            for name in wanted:
                if after[name] != before[name]:
                    wanted[name] = FINER * equal if after[name] else 0
        if self.arm == "shuffled":
            counts = self._draw.permutation([*wanted.values()])
            wanted = dict(zip(wanted, map(int, counts), strict=True))
        self.columns = tuple(
            one.with_bins(frame[one.name], wanted[one.name])
            if isinstance(one, NumberColumn)
            else one
            for one in columns
        )
        return self.columns


def _counts(columns: Sequence[Column]) -> dict[str, int]:
    return {
        one.name: max(0, len(one.edges) - 1) for one in columns if isinstance(one, NumberColumn)
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Fit what is missing."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=[*TABLES])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=[*ARMS])
    parser.add_argument("--folds", nargs="+", type=int, default=[*range(FOLDS)])
    parser.add_argument("--seeds", nargs="+", type=int, default=[200])
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    results = Results(arguments.out)
    words = sys.argv[1:] if argv is None else argv
    command = shlex.join(["python", "benchmarks/table_bins.py", *words])
    for seed in arguments.seeds:
        for table in arguments.tables:
            frame, y = read(table)
            is_regression = table in REGRESSION
            parts = split(frame, y, is_regression=is_regression, tuning=True)
            for number in arguments.folds:
                for arm in arguments.arms:
                    about = {"table": table, "fold": number, "arm": arm, "seed": seed}
                    if results.key(**about) in results.records:
                        continue
                    bins = Bins(arm, seed + number)
                    with unittest.mock.patch(
                        "senn.integrations._sklearn_inputs.with_useful_bins", bins
                    ):
                        figures = fit(
                            "senn", frame, y, parts[number], is_regression=is_regression, seed=seed
                        )
                    figures |= {"bins": _counts(bins.columns)}
                    record = results.add(about, figures | {"command": command, "commit": commit()})
                    print(results.key(**about), record["loss"], file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
