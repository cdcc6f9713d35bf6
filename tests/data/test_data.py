"""Tables as numbers: columns of every kind, targets, splits, and the round trip through JSON."""

import json
from datetime import date
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from senn.data import TableEncoder, Target, split
from senn.data.tabular.category_column import MOST_CATEGORIES, SURE_CATEGORIES
from senn.data.tabular.feature_columns import fit_columns
from senn.errors import SennError


def table(**columns):
    """A table with a two-class target `y`, rows counted from 1."""
    rows = len(next(iter(columns.values())))
    frame = pd.DataFrame({**columns, "y": [at % 2 for at in range(rows)]})
    return frame.set_axis(range(1, rows + 1))


def fit(kinds=None, **columns):
    frame = table(**columns)
    encoder = TableEncoder.fit(frame, "y", kinds=kinds)
    return encoder, encoder.transform(frame)


def again(encoder):
    """The encoder after a journey through JSON."""
    return TableEncoder.from_dict(json.loads(json.dumps(encoder.to_dict(), allow_nan=False)))


def kinds(encoder):
    return {column.name: column.kind for column in encoder.columns}


class TestNumbers:
    def test_are_standardized(self):
        _, x = fit(a=[1.0, 2.0, 3.0, 6.0])
        # the lower median, and the outer twentieths 1 and 6, which lie 3.29 deviations apart
        z = (np.array([1, 2, 3, 6.0]) - 2) / (5 / 3.29)
        np.testing.assert_allclose(x[:, 0], z / np.sqrt(1 + z**2 / 9), rtol=1e-6)
        assert x.dtype == np.float32

    def test_missing_ones_become_the_median_and_are_marked(self):
        encoder, x = fit(a=[1.0, None, 3.0, 100.0, 2.0])
        assert encoder.features == ["a", "a missing"]
        assert x[:, 1].tolist() == [0, 1, 0, 0, 0]
        assert x[1, 0] == x[4, 0]

    def test_missing_only_later_is_the_median_unmarked(self):
        encoder, _ = fit(a=[1.0, 2.0, 3.0, 5.0])
        assert encoder.features == ["a"]
        late = encoder.transform(pd.DataFrame({"a": [None, 2.0]}))
        assert late[0, 0] == late[1, 0]

    @pytest.mark.parametrize("cells", [["1", "2.5", "-3e2", "4"], [1, "2.5", Decimal(-300), 4]])
    def test_text_of_numbers_is_read(self, cells):
        encoder, x = fit(a=pd.Series(cells, dtype=object))
        assert kinds(encoder) == {"a": "number"}
        assert np.array_equal(x, fit(a=[1, 2.5, -300, 4])[1])

    @pytest.mark.parametrize("mark", ["?", "NA", "n/a", "", "-", "None"])
    def test_usual_marks_are_missing(self, mark):
        encoder, x = fit(a=["1", mark, "3", "4"])
        assert encoder.features == ["a", "a missing"]
        assert x[1, 1] == 1

    def test_a_dirty_cell_is_named(self):
        with pytest.raises(SennError, match=r"column 'a' .* 1 of 10 rows, .* row 4: 'abc'"):
            fit(a=["1", "2", "3", "abc", "5", "6", "7", "8", "9", "10"])
        encoder, _ = fit(
            a=["1", "2", "3", "abc", "5", "6", "7", "8", "9", "10"], kinds={"a": "category"}
        )
        assert "a=abc" in encoder.features

    def test_a_dirty_cell_in_a_later_table_is_named(self):
        encoder, _ = fit(a=[1.0, 2.0, 3.0, 5.0])
        with pytest.raises(SennError, match="column 'a', row 7: 'x' is not a number"):
            encoder.transform(pd.DataFrame({"a": ["1", "x"]}, index=[6, 7]))

    @pytest.mark.parametrize(
        "cell",
        [np.inf, -np.inf, "inf", "1e999", 10**400],
        ids=["inf", "-inf", "text", "big text", "big int"],
    )
    def test_infinity_is_refused(self, cell):
        with pytest.raises(SennError, match="column 'a', row 2"):
            fit(
                a=pd.Series(
                    [1.0, cell, 3.0, 4.0], dtype=object if isinstance(cell, str | int) else None
                )
            )

    def test_enormous_numbers_stay_finite(self):
        encoder, x = fit(
            a=[1.7e308, -1.7e308, 0.0, 1e300], b=[2**64 - 1, 0, 1, 2**63], c=[10**30, 0, 1, 2]
        )
        assert kinds(encoder) == {"a": "number", "b": "number", "c": "number"}
        assert np.isfinite(x).all()
        assert np.abs(x).max() <= 3
        assert (np.abs(x).min(0) == 0).all()  # the medians
        small, _ = fit(a=[0.0, 1e-3, 2e-3, 3e-3])
        assert small.transform(pd.DataFrame({"a": [1e300]}))[0, 0] == 3

    @pytest.mark.parametrize(
        "dtype", ["Int64", "Float32", "int8", "uint64", "float16", "double[pyarrow]"]
    )
    def test_every_numeric_type(self, dtype):
        _, x = fit(a=pd.Series([1, 2, 3, 6], dtype=dtype))
        np.testing.assert_allclose(x, fit(a=[1, 2, 3, 6])[1])

    @pytest.mark.parametrize(
        "cells", [[1j, 2j] * 2, [b"a", b"b"] * 2, [[1], [2]] * 2, pd.to_timedelta([1, 2, 3, 4])]
    )
    def test_strange_types_are_refused_by_name(self, cells):
        with pytest.raises(SennError, match=r"column 'a'.* isn't understood"):
            fit(a=cells)

    @pytest.mark.parametrize(
        "cells",
        [
            [1j, 2j, 3.0, 4.0],
            [[1], [2], [3], [4]],
            pd.to_timedelta([1, 2, 3, 4], "h"),
            pd.to_datetime(["2020-01-01", "2020-01-02", "2020-01-03", "2020-01-04"]),
            [10**400, 2, 3, 4],
        ],
    )
    def test_what_is_no_number_is_refused(self, cells):
        with pytest.raises(
            SennError, match=r"column 'a', row 1: .* is (not a number|infinite or too large)"
        ) as caught:
            fit({"a": "number"}, a=cells)
        assert len(str(caught.value)) < 100


