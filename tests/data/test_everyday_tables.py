"""Tables and folders as people have them: odd containers and layouts, dates of many countries, marks for nothing."""

import datetime as dt
import gzip
import io
import zipfile

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from senn.data import TableEncoder, read_table
from senn.data.images import collect
from senn.data.tabular.cells import kind_of
from senn.data.tabular.date_cells import stamps_of
from senn.data.tabular.table_notes import placeholder_notes, target_notes
from senn.data.tabular.target import Target
from senn.errors import SennError

FRAME = pd.DataFrame(
    {"a": np.arange(8) / 4, "b": np.arange(8), "town": ["Ulm", "Bonn"] * 4}, index=range(1, 9)
)
CSV = FRAME.to_csv(index=False)


def read(tmp_path, content, name):
    data = content if isinstance(content, bytes) else content.encode()
    (tmp_path / name).write_bytes(data)
    return read_table(tmp_path / name)


def packed(content):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("inside.csv", content)
    return buffer.getvalue()


class TestNames:
    @pytest.mark.parametrize(
        ("name", "content"),
        [
            ("gzip.csv", gzip.compress(CSV.encode(), mtime=0)),
            ("zip.csv", packed(CSV)),
            ("text.zip", CSV),
            ("text.csv.gz", CSV),
            ("text.xls", CSV.replace(",", "\t")),
            ("text.xlsx", CSV),
            ("columns.json", FRAME.to_json()),
            ("indented.json", FRAME.to_json(indent=2)),
            ("split.json", FRAME.to_json(orient="split")),
        ],
    )
    def test_count_for_less_than_bytes(self, tmp_path, name, content):
        read_as = read(tmp_path, content, name).frame
        pd.testing.assert_frame_equal(read_as, FRAME, check_dtype=False)

    def test_of_binary_files_may_be_wrong(self, tmp_path):
        FRAME.to_parquet(tmp_path / "t.parquet", index=False)
        (tmp_path / "t.parquet").rename(tmp_path / "t.csv")
        assert read_table(tmp_path / "t.csv").frame.equals(FRAME)

    def test_a_header_may_begin_like_a_binary_file(self, tmp_path):
        assert read(tmp_path, CSV.replace("a", "PAR1", 1), "t.csv").frame.columns[0] == "PAR1"

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("page.xls", "<html><table>", "is no workbook but a page or XML"),
            ("cut.jsonl", '{"a": 1}\n{"a":', "can't be read as json"),
            ("open.json", '{"a": {"0": 1},', "can't be read as json"),
        ],
    )
    def test_of_damaged_files_are_refused(self, tmp_path, name, content, message):
        with pytest.raises(SennError, match=message):
            read(tmp_path, content, name)

    def test_images_in_an_archive_are_told_as_such(self, tmp_path):
        with zipfile.ZipFile(tmp_path / "t.zip", "w") as archive:
            archive.writestr("cat/1.jpg", b"")
            archive.writestr("dog/1.jpg", b"")
        with pytest.raises(SennError, match="holds images; unpack it"):
            read_table(tmp_path / "t.zip")

    def test_the_sheet_with_a_table_is_read(self, tmp_path):
        openpyxl = pytest.importorskip("openpyxl")
        book = openpyxl.Workbook()
        book.active["A1"], book.active["A2"] = "About this file", "made in 2020"
        sheet = book.create_sheet("Data")
        for row in (FRAME.columns, *FRAME.to_numpy().tolist()):
            sheet.append([*row])
        book.save(tmp_path / "t.xlsx")
        table = read_table(tmp_path / "t.xlsx")
        assert [*table.frame.columns] == [*FRAME.columns]
        assert table.notes[0].startswith("of 2 sheets 'Data' is read")


class TestLayouts:
    @pytest.mark.parametrize(
        ("text", "rule"),
        [
            (CSV.replace(",", " | "), "---|:--:|---:"),
            (CSV.replace(",", " | "), "---+----+-----"),
            (CSV, "===,===,==="),
        ],
    )
    def test_a_rule_below_the_header_is_no_row(self, tmp_path, text, rule):
        lines = text.splitlines()
        found = read(tmp_path, "\n".join([lines[0], rule, *lines[1:], ""]), "t.txt")
        pd.testing.assert_frame_equal(found.frame, FRAME, check_dtype=False)

    def test_a_first_column_without_a_name_gets_one(self, tmp_path):
        cars = FRAME.set_index(pd.Index([f"Mazda {at % 3}" for at in range(8)]))
        table = read(tmp_path, cars.to_csv(), "t.csv")
        assert [*table.frame.columns] == ["column 1", *FRAME.columns]
        assert table.notes == ["the first column has no name, and is called 'column 1'"]
        numbered = read(tmp_path, FRAME.to_csv(), "t.csv")
        assert [*numbered.frame.columns] == [*FRAME.columns]
        assert numbered.notes == []


def write_images(folder):
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True)
        for at in range(4):
            Image.fromarray(np.full((8, 8, 3), at, np.uint8)).save(folder / name / f"{at}.png")


class TestFolders:
    def test_in_one_another_are_followed_to_the_classes(self, tmp_path):
        write_images(tmp_path / "set" / "data" / "images")
        (tmp_path / "set" / "__MACOSX").mkdir()
        found = collect(str(tmp_path / "set"))
        assert found.classes == ("cat", "dog")
        assert found.name == "set"
        assert "those in 'data/images'" in found.notes[0]

    def test_a_link_to_itself_is_not(self, tmp_path):
        (tmp_path / "set").mkdir()
        (tmp_path / "set" / "loop").symlink_to(tmp_path / "set")
        with pytest.raises(SennError, match="holds a single class"):
            collect(str(tmp_path / "set"))


