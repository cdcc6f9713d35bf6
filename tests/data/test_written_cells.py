"""Numbers, dates, words and labels as people write them."""

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from senn.data import TableEncoder, Target
from senn.data.tabular.cell_texts import finder
from senn.data.tabular.cells import numbers
from senn.data.tabular.number_style import NumberStyle
from senn.data.tabular.target import labeled
from senn.data.tabular.written_numbers import written_number
from senn.errors import SennError


def fit(cells, kind=None, decimal=None):
    """Fit one column beside a target of two classes."""
    frame = pd.DataFrame({"a": pd.Series(cells, dtype=object), "y": [0, 1] * (len(cells) // 2)})
    frame = frame.set_axis(range(1, len(cells) + 1))
    kinds = {"a": kind} if kind else None
    return TableEncoder.fit(frame, "y", kinds=kinds, decimal=decimal)


def numbers_of(cells, decimal=None):
    """The numbers as which a column of texts is read, and its note."""
    encoder = fit(cells, decimal=decimal)
    (column,) = encoder.columns
    assert column.kind == "number", column
    return numbers("a", pd.Series(cells, dtype=object), column.style).tolist(), column.note


class TestNumbers:
    @pytest.mark.parametrize(
        ("cells", "values"),
        [
            (["$4,211.54", "$99", "-$5.50", "$(1,000)"], [4211.54, 99, -5.5, -1000]),
            (["$ 5.00", "$ -", "$ 1,000.00", "$ (2.00)"], [5, 0, 1000, -2]),
            (["6,224e+00", "1,5e1", "2,25", "1"], [6.224, 15, 2.25, 1]),
            (["12.5%", "3%", "0 %", "-1.5%"], [12.5, 3, 0, -1.5]),
            (["(987.65)", "12.1", "(3)", "5-"], [-987.65, 12.1, -3, -5]),
            (["1,234", "567", "12,345,678", "8"], [1234, 567, 12345678, 8]),
            (["12,34,567", "1,234", "5", "6"], [1234567, 1234, 5, 6]),
            (["0,13", "1,5", "-2,25", "7"], [0.13, 1.5, -2.25, 7]),
            (["1.234,5", "99", "1,5", "2"], [1234.5, 99, 1.5, 2]),
            (["1 234,5", "22", "1\u00a0000,25", "3"], [1234.5, 22, 1000.25, 3]),
            (["1'234.50", "1", "2\u2019000", "3"], [1234.5, 1, 2000, 3]),
            (["€ 1.234,50", "€ 99", "10 €", "€7"], [1234.5, 99, 10, 7]),
            (["5 kg", "70 kg", "3.5kg", "8 kg"], [5, 70, 3.5, 8]),
            (["36 months", "1 month", "2 months", "3 months"], [36, 1, 2, 3]),
            (["5 MB", "3 GB", "700 kB", "1 MB"], [5e6, 3e9, 7e5, 1e6]),
            (["1.2M", "350K", "99", "2.5K"], [1.2e6, 350e3, 99, 2500]),
            (["\u22125", "3", "\u22121.5", "2"], [-5, 3, -1.5, 2]),
            (["USD 5", "USD 6.5", "7 USD", "8"], [5, 6.5, 7, 8]),
        ],
        ids=lambda cells: cells[0] if isinstance(cells[0], str) else "",
    )
    def test_are_read_with_a_note(self, cells, values):
        found, note = numbers_of(cells)
        assert found == values
        assert note.startswith("is read as numbers")

    def test_numbers_as_computers_write_them_need_no_note(self):
        assert numbers_of(["1.5", "-2e3", " 3", ".5"]) == ([1.5, -2000, 3, 0.5], "")

    def test_an_ambiguous_comma_names_the_way_out(self):
        values, note = numbers_of(["1,250", "2,300", "3,100", "4,000"])
        assert values == [1250, 2300, 3100, 4000]
        assert "'--decimal ,' reads '1,250' otherwise" in note
        assert numbers_of(["1,250", "2,300", "3,100", "4,000"], ",")[0] == [1.25, 2.3, 3.1, 4]
        assert numbers_of(["1.250", "2.300", "3.100", "4.000"], ",")[0] == [1250, 2300, 3100, 4000]

    @pytest.mark.parametrize(
        ("cells", "note"),
        [
            (["5 kg", "300 g"] * 20, "holds numbers in several units ('g', 'kg')"),
            (["1,5", "2.5"] * 20, "writes some numbers with a decimal comma and some with a point"),
            (
                [*["5 stars", "4 stars"] * 10, "plenty", "none yet"],
                "and other texts such as 'plenty'",
            ),
        ],
    )
    def test_what_cannot_be_compared_says_why(self, cells, note):
        encoder = fit(cells)
        assert encoder.columns[0].kind == "category"
        assert note in encoder.columns[0].note
        with pytest.raises(SennError, match="column 'a'"):
            fit(cells, kind="number")

    def test_units_of_many_different_numbers_are_no_identifier(self):
        cells = [f"{at} {'kg' if at % 2 else 'g'}" for at in range(60)]
        frame = pd.DataFrame({"a": cells, "b": range(60), "y": [0, 1] * 30})
        (note,) = TableEncoder.fit(frame, "y").notes
        assert "several units" in note
        assert "identifier" not in note

    @pytest.mark.parametrize(
        ("cells", "message"),
        [
            (["$1", "$2", "$3", "$4", "$5", "free"], "1 of 6 rows, the first being row 6: 'free'"),
            (["5%", "6%", "7%", "0.08"], "writes numbers with '%' except in 1 of 4 rows.*'0.08'"),
        ],
    )
    def test_a_few_others_are_refused_by_row(self, cells, message):
        with pytest.raises(SennError, match=message):
            fit(cells)

    @pytest.mark.parametrize(
        "cells",
        [
            ["12 Main St", "14 Elm Rd", "1 Oak Av", "2 Low Ln", "3 Kay Sq", "9 Zoo Dr"],
            ["A1", "A2", "A3", "A4"],
            ["1/2", "3/4", "1/4", "2/3"],
            ["1.2.3", "1.2.4", "2.0.0", "1.0.0"],
            ["1_000", "2_000", "3_000", "4_000"],
            ["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4"],
        ],
        ids=lambda cells: cells[0],
    )
    def test_other_texts_stay_categories(self, cells):
        assert fit(cells).columns[0].kind == "category"

    @settings(max_examples=60, deadline=None)
    @given(st.integers(-(10**9), 10**9), st.integers(0, 99), st.sampled_from([".", ","]))
    def test_grouping_and_marks_change_nothing(self, whole, cents, mark):
        text = f"{whole:,}.{cents:02}"
        if mark == ",":
            text = text.translate(str.maketrans(".,", ",."))
        value, unit, scale = written_number(text, mark)
        assert (unit, scale) == ("", "")
        assert value == float(f"{whole}.{cents:02}")

    def test_a_table_written_otherwise_is_read_and_told(self):
        encoder = fit(["1.5", "2.5", "3.5", "4.5"])
        late = pd.DataFrame({"a": ["1,5", "2,5"]})
        assert encoder.surprises(late) == [
            "column 'a': 2 of 2 cells are written with a decimal comma, the first being '1,5', as no cell in training"
        ]
        again = encoder.transform(pd.DataFrame({"a": [1.5, 2.5]}))
        assert encoder.transform(late).tolist() == again.tolist()

    def test_other_units_are_refused_and_missing_ones_told(self):
        encoder = fit(["5 kg", "6 kg", "7 kg", "8 kg"])
        with pytest.raises(
            SennError, match="row 0: '300 g' is in 'g', where the training table has 'kg'"
        ):
            encoder.transform(pd.DataFrame({"a": ["300 g", "5 kg"]}))
        assert (
            "1 of 2 cells lack the unit 'kg', the first being '6'"
            in encoder.surprises(pd.DataFrame({"a": ["5 kg", "6"]}))[0]
        )

    def test_leading_zeros_are_kept_or_noted(self):
        codes = [f"0{at % 4}23" for at in range(40)]
        frame = pd.DataFrame({"a": codes, "y": [0, 1] * 20})
        encoder = TableEncoder.fit(frame, "y")
        assert encoder.features[0] == "a=0023"
        assert "leading zeros" in encoder.notes[0]
        frame["a"] = [f"{at:05}" for at in range(40)]
        encoder = TableEncoder.fit(frame, "y")
        assert encoder.columns[0].kind == "number"
        assert "'--column a=category'" in encoder.notes[0]

    def test_the_style_is_kept(self):
        encoder = fit(["1,5 €", "2,5 €", "3,5 €", "-4 €"])
        again = TableEncoder.from_dict(json.loads(json.dumps(encoder.to_dict())))
        assert again == encoder
        assert again.columns[0].style == NumberStyle(decimal=",", unit="€")

    def test_records_of_former_versions_have_none(self):
        record = fit(["1.5", "2.5", "3.5", "4.5"]).to_dict()
        for name in ("style", "note"):
            del record["target"][name]
        del record["columns"][0]["style"], record["decimal"], record["encoding"]
        assert TableEncoder.from_dict(record).columns[0].style == NumberStyle()


class TestDates:
    STAMPS = pd.date_range("2020-01-05", periods=60, freq="31h")

    @pytest.mark.parametrize(
        "form",
        [
            "%m/%d/%Y %I:%M %p",
            "%a, %d %b %Y %H:%M:%S GMT",
            "%Y-%m-%d %H:%M:%S UTC",
            "%a %b %d %H:%M:%S UTC %Y",
            "%d %b %Y %H:%M:%S +0000",
            "%d/%b/%Y:%H:%M:%S +0000",
            "%d.%m.%y %H:%M",
            "%A, %d %B %Y %H:%M",
            "%B %d, %Y %H:%M",
            "%Y%m%dT%H%M%S",
            "%Y.%m.%d %H:%M",
            "%b %d %Y %I:%M%p",
            "%d%b%Y:%H:%M:%S",
            "%d-%b-%y %I.%M.%S.000000 %p",
            "%Y-%m-%dT%H:%M:%S+00:00[Europe/London]",
            "%Y%m%d%H%M%S",
        ],
    )
    def test_are_points_in_time(self, form):
        frame = pd.DataFrame({"a": self.STAMPS.strftime(form), "y": [0, 1] * 30})
        encoder = TableEncoder.fit(frame, "y")
        wanted = TableEncoder.fit(frame.assign(a=self.STAMPS), "y").transform(
            frame.assign(a=self.STAMPS)
        )
        np.testing.assert_allclose(encoder.transform(frame), wanted, atol=1e-6)

    @pytest.mark.parametrize(
        "form", ["%Y-%m", "%Y-%j", "%YM%m", "%b %Y", "%m/%Y", "%Y%m%d", "%G-W%V", "%d-%b-%y"]
    )
    def test_days_weeks_and_months_are_in_order(self, form):
        frame = pd.DataFrame({"a": self.STAMPS.strftime(form), "y": [0, 1] * 30})
        encoder = TableEncoder.fit(frame, "y")
        assert encoder.columns[0].kind == "date"
        assert (np.diff(encoder.transform(frame)[:, 0]) >= 0).all()

    def test_quarters_are_their_first_days(self):
        cells = [f"{2020 + at // 4}-Q{at % 4 + 1}" for at in range(12)]
        frame = pd.DataFrame({"a": cells, "y": [0, 1] * 6})
        encoder = TableEncoder.fit(frame, "y")
        assert encoder.columns[0].median == (pd.Timestamp("2021-04-01") - pd.Timestamp(0)).days

    def test_half_years_and_elapsed_times_are_in_order(self):
        halves = [f"{2020 + at // 2}-H{at % 2 + 1}" for at in range(12)]
        elapsed = [f"{20 * at}:30" for at in range(12)]
        frame = pd.DataFrame({"a": halves, "b": elapsed, "y": [0, 1] * 6})
        encoder = TableEncoder.fit(frame, "y")
        assert encoder.features[-1] == "b days"
        x = encoder.transform(frame)
        assert (np.diff(x[:, 0]) > 0).all()
        assert (np.diff(x[:, -1]) > 0).all()

    def test_times_of_the_day_lie_on_a_circle(self):
        frame = pd.DataFrame({"a": ["00:00", "06:00", "12:00", "18:00"], "y": [0, 1, 0, 1]})
        encoder = TableEncoder.fit(frame, "y")
        assert encoder.features == ["a days", "a hour sine", "a hour cosine"]
        np.testing.assert_allclose(encoder.transform(frame)[:, 1], [0, 1, 0, -1], atol=1e-6)

    def test_zones_in_letters_count(self):
        cells = [
            "2020-01-05 12:00 CET",
            "2020-07-05 13:00 CEST",
            "2020-08-05 13:00 CEST",
            "2020-01-06 12:00 CET",
        ]
        frame = pd.DataFrame({"a": cells, "y": [0, 1, 0, 1]})
        utc = [f"{cell[:10]} 11:00" for cell in cells]
        wanted = TableEncoder.fit(frame.assign(a=utc), "y").transform(frame.assign(a=utc))
        assert np.array_equal(TableEncoder.fit(frame, "y").transform(frame), wanted)
        cells[1] = "2020-07-05 13:00 XYZ"
        with pytest.raises(SennError, match=r"not a date|holds no dates"):
            TableEncoder.fit(frame.assign(a=cells), "y", kinds={"a": "date"})

    @pytest.mark.parametrize(
        ("values", "first"),
        [
            ([1577836800 + 86400 * at for at in range(8)], 18262),
            ([43831 + at for at in range(8)], 18262),
        ],
        ids=["seconds since 1970", "days of Excel"],
    )
    def test_numbers_are_dates_on_request(self, values, first):
        frame = pd.DataFrame({"a": values, "y": [0, 1] * 4})
        assert TableEncoder.fit(frame, "y").columns[0].kind == "number"
        assert TableEncoder.fit(frame, "y", kinds={"a": "date"}).columns[0].median == first + 3

    def test_days_of_the_year_are_told_from_numbers_that_are_counted_in_each_year(self):
        frame = pd.DataFrame({"a": [f"2020-{at:03}" for at in range(1, 61)], "y": [0, 1] * 30})
        encoder = TableEncoder.fit(frame, "y")
        assert encoder.notes == ["column 'a' is read as days of the year, '2020-001' as 2020-01-01"]
        assert encoder.columns[0].median == (pd.Timestamp("2020-01-30") - pd.Timestamp(0)).days
        frame.loc[59, "a"] = "2020-367"
        with pytest.raises(SennError, match="looks like an identifier"):
            TableEncoder.fit(frame, "y")

    def test_dates_of_which_some_have_a_zone_are_told(self):
        cells = [f"2020-01-{at:02}T06:00:00" + "+02:00" * (at % 2) for at in range(1, 21)]
        encoder = TableEncoder.fit(pd.DataFrame({"a": cells, "y": [0, 1] * 10}), "y")
        assert "names no zone in 10 of 20 cells, which count as UTC" in encoder.notes[0]

    def test_amounts_of_eight_digits_are_numbers(self):
        frame = pd.DataFrame({"a": [20200000 + 137 * at for at in range(20)], "y": [0, 1] * 10})
        assert TableEncoder.fit(frame, "y").columns[0].kind == "number"


@pytest.mark.parametrize("form", ["{}/7", "{}:5", "{}-90", "{} to 99", ">{}k", "{}x4", "({}, 3)"])
def test_texts_that_are_nearly_numbers_are_named(form):
    few = fit([form.format(at % 5) for at in range(100)])
    first = form.format(0)
    assert f"{first!r} is neither a number nor a date" in few.notes[0]
    with pytest.raises(SennError, match=r"read neither as a number nor as a date|holds fractions"):
        fit([form.format(at) for at in range(100)])


def test_whole_numbers_that_are_rounded_are_told():
    note = "column 'a' has whole numbers such as '9007199254740993', of which the first 16 digits count"
    assert fit([2**53 + at for at in range(40)]).notes == [note]
    assert fit([2**53 + 2 * at for at in range(40)]).notes == []


class TestWords:
    def test_whole_numbers_are_found_as_fractions(self):
        find = finder(["1", "2", "30"])
        assert [find(text) for text in ("2", " 2 ", "2.0", "2.00", "30.0", "02", "2.5", "x")] == [
            *[1] * 4,
            2,
            *[None] * 3,
        ]
        assert finder(["3", "3.1"])("3.0") is None
        assert finder(["2.0", "3.0"])("3") == 1

    def test_blanks_around_a_category_make_no_other(self):
        encoder = fit([" Ulm", "Bonn ", "Ulm", "Bonn"])
        assert encoder.features == ["a=Bonn", "a=Ulm"]

    def test_unseen_categories_and_empty_cells_are_told(self):
        encoder = fit(["Ulm", "Bonn", "Ulm", "Bonn"])
        new = pd.DataFrame({"a": ["Ulm", "Rome", None, "Oslo", "NA"]})
        assert encoder.surprises(new) == [
            "column 'a': 2 of 5 cells are empty, as no cell in training",
            "column 'a': 2 of 5 cells were never seen in training, the first being 'Rome'",
        ]
        assert encoder.surprises(new.head(1)) == []

    def test_rare_categories_were_seen(self):
        encoder = fit(["x"] * 600 + ["y"] * 390 + [f"rare{at}" for at in range(10)])
        told = encoder.surprises(pd.DataFrame({"a": ["rare3", "x", "new"]}))
        assert told == [
            "column 'a': 1 of 3 cells were never seen in training, the first being 'new'"
        ]

    def test_sentences_are_named_as_text(self):
        cells = [f"this is sentence number {at} of them" for at in range(40)]
        frame = pd.DataFrame({"a": cells, "b": range(40), "y": [0, 1] * 20})
        assert "holds text, which isn't read" in TableEncoder.fit(frame, "y").notes[0]

    def test_truth_values_in_any_case(self):
        assert fit(["TRUE", "FALSE", "true", None]).columns[0].kind == "boolean"


class TestLabels:
    @pytest.mark.parametrize("labels", [("DE", "NA", "ZA"), ("Mild", "None"), ("n/a", "yes")])
    def test_words_for_nothing_may_be_classes(self, labels):
        target = Target.fit("y", pd.Series(list(labels) * 4))
        assert target.labels == tuple(sorted(labels))
        assert "leave a cell empty where the class is unknown" in target.note

    def test_they_are_missing_among_numbers(self):
        frame = pd.DataFrame({"y": ["1.5", "NA", "2.5", "3.5", "?", "4"]}, index=range(1, 7))
        kept, notes = labeled(frame, "y")
        assert kept.index.tolist() == [1, 3, 4, 6]
        assert notes == ["2 of 6 rows without a 'y' are left out"]
        kept, _ = labeled(pd.DataFrame({"y": [1.0, None, 0.0, 1.0, 0.0]}), "y")
        assert Target.fit("y", kept["y"]).labels == (0, 1)

    def test_hardly_any_label_is_refused(self):
        frame = pd.DataFrame({"y": ["a", "b", "a"] + [None] * 297}, index=range(1, 301))
        with pytest.raises(SennError, match="missing in 297 of 300 rows, the first being row 4"):
            labeled(frame, "y")

    def test_amounts_are_a_regression_and_come_back_in_their_unit(self):
        cells = pd.Series([f"${1000 + 37 * at:,}.50" for at in range(40)])
        target = Target.fit("y", cells)
        assert (target.task, target.style.unit) == ("regression", "$")
        assert target.decode(target.encode(cells))[0] == pytest.approx(1000.5, rel=1e-4)
        again = Target.from_dict(json.loads(json.dumps(target.to_dict())))
        assert again.encode(cells).tolist() == target.encode(cells).tolist()

    def test_labels_come_back_as_they_are_written(self):
        target = Target.fit("y", pd.Series(["TRUE", "FALSE", "TRUE", "FALSE"]))
        assert target.labels == ("FALSE", "TRUE")
        former = Target(name="y", task="classification", labels=(False, True))
        assert former.encode(pd.Series(["TRUE", "false", "True"])).tolist() == [1, 0, 1]


def test_long_texts_are_categories_in_no_time_and_fractions_stay_their_own():
    digits = "1" * 300_000
    find = finder([digits, "1.02", "12"])
    assert [find(text) for text in (digits, "1.02", "12", "12.0")] == [0, 1, 2, None]