class TestCategories:
    def test_one_feature_each(self):
        encoder, x = fit(a=["x", "y", "x", "z"])
        assert encoder.features == ["a=x", "a=y", "a=z"]
        assert x.tolist() == [[1, 0, 0], [0, 1, 0], [1, 0, 0], [0, 0, 1]]

    def test_unseen_ones_are_zeros(self):
        encoder, _ = fit(a=["x", "y", "x", "y"])
        assert encoder.transform(pd.DataFrame({"a": ["new", None, "y"]})).tolist() == [
            [0, 0],
            [0, 0],
            [0, 1],
        ]

    def test_missing_ones_are_a_category(self):
        encoder, x = fit(a=["x", None, "x", "y"])
        assert encoder.features == ["a=x", "a=y", "a missing"]
        assert x[1].tolist() == [0, 0, 1]

    def test_rare_and_unseen_ones_share_a_feature(self):
        encoder, _ = fit(a=["x"] * 600 + ["y"] * 390 + [f"rare{at}" for at in range(10)])
        assert encoder.features == ["a=x", "a=y", "a other"]
        assert encoder.transform(pd.DataFrame({"a": ["rare3", "never"]})).tolist() == [
            [0, 0, 1],
            [0, 0, 1],
        ]
        assert encoder.notes == ["column 'a' has 10 rare categories, which are taken together"]

    def test_ten_thousand_categories_are_capped(self):
        cells = [f"c{at % 10_000}" for at in range(25_000)] + ["often"] * 5_000
        encoder, x = fit(a=cells, b=np.arange(30_000.0))
        assert encoder.features[:3] == ["a=often", "a other", "b"]
        assert x.shape == (30_000, 3)  # b says nothing about the target, so it gets no bins
        encoder, _ = fit(a=[f"c{at % 1_100}" for at in range(6_000)])
        assert len(encoder.features) == MOST_CATEGORIES + 1
        column = encoder.columns[0]
        assert len({*column.categories, *column.rare}) == 1_100

    def test_a_network_of_limited_size_gets_fewer_categories(self):
        cells = [f"c{at % 100:02}" for at in range(3_000)]
        frame = pd.DataFrame({"a": cells})
        (column,) = fit_columns(frame, task="regression")
        assert len(column.features()) == 100
        (column,) = fit_columns(frame, task="regression", max_inputs=200)
        assert column.features() == [*(f"a=c{at:02}" for at in range(SURE_CATEGORIES)), "a other"]
        assert column.rare == tuple(f"c{at}" for at in range(SURE_CATEGORIES, 100))
        assert "36 rare categories" in column.note

    def test_numbers_as_categories_match_across_types(self):
        encoder, _ = fit(a=pd.Series([1, 2, 1, 3], dtype="category"))
        for cells in (["1", "3"], [1.0, 3.0], [1, 3]):
            assert encoder.transform(pd.DataFrame({"a": cells})).tolist() == [[1, 0, 0], [0, 0, 1]]

    def test_identifiers_are_dropped_with_a_note(self):
        encoder, _ = fit(id=[f"person {at}" for at in range(30)], a=range(30))
        assert kinds(encoder) == {"id": "dropped", "a": "number"}
        assert encoder.notes == [
            "column 'id' looks like an identifier: 30 different texts in 30 rows"
        ]
        assert encoder.transform(pd.DataFrame({"a": [1]})).shape == (1, 1)


