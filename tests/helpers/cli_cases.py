"""What tests of the command share."""

import numpy as np
import pandas as pd

from senn.cli.main import main


def refused(capsys, argv):
    """The one sentence of a refusal."""
    capsys.readouterr()
    assert main([str(arg) for arg in argv]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("senn: ")
    assert captured.err.count("\n") == 1
    return captured.err


TWO_CLASSES = {"accuracy", "balanced_accuracy", "f1", "recall", "roc_auc", "log_loss", "ece"}
"""Test scores of a target with two classes."""

RESULTS = {
    "task": "classification",
    "seed": 1,
    "optimizer": "adamw",
    "policy": "PricePolicy()",
    "architecture": [3],
    "parameters": 9,
    "seconds": 0.5,
    "best_epoch": 1,
    "interrupted": False,
    "test": {},
    "validation": {},
    "data": {"name": "wine", "train_rows": 5, "test_rows": 2},
}
"""Results with the fields that every run has."""

FILES = [
    "growth.png",
    "history.jsonl",
    "model.json",
    "model.safetensors",
    "results.json",
    "test.json",
]


def fit(folder, table, out="run"):
    return ["fit", str(folder / table) if "." in table else table, "--out", str(folder / out)]


def people(rows=80):
    """A table with a column of every kind; `größe` decides on the class."""
    draw = np.random.default_rng(0)
    size = draw.normal(size=rows)
    return pd.DataFrame(
        {
            "größe": np.where(np.arange(rows) % 9 == 4, np.nan, size),
            "color": draw.choice(["red", "green", "blue"], rows),
            "since": pd.date_range("2020-01-01", periods=rows, freq="9D").strftime("%Y-%m-%d"),
            "member": draw.random(rows) > 0.5,
            "id": [f"id-{at}" for at in range(rows)],
            "kind": np.where(size > 0, "big", "small"),
        }
    )
