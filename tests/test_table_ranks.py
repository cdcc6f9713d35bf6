"""Ranks, ratings and wins of the bench on tables."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from table_ranks import complete, elo, mean_ranks, ranks, time_ratio, wins


def record(table, fold, model, score, loss=1.0, seconds=1.0):
    return {
        "table": table,
        "fold": fold,
        "model": model,
        "seed": 0,
        "score": score,
        "loss": loss,
        "ece": None,
        "seconds": seconds,
    }


RECORDS = [
    record("a", 0, "senn", 0.9, 0.2, 4.0),
    record("a", 1, "senn", 0.8, 0.3, 4.0),
    record("b", 0, "senn", 0.5, 1.0, 6.0),
    record("b", 1, "senn", 0.6, 1.2, 6.0),
    record("a", 0, "forest", 0.7, 0.4, 2.0),
    record("a", 1, "forest", 0.7, 0.5, 2.0),
    record("b", 0, "forest", 0.6, 1.1, 2.0),
    record("b", 1, "forest", 0.6, 1.0, 2.0),
    record("a", 0, "tabm", 0.95, 0.1, 9.0),
]


def test_ties_share_their_ranks():
    assert ranks({"a": 1.0, "b": 1.0, "c": 0.0}, rising=True) == {"a": 2.5, "b": 2.5, "c": 1.0}


def test_a_model_that_lacks_a_fold_is_left_out():
    assert {one["model"] for one in complete(RECORDS, (0, 1))} == {"senn", "forest"}
    assert {one["fold"] for one in complete(RECORDS, (0,))} == {0}


def test_ranks_are_of_means_over_folds():
    kept = complete(RECORDS, (0, 1))
    assert mean_ranks(kept, "score", ["senn", "forest"]) == {"senn": 1.5, "forest": 1.5}
    assert mean_ranks(kept, "loss", ["senn"]) == {"senn": 1.0}


def test_a_table_is_won_beyond_a_standard_error():
    # a: .2 and .1 ahead; b: .1 behind, and level
    assert wins(RECORDS, "score", "forest") == (1, 1, 0)
    assert wins(RECORDS, "loss", "forest") == (1, 1, 0)


def test_ratings_follow_who_wins_and_time_is_a_median():
    kept = [one for one in complete(RECORDS, (0, 1)) if one["table"] == "a"]
    rated = elo(kept, "score")
    assert rated["senn"] > 1000 > rated["forest"]
    assert sum(rated.values()) == pytest.approx(2000)
    assert time_ratio(complete(RECORDS, (0, 1)), "forest") == 2.5