class TestBooleansAndConstants:
    def test_booleans(self):
        encoder, x = fit(a=[True, False, None, True], b=[True, False, True, False])
        assert kinds(encoder) == {"a": "boolean", "b": "boolean"}
        assert x.tolist() == [[1, 1], [-1, -1], [0, 1], [1, -1]]
        later = pd.DataFrame({"a": ["true", "False"], "b": [0, 1]})
        assert encoder.transform(later).tolist() == [[1, -1], [-1, 1]]

    def test_a_wrong_boolean_is_named(self):
        encoder, _ = fit(a=[True, False, True, True])
        with pytest.raises(SennError, match="column 'a', row 0: 'maybe' is neither true nor false"):
            encoder.transform(pd.DataFrame({"a": ["maybe"]}))

    def test_columns_that_say_nothing_are_dropped_with_a_note(self):
        encoder, _ = fit(
            a=[1, 2, 3, 4], n=[7.0] * 4, t=["x"] * 4, e=[None] * 4, m=["?"] * 4, b=[True] * 4
        )
        assert encoder.features == ["a"]
        assert encoder.notes == [
            "column 'n' is always 7",
            "column 't' is always 'x'",
            "column 'e' is empty",
            "column 'm' is empty",
            "column 'b' is always true",
        ]

    def test_nothing_left_is_refused(self):
        with pytest.raises(
            SennError, match=r"no column is left to predict 'y' from \('a' is always 1\)"
        ):
            fit(a=[1, 1, 1, 1])


