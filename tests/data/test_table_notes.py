"""Leaks, row numbers and doubtful classes that a user hears of before training."""

import re

import numpy as np
import pandas as pd
import pytest

from senn.data import TableEncoder, Target
from senn.data.tabular.table_notes import (
    deciding_columns,
    duplicate_note,
    index_columns,
    order_notes,
    rising_columns,
    tail_note,
    target_notes,
)

DRAW = np.random.default_rng(0)


def noise(rows=120):
    frame = pd.DataFrame(DRAW.normal(size=(rows, 2)).round(3), columns=["a", "b"])
    return frame.assign(label=DRAW.permutation(np.repeat(["no", "yes"], rows // 2)))


def deciding(frame, target="label", task=None):
    encoder = TableEncoder.fit(frame, target, task)
    train, test = frame.iloc[::2], frame.iloc[1::2]
    x, y = zip(
        *((encoder.transform(part), encoder.target.encode(part[target])) for part in (train, test)),
        strict=True,
    )
    return deciding_columns(encoder, x, y)


@pytest.mark.parametrize(
    ("name", "values", "numbers"),
    [
        ("Unnamed: 0", range(120), True),
        ("Unnamed: 0.1", DRAW.permutation(120) * 3, True),
        ("...1", range(1, 121), True),
        ("__index_level_0__", range(500, 620), True),
        ("index", DRAW.permutation(120), True),
        ("row_id", range(120), True),
        ("index", range(0, 240, 2), False),
        ("Unnamed: 3", DRAW.normal(size=120), False),
        ("Unnamed: 3", [1, 2] * 60, False),
        ("index", [True, False] * 60, False),
        ("indexed", range(120), False),
    ],
)
def test_columns_that_only_number_the_rows(name, values, numbers):
    frame = noise().assign(**{name: values})
    assert (name in index_columns(frame)) == numbers
    assert index_columns(frame, but={name}) == {}


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (range(1001, 1121), "number"),
        (range(120, 0, -1), "number"),
        (DRAW.permutation(120), "number"),
        (np.cumsum(DRAW.integers(1, 9, 120)), "number"),
        (np.linspace(0, 1, 120), "number"),
        (pd.date_range("2020-01-01", periods=120).strftime("%Y-%m-%d"), "date"),
        (np.sort(DRAW.normal(size=120)), None),
        (DRAW.integers(0, 1000, 120), None),
        ([5, *range(1, 120)], None),
    ],
)
def test_columns_by_which_the_rows_have_an_order(values, kind):
    frame = noise().assign(column=values)
    found = rising_columns(frame, TableEncoder.fit(frame, "label"))
    assert found.get("column") == kind
    assert len(order_notes(found)) == (kind is not None)
    assert not found.keys() - {"column"}


def test_rows_that_stand_twice_are_counted_on_both_sides():
    frame = noise()
    columns = ["a", "b", "label"]
    assert duplicate_note(frame[:90], frame[90:], columns) == []
    test = pd.concat([frame[90:], frame[:10]])
    (note,) = duplicate_note(frame[:90], test, columns)
    assert note == (
        "20 of 130 rows stand more than once; 25% of the test rows also stand among the training rows"
    )
    (note,) = duplicate_note(pd.concat([frame[:90], frame[:3]]), frame[90:], columns)
    assert note == "6 of 123 rows stand more than once; none of them on both sides of the test"
    # Missing cells are equal, and a column that isn't compared makes no difference.
    frame.loc[:, "a"] = np.nan
    assert duplicate_note(frame, frame.assign(id=range(120)), columns) != []


@pytest.mark.parametrize(
    ("copy", "decides"),
    [
        (lambda f: np.where(f.label == "yes", 1, 0), True),
        (lambda f: np.where(f.label == "yes", "done", "open"), True),
        (lambda f: np.where(f.label == "yes", 5 + f.a.abs(), f.b.abs()), True),
        (lambda f: f.label.where(f.index % 10 != 0, "no"), False),
        (lambda f: f.a * 2, False),
    ],
)
def test_a_column_that_decides_the_classes(copy, decides):
    frame = noise()
    assert deciding(frame.assign(outcome=copy(frame))) == ["outcome"] * decides


@pytest.mark.parametrize(
    ("copy", "decides"),
    [
        (lambda y: 3 * y + 2, True),
        (lambda y: np.exp(y), True),
        (lambda y: y.round(2), True),
        (lambda y: y + DRAW.normal(size=len(y)), False),
    ],
)
def test_a_column_that_decides_a_number(copy, decides):
    frame = noise().drop(columns="label")
    frame["y"] = DRAW.normal(size=120)
    assert deciding(frame.assign(other=copy(frame.y)), "y") == ["other"] * decides


def test_a_single_column_may_decide():
    frame = pd.DataFrame({"x": np.arange(60.0), "y": np.arange(60) // 30})
    assert deciding(frame, "y") == []


def test_numbers_taken_as_classes_and_spellings_are_pointed_out():
    visits = Target.fit("visits", pd.Series([0, 1, 2, 3] * 10))
    (note,) = target_notes(visits, is_inferred=True)
    assert note.endswith("if they count or rate something: --task regression")
    assert target_notes(visits, is_inferred=False) == []
    for sound in ([0, 1] * 20, ["cat", "dog"] * 20, [True, False] * 20):
        assert target_notes(Target.fit("y", pd.Series(sound)), is_inferred=True) == []
    messy = Target.fit("y", pd.Series(["Yes", "yes", "Yes ", "No", "n/a-b", "N/A b"] * 5))
    assert target_notes(messy, is_inferred=True) == [
        "classes 'N/A b', 'n/a-b' differ only in capitals, blanks or marks, and count as 2 classes",
        "classes 'Yes', 'yes' differ only in capitals, blanks or marks, and count as 2 classes",
    ]


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        (lambda z: 3 * z + 1e6, ""),
        (lambda z: np.exp(z), ""),
        (lambda z: np.exp(2 * z), "is heavy-tailed.*learned"),
        (lambda z: np.sinh(3 * z), "is heavy-tailed.*learned"),
        (
            lambda z: np.where(np.arange(len(z)) < 2, 1e7, z),
            "has 2 numbers far outside all others, such as 1e.07: ",
        ),
        (lambda z: np.where(np.arange(len(z)) % 20 == 0, z, 0.0), ""),
    ],
)
def test_targets_that_few_numbers_decide_are_pointed_out(numbers, words):
    cells = pd.Series(numbers(np.random.default_rng(3).normal(size=2000)))
    target = Target.fit("y", cells)
    found = tail_note(target, cells)
    assert bool(found) == bool(words)
    assert all(re.search(words, one) for one in found)