TIMES = [dt.datetime(2019, 1, 3, 4, 5) + dt.timedelta(days=17 * at) for at in range(30)]
MONTHS = {
    "German": "Januar Februar März April Mai Juni Juli August September Oktober November Dezember",
    "French": "janv. févr. mars avr. mai juin juil. août sept. oct. nov. déc.",
    "Spanish": "enero febrero marzo abril mayo junio julio agosto septiembre octubre noviembre diciembre",
    "press": "Jan. Feb. March April May June July Aug. Sept. Oct. Nov. Dec.",
}


def month(time, language):
    return MONTHS[language].split()[time.month - 1]


class TestDates:
    @pytest.mark.parametrize(
        "write",
        [
            lambda time: f"{time.day}. {month(time, 'German')} {time.year}",
            lambda time: f"{time.day} {month(time, 'French')} {time.year}",
            lambda time: f"{time.day} de {month(time, 'Spanish')} de {time.year}",
            lambda time: f"{month(time, 'press')} {time.day}, {time.year}",
            lambda time: f"{time:%d-%m-%y}",
            lambda time: f"{time:%Y年%m月%d日}",
            lambda time: f"{time:%d.%m. %Y}",
        ],
        ids=["German", "French", "Spanish", "press", "dashes", "Japanese", "Czech"],
    )
    def test_of_many_countries_are_read(self, write):
        cells = pd.Series([write(time) for time in TIMES], dtype=object)
        found = kind_of("t", cells)
        assert found.kind == "date"
        stamps = stamps_of(cells, np.ones(len(cells), bool), found.form)
        assert [*stamps.dt.date] == [time.date() for time in TIMES]

    @pytest.mark.parametrize(
        "cells",
        [
            ["1 days 02:03:04", "0 days 00:00:30.000000"],
            ["1 day, 2:03:04", "0:00:30"],
            ["P1DT2H3M4S", "PT30S"],
            ["1d 2h 3min 4s", "30 sec"],
        ],
    )
    def test_spans_of_time_are_in_order(self, cells):
        found = kind_of("t", pd.Series(cells * 4, dtype=object))
        stamps = stamps_of(pd.Series(cells), np.ones(2, bool), found.form)
        assert [*(stamps - pd.Timestamp(0, tz="UTC")).dt.total_seconds()] == [93_784, 30]

    def test_what_is_not_read_is_not_called_an_identifier(self):
        mixed = [f"{time:%Y-%m-%d}" if time.day % 2 else f"{time:%d.%m.%Y}" for time in TIMES]
        limits = [f"{at}.5" if at % 3 else f"<{at}" for at in range(30)]
        frame = pd.DataFrame({"d": mixed, "n": limits, "x": range(30), "y": [0, 1] * 15})
        notes = {one.name: one.note for one in TableEncoder.fit(frame, "y").columns}
        assert "dates in no form that all of them have" in notes["d"]
        assert "numbers in about 67% of its rows and other texts such as '<0'" in notes["n"]


class TestMarks:
    @pytest.mark.parametrize("mark", ["n.d.", "Unknown", "\\N", "(null)", "*", "—", "no data"])
    def test_for_nothing_leave_a_column_of_numbers(self, mark):
        found = kind_of("a", pd.Series(["1.5", mark, "2", mark] * 5, dtype=object))
        assert found.kind == "number"

    def test_zero_dates_are_missing(self):
        cells = pd.Series(["2020-01-31", "0000-00-00", "2020-02-01", "0000-00-00 00:00:00"] * 5)
        assert kind_of("t", cells.astype(object)).kind == "date"

    def test_that_are_numbers_are_pointed_out(self):
        frame = pd.DataFrame(
            {
                "a": [*np.linspace(0, 1, 30), *[-999] * 6],
                "b": [*range(30), *[40] * 6],
                "c": [99, *range(35)],
                "t": [*(f"{time:%Y-%m-%d}" for time in TIMES), *["9999-12-31"] * 6],
                "y": [0, 1] * 18,
            }
        )
        notes = placeholder_notes(TableEncoder.fit(frame, "y"), frame)
        assert [note.partition(":")[0] for note in notes] == [
            "column 'a' has -999 in 17% of the rows, far from all others",
            "column 't' has 9999-12-31 in 17% of the rows, far from all others",
        ]

    def test_of_accents_make_classes_that_look_alike(self):
        target = Target.fit("y", pd.Series(["\u00e9t\u00e9", "e\u0301te\u0301", "mer"] * 4))
        assert (
            "differ only in capitals, blanks or marks" in target_notes(target, is_inferred=True)[0]
        )


def test_dates_far_from_those_of_training_are_told():
    frame = pd.DataFrame({"t": [f"{time:%d.%m.%Y}" for time in TIMES], "y": [0, 1] * 15})
    encoder = TableEncoder.fit(frame, "y")
    later = pd.DataFrame({"t": ["03.01.2019", "01.01.2390"]})
    (told,) = encoder.surprises(later)
    assert "1 of 2 cells lie far from the dates of training, the first being '01.01.2390'" in told
    assert encoder.surprises(frame) == []