class TestDates:
    @pytest.mark.parametrize(
        "cells",
        [
            ["2024-01-01", "2024-01-02", "2024-03-30", "2025-06-04"],
            ["2024/01/01", "2024/01/02", "2024/03/30", "2025/06/04"],
            ["01.01.2024", "02.01.2024", "30.03.2024", "04.06.2025"],
            ["01/01/2024", "02/01/2024", "30/03/2024", "04/06/2025"],
            ["01/01/2024", "01/02/2024", "03/30/2024", "06/04/2025"],
            ["1 Jan 2024", "2 Jan 2024", "30 Mar 2024", "4 Jun 2025"],
            [
                "2024-01-01T00:00:00Z",
                "2024-01-02T00:00:00Z",
                "2024-03-30T00:00:00Z",
                "2025-06-04T00:00:00Z",
            ],
            [date(2024, 1, 1), date(2024, 1, 2), date(2024, 3, 30), date(2025, 6, 4)],
            pd.to_datetime(["2024-01-01", "2024-01-02", "2024-03-30", "2025-06-04"]),
        ],
    )
    def test_all_ways_of_writing_them(self, cells):
        encoder, x = fit(a=cells)
        assert kinds(encoder) == {"a": "date"}
        names = ["days", "year", "month sine", "month cosine", "weekday sine", "weekday cosine"]
        assert encoder.features == [f"a {name}" for name in names]
        days = np.array([0, 1, 89, 520.0])
        np.testing.assert_allclose(x[:, 0], (days - days.mean()) / days.std(), rtol=1e-5)
        np.testing.assert_allclose(
            x[:, 2], np.sin(2 * np.pi * np.array([0, 0, 2, 5]) / 12), atol=1e-6
        )
        np.testing.assert_allclose(
            x[:, 5], np.cos(2 * np.pi * np.array([0, 1, 5, 2]) / 7), atol=1e-6
        )

    def test_numbers_and_versions_are_no_dates(self):
        encoder, _ = fit(a=["2024", "2025", "2023", "2022"], b=["1.2.3", "1.2.4", "1.2.3", "2.0.0"])
        assert kinds(encoder) == {"a": "number", "b": "category"}

    def test_time_of_day_and_missing(self):
        encoder, x = fit(
            a=["2024-01-01 06:00:00", None, "2024-01-03 18:00:00", "2024-01-02 12:00:00"]
        )
        assert encoder.features[-3:] == ["a hour sine", "a hour cosine", "a missing"]
        np.testing.assert_allclose(x[[0, 2, 3], -3], [1, -1, 0], atol=1e-6)
        assert x[1, 0] == x[3, 0]

    def test_ambiguous_ones_are_noted(self):
        encoder, _ = fit(a=["01/02/2024", "03/04/2024", "05/06/2024", "07/08/2024"])
        assert encoder.notes == [
            "column 'a' has no date that tells months from days; the month is taken to come first"
        ]

    @pytest.mark.parametrize(
        "cells",
        [
            ["0001-01-01", "9999-12-31", None, None],
            [date(1, 1, 1), date(9999, 12, 31), None, None],
            np.array(["0001-01-01", "9999-12-31", "NaT", "NaT"], "datetime64[us]"),
        ],
    )
    def test_far_from_today(self, cells):
        encoder, x = fit(a=cells)
        assert kinds(encoder) == {"a": "date"}
        np.testing.assert_allclose(x[:2, 1], [-1, 1], rtol=1e-6)
        np.testing.assert_allclose(x[2, 0], x[0, 0], rtol=1e-6)
        np.testing.assert_allclose(again(encoder).transform(table(a=cells)), x)

    def test_a_wrong_date_is_named(self):
        encoder, _ = fit(a=["2024-01-01", "2024-01-02", "2024-03-30", "2025-06-04"])
        with pytest.raises(
            SennError, match=r"column 'a', row 0: '30\.03\.2024' is not a date like"
        ):
            encoder.transform(pd.DataFrame({"a": ["30.03.2024"]}))


class TestTables:
    def test_order_and_further_columns_do_not_matter(self):
        frame = table(a=[1, 2, 3, 4], größe=["x", "y", "x", "y"], 名=[0.5, 1, 2, 8])
        encoder = TableEncoder.fit(frame, "y")
        shuffled = frame[["名", "y", "größe", "a"]].assign(more=1)
        assert np.array_equal(encoder.transform(shuffled), encoder.transform(frame))

    def test_missing_columns_are_named(self):
        encoder, _ = fit(a=[1, 2, 3, 4], b=[1, 2, 3, 5], c=[1, 2, 3, 6])
        with pytest.raises(SennError, match="lacks the columns 'a', 'c'"):
            encoder.transform(pd.DataFrame({"b": [1]}))

    @pytest.mark.parametrize(
        ("frame", "message"),
        [
            (pd.DataFrame({"a": [1]}), "no column 'y'; the table has 'a'"),
            (pd.DataFrame({"a": [], "y": []}), "no rows"),
            (pd.DataFrame([[1, 2, 3]], columns=["a", "a", "y"]), "two columns are named 'a'"),
        ],
    )
    def test_impossible_tables(self, frame, message):
        with pytest.raises(SennError, match=message):
            TableEncoder.fit(frame, "y")

    @pytest.mark.parametrize(
        ("kinds", "message"), [({"b": "number"}, "no column 'b'"), ({"a": "x"}, "kind 'x'")]
    )
    def test_impossible_kinds(self, kinds, message):
        with pytest.raises(SennError, match=message):
            fit(a=[1, 2, 3, 4], kinds=kinds)

    def test_kinds_can_be_told(self):
        encoder, _ = fit(a=[1, 2, 1, 2], b=[1, 2, 3, 4], kinds={"a": "category", "b": "dropped"})
        assert encoder.features == ["a=1", "a=2"]
        with pytest.raises(SennError, match="row 1: 'x' is not a number"):
            fit(a=["x", "y", "x", "y"], kinds={"a": "number"})

    @settings(max_examples=40, deadline=None)
    @given(st.data())
    def test_json_round_trip_changes_nothing(self, data):
        cells = st.one_of(
            st.lists(st.none() | st.floats(-1e300, 1e300), min_size=12, max_size=12),
            st.lists(st.none() | st.booleans(), min_size=12, max_size=12),
            st.lists(st.none() | st.sampled_from("äbc"), min_size=12, max_size=12),
            st.lists(
                st.none() | st.dates(date(1800, 1, 1), date(2200, 1, 1)), min_size=12, max_size=12
            ),
        )
        frame = table(a=data.draw(cells), b=data.draw(cells), c=range(12))
        encoder = TableEncoder.fit(frame, "y")
        x = encoder.transform(frame)
        assert again(encoder) == encoder
        assert np.isfinite(x).all()
        assert x.shape == (12, len(encoder.features))
        assert np.array_equal(again(encoder).transform(frame), x)
        assert np.array_equal(encoder.transform(frame.iloc[3:5]), x[3:5])

    @pytest.mark.parametrize(
        "damage",
        [
            lambda d: d.pop("columns"),
            lambda d: d.pop("target"),
            lambda d: d["columns"].append(3),
            lambda d: d["columns"][0].update(kind="dropped"),
            lambda d: d["columns"][0].update(kind="os"),
            lambda d: d["columns"][0].update(mean="0"),
            lambda d: d["columns"][0].update(mean=float("nan")),
            lambda d: d["columns"][0].update(scale=0.0),
            lambda d: d["columns"][0].pop("median"),
            lambda d: d["target"].update(task="other"),
            lambda d: d["target"].update(labels=["a"]),
            lambda d: d["target"].update(labels=[["a"], ["b"]]),
            lambda d: d["target"].update(mean=None),
            lambda d: d["target"].pop("name"),
        ],
    )
    def test_damaged_records_are_refused(self, damage):
        record = fit(a=[1, 2, 3, 4])[0].to_dict()
        damage(record)
        with pytest.raises(SennError, match=r"damaged|unknown kind"):
            TableEncoder.from_dict(record)


class TestTarget:
    @pytest.mark.parametrize(
        ("cells", "task"),
        [
            (["a", "b"] * 5, "classification"),
            ([True, False] * 5, "classification"),
            ([0, 1, 2] * 5, "classification"),
            ([0.0, 1.0] * 5, "classification"),
            (list(range(15)), "regression"),
            ([0.5, 1.5] * 5, "regression"),
            (["1.5", "2.5", "3.5"] * 5, "regression"),
        ],
    )
    def test_the_task_is_inferred(self, cells, task):
        assert Target.fit("y", pd.Series(cells)).task == task

    @pytest.mark.parametrize(
        "labels", [("-", "none"), (1, 5), (False, True), (0.0, 1.0), ("007", "8")]
    )
    def test_labels_keep_their_type(self, labels):
        cells = pd.Series([labels[0], labels[1], labels[1], labels[0]])
        target = Target.fit("y", cells)
        back = Target.from_dict(json.loads(json.dumps(target.to_dict())))
        assert [(label, type(label)) for label in back.labels] == [
            (label, type(label)) for label in labels
        ]
        codes = back.encode(cells)
        assert codes.tolist() == [0, 1, 1, 0]
        assert back.decode(np.eye(2)[codes]) == list(cells)

    def test_mixed_labels_are_texts(self):
        assert Target.fit("y", pd.Series([1, "a", 1, "a"], dtype=object)).labels == ("1", "a")

    def test_numbers_are_standardized_and_given_back(self):
        target = Target.fit("y", pd.Series([1.5, 2.0, 4.5, 1e6]))
        codes = target.encode(pd.Series([1.5, 2.0, 4.5, 1e6]))
        assert codes.shape == (4, 1)
        np.testing.assert_allclose([codes.mean(), codes.std()], [0, 1], atol=1e-6)
        np.testing.assert_allclose(target.decode(codes), [1.5, 2.0, 4.5, 1e6], rtol=1e-5, atol=0.1)

    @pytest.mark.parametrize(
        ("cells", "task", "message"),
        [
            (["a", None, "b"], None, "target 'y' is missing in row 1"),
            ([1.0, np.nan, 2.0], None, "target 'y' is missing in row"),
            ([1.5, np.inf, 2.0], None, "'y', row 1: 'inf' is infinite"),
            (["a", "a"], None, r"a single class \('a'\)"),
            ([2.5, 2.5], None, "always 2.5; there is nothing to predict"),
            (["a", "b", "c", "d"], None, "4 classes in 4 rows; is it an identifier"),
            (["a", "b", "a", "b"], "regression", r"holds text \(row 0: 'a'\), not numbers"),
            (["2024-01-01", "2024-01-02"], None, "is a date"),
        ],
    )
    def test_impossible_targets(self, cells, task, message):
        with pytest.raises(SennError, match=message):
            Target.fit("y", pd.Series(cells), task)

    def test_an_unknown_class_is_named(self):
        target = Target.fit("y", pd.Series(["a", "b", "a", "b"]))
        with pytest.raises(SennError, match="'y', row 0: class 'c' is unknown"):
            target.encode(pd.Series(["c"]))


class TestSplit:
    @settings(max_examples=60, deadline=None)
    @given(
        st.lists(st.integers(0, 4), min_size=6, max_size=60),
        st.floats(0.15, 0.85),
        st.integers(0, 9),
    )
    def test_parts_are_complete_disjoint_and_in_proportion(self, classes, fraction, seed):
        labels = np.array(classes)
        if (
            sum(min(np.sum(labels == c) * fraction, np.sum(labels == c) - 1) for c in set(classes))
            < 1
        ):
            return
        train, test = split(len(labels), fraction, seed, labels)
        assert sorted([*train, *test]) == list(range(len(labels)))
        for c in set(classes):
            count, held = int(np.sum(labels == c)), int(np.sum(labels[test] == c))
            assert held <= count - 1
            assert abs(held - min(count * fraction, count - 1)) < 1 + 1e-9

    def test_is_decided_by_the_seed(self):
        first, second, other = (split(50, 0.2, seed)[1].tolist() for seed in (3, 3, 4))
        assert first == second != other
        assert len(first) == 10

    @pytest.mark.parametrize("fraction", [0.0, 1.0, -1.0, float("nan")])
    def test_impossible_fractions(self, fraction):
        with pytest.raises(SennError, match="test fraction"):
            split(10, fraction)

    def test_too_few_rows(self):
        with pytest.raises(SennError, match="2 rows can't be split"):
            split(2, 0.2)
