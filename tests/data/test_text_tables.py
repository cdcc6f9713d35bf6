"""Tables as programs write them: encodings, what stands around the rows, containers, standard input."""

import gzip
import io
import os
import sys
import zipfile

import numpy as np
import pandas as pd
import pytest

from senn.data import read_table
from senn.data.tabular import containers, readers
from senn.errors import SennError

PLAIN = "a,b,town\n" + "".join(f"{at},{at / 2},{'Ulm' if at % 2 else 'Köln'}\n" for at in range(8))


def read(tmp_path, content, name="t.csv", **options):
    data = content if isinstance(content, bytes) else content.encode()
    (tmp_path / name).write_bytes(data)
    return read_table(tmp_path / name, **options)


@pytest.fixture
def plain(tmp_path):
    return read(tmp_path, PLAIN, "plain.csv").frame


class TestEncodings:
    @pytest.mark.parametrize(
        "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"]
    )
    def test_of_unicode_need_no_word(self, tmp_path, plain, encoding):
        table = read(tmp_path, PLAIN.encode(encoding))
        assert table.frame.equals(plain)
        assert table.notes == []

    def test_windows_is_noted(self, tmp_path, plain):
        table = read(tmp_path, PLAIN.encode("latin-1"))
        assert table.frame.equals(plain)
        assert "Windows-1252; --encoding names another" in table.notes[0]
        assert read(tmp_path, PLAIN.encode("latin-1"), encoding="latin-1").notes == []

    def test_a_named_one_is_believed_unless_a_mark_says_otherwise(self, tmp_path, plain):
        assert read(tmp_path, PLAIN.encode("cp437"), encoding="cp437").frame.equals(plain)
        assert read(tmp_path, PLAIN.encode("utf-16"), encoding="latin-1").frame.equals(plain)

    @pytest.mark.parametrize(
        ("content", "encoding", "message"),
        [
            (PLAIN.encode(), "no-such", "there is no encoding 'no-such'"),
            (PLAIN.encode("latin-1"), "ascii", "isn't text in the encoding that --encoding names"),
            (b"a,b\n1,\x00\x01\x02", None, "holds bytes that are no text"),
            (
                b"a,b\n1,\x81\x05\n",
                None,
                "neither in UTF-8 nor in another encoding that can be told; name its encoding with",
            ),
        ],
    )
    def test_others_are_refused(self, tmp_path, content, encoding, message):
        with pytest.raises(SennError, match=message):
            read(tmp_path, content, encoding=encoding)


class TestFurniture:
    @pytest.mark.parametrize(
        ("change", "notes"),
        [
            (lambda text: "sep=;\n" + text.replace(",", ";"), 0),
            (lambda text: '"sep=;"\r\n' + text.replace(",", ";"), 0),
            (lambda text: text.replace("\n", ",\n"), 0),
            (lambda text: text.replace("\n", ",,\n"), 0),
            (lambda text: text.replace(",", " , "), 0),
            (lambda text: text.replace("\n", "\n\n"), 0),
            (lambda text: "\n\n" + text, 0),
            (lambda text: text.replace("\n", "\r\n"), 0),
            (lambda text: text.replace("\n", "\r"), 0),
            (lambda text: text + ",,\n,,\n", 1),
            (lambda text: "Towns of 2024\n\n" + text, 1),
            (lambda text: "Towns of 2024,,\nall of them,,\n" + text, 1),
            (lambda text: "# made by a program\n" + text, 1),
            (lambda text: "Report,,\nMade on,2024-01-01,\n,,\n" + text, 1),
            (lambda text: text + "Total,14,\n", 1),
            (lambda text: text + ",,\nTotal:,14\n", 2),
            (lambda text: text + "\nSource: the town halls\n", 1),
            (lambda text: text + "(8 rows)\n", 1),
            (lambda text: "# " + text, 0),
        ],
    )
    def test_is_left_out(self, tmp_path, plain, change, notes):
        table = read(tmp_path, change(PLAIN))
        assert table.frame.equals(plain)
        assert len(table.notes) == notes

    def test_rows_keep_their_numbers(self, tmp_path):
        table = read(tmp_path, "a,b\n1,2\n,\n3,4\n")
        assert table.frame.index.tolist() == [1, 3]
        assert table.notes == ["1 line without any cell is left out"]

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("a\n1,2\n3,4\n", "line 2 of .* has 2 cells where the header has 1"),
            ("a,b\n1,2\n3,4\nUlm\n", "line 4 of .* has 1 cells"),
            ("a,b,c\n1,2,3\nTotal,3\n4,5,6\n", "line 3 of .* has 2 cells"),
            ("a,b\n1,2,x\n3,4,y\n", "line 2 of .* has 3 cells"),
            ("a,b,,d\n1,2,3,4\n", "column 3 of .* has no name"),
            ("a,b, a\n1,2,3\n", "two columns named 'a'"),
        ],
    )
    def test_what_may_be_a_damaged_row_is_refused(self, tmp_path, content, message):
        with pytest.raises(SennError, match=message):
            read(tmp_path, content)

    def test_a_class_called_total_stays(self, tmp_path):
        text = "kind,a\n" + "".join(f"{'total' if at % 2 else 'part'},{at}\n" for at in range(40))
        assert len(read(tmp_path, text).frame) == 40


class TestHeaders:
    def test_data_without_one_get_numbers(self, tmp_path):
        table = read(tmp_path, "5.1,3.5,setosa\n4.9,3.0,setosa\n", "iris.data")
        assert list(table.frame) == ["column 1", "column 2", "column 3"]
        assert len(table.frame) == 2
        assert "the first line is data" in table.notes[0]

    @pytest.mark.parametrize("header", ["0,1,2", "name,1990,1991", "a,b,1.5x"])
    def test_numbers_may_be_names(self, tmp_path, header):
        assert list(read(tmp_path, f"{header}\n7,8,9\n3,3,3\n").frame) == header.split(",")


class TestSeparators:
    @pytest.mark.parametrize(
        ("mark", "name"),
        [("\t", "t.txt"), (";", "t.data"), ("|", "t.csv"), ("   ", "t.dat"), ("\t", "t.tab")],
    )
    def test_are_found(self, tmp_path, plain, mark, name):
        assert read(tmp_path, PLAIN.replace(",", mark), name).frame.equals(plain)

    def test_row_numbers_of_r_need_no_name(self, tmp_path, plain):
        lines = [
            '"a" "b" "town"',
            *(f'"{row}" {a} {b} "{c}"' for row, a, b, c in plain.itertuples()),
        ]
        assert read(tmp_path, "\n".join(lines), "t.txt").frame.equals(plain)

    def test_a_decimal_comma_is_none(self, tmp_path):
        table = read(tmp_path, "a;b\n" + "1,5;2,25\n0,5;3,1\n" * 4)
        assert list(table.frame) == ["a", "b"]
        assert table.decimal == ","
        assert table.frame["a"].tolist()[:2] == ["1,5", "0,5"]

    def test_points_may_be_thousands_after_a_comma(self, tmp_path):
        table = read(tmp_path, "a;b\n1,5;1.250\n2,5;2.300\n")
        assert table.frame["b"].tolist() == ["1.250", "2.300"]

    def test_what_may_be_either_between_semicolons_is_asked_for(self, tmp_path):
        text = "a;b\n1,250;x\n2,300;y\n"
        with pytest.raises(
            SennError, match=r"'1,250', which may be 1250 or 1\.250: say which with --decimal"
        ):
            read(tmp_path, text)
        assert read(tmp_path, text, decimal=",").decimal == ","


class TestContainers:
    @pytest.mark.parametrize("name", ["t.csv.gz", "t.csv.bz2", "t.csv.xz", "t.zip", "t.gz"])
    def test_are_unpacked(self, tmp_path, plain, name):
        path = tmp_path / name
        if name == "t.zip":
            with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
                archive.writestr("folder/t.csv", PLAIN)
                archive.writestr("__MACOSX/folder/._t.csv", "x")
                archive.writestr("README.txt", "about it")
        elif name == "t.gz":
            path.write_bytes(gzip.compress(PLAIN.encode()))
        else:
            pd.read_csv(io.StringIO(PLAIN)).to_csv(path, index=False)
        table = read_table(path)
        assert table.frame.equals(plain)
        assert table.name == "t"

    @pytest.mark.parametrize(
        "name", ["t.feather", "t.jsonl", "t.json", "t.dta", "t.parquet", "t.arrow"]
    )
    def test_of_programs_hold_the_same(self, tmp_path, plain, name):
        path = tmp_path / name
        write = {
            "t.feather": plain.reset_index(drop=True).to_feather,
            "t.arrow": plain.reset_index(drop=True).to_feather,
            "t.jsonl": lambda to: plain.to_json(to, orient="records", lines=True),
            "t.json": lambda to: plain.to_json(to, orient="records"),
            "t.dta": lambda to: plain.to_stata(to, write_index=False, version=118),
            "t.parquet": plain.to_parquet,
        }[name]
        write(path)
        assert read_table(path).frame.to_dict("list") == plain.to_dict("list")

    def test_excel_names_its_extra_or_holds_the_same(self, tmp_path, plain):
        try:
            plain.to_excel(tmp_path / "t.xlsx", index=False)
        except ImportError:
            with zipfile.ZipFile(tmp_path / "t.xlsx", "w") as archive:
                archive.writestr("[Content_Types].xml", "")
                archive.writestr("xl/workbook.xml", "")
            with pytest.raises(SennError, match=r"'openpyxl', .*: pip install 'senn\[excel\]'"):
                read_table(tmp_path / "t.xlsx")
        else:
            assert read_table(tmp_path / "t.xlsx").frame.to_dict("list") == plain.to_dict("list")

    @pytest.mark.parametrize("pack", ["csv", "gz", "parquet", "jsonl"])
    def test_standard_input_is_known_by_its_bytes(self, monkeypatch, plain, pack):
        rows = plain.reset_index(drop=True)
        content = {
            "csv": PLAIN.encode,
            "gz": lambda: gzip.compress(PLAIN.encode()),
            "parquet": rows.to_parquet,
            "jsonl": lambda: rows.to_json(orient="records", lines=True).encode(),
        }[pack]()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
        table = read_table("-")
        assert table.frame.to_dict("list") == plain.to_dict("list")
        assert table.name == "stdin"


class TestLimits:
    def test_what_is_no_file_is_refused(self, tmp_path):
        os.mkfifo(tmp_path / "pipe.csv")
        (tmp_path / "zero.csv").symlink_to("/dev/zero")
        for name in ("pipe.csv", "zero.csv"):
            with pytest.raises(
                SennError, match=r"is not a file, so it may never end; .* write '-'"
            ):
                read_table(tmp_path / name)

    @pytest.mark.parametrize("kind", ["gz", "zip"])
    def test_bombs_are_not_unpacked(self, tmp_path, monkeypatch, kind):
        monkeypatch.setattr(containers, "_LEAST", 1 << 20)
        path, zeros = tmp_path / f"t.csv.{kind}", bytes(8 << 20)
        if kind == "gz":
            path.write_bytes(gzip.compress(zeros))
        else:
            with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
                archive.writestr("t.csv", zeros)
        with pytest.raises(
            SennError, match=r"unpacks to more than [0-9]+ MiB, which no table does"
        ):
            read_table(path)

    def test_a_text_that_is_repeated_beyond_the_memory_is_refused(self, tmp_path, monkeypatch):
        import pyarrow as pa
        from pyarrow import parquet as pq

        monkeypatch.setattr(readers, "_MOST", 1 << 20)
        few = pa.DictionaryArray.from_arrays(pa.array([0] * 900, pa.int32()), ["x" * 50_000])
        pq.write_table(pa.table({"a": few}), tmp_path / "t.parquet", store_schema=False)
        with pytest.raises(SennError, match="claims 900 rows of 1 columns"):
            read_table(tmp_path / "t.parquet")
        one = pa.table({"a": ["x" * 50_000, *"bcd"]})
        pq.write_table(one, tmp_path / "t.parquet")
        assert len(read_table(tmp_path / "t.parquet").frame) == 4

    def test_a_cell_far_away_makes_no_sheet_of_billions(self, tmp_path):
        openpyxl = pytest.importorskip("openpyxl")
        book = openpyxl.Workbook()
        book.active["A1"], book.active["XFD90000"] = "a", 1
        book.save(tmp_path / "t.xlsx")
        with pytest.raises(SennError, match=r"claims .* rows of 16,384 columns"):
            read_table(tmp_path / "t.xlsx")

    def test_an_archive_that_lies_of_its_size_is_not_unpacked(self, tmp_path, monkeypatch):
        monkeypatch.setattr(containers, "_LEAST", 1 << 20)
        with zipfile.ZipFile(tmp_path / "t.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("t.csv", bytes(8 << 20))
        content = bytearray((tmp_path / "t.zip").read_bytes())
        at = content.rindex(b"PK\x01\x02") + 24
        content[at : at + 4] = (100).to_bytes(4, "little")
        (tmp_path / "t.zip").write_bytes(content)
        with pytest.raises(SennError, match=r"unpacks to more than|can't be unpacked"):
            read_table(tmp_path / "t.zip")

    def test_an_archive_in_itself_ends(self, tmp_path):
        content = PLAIN.encode()
        for _ in range(5):
            content = gzip.compress(content)
        with pytest.raises(SennError, match="is packed several times over"):
            read(tmp_path, content, "t.gz")

    def test_a_file_cannot_claim_more_than_it_holds(self, tmp_path):
        import pyarrow as pa
        from pyarrow import parquet as pq

        # run lengths and dictionaries keep a hundred million equal cells in a few bytes
        column = pa.repeat(pa.scalar(1, pa.int8()), 1 << 25)
        pq.write_table(pa.table({f"c{at}": column for at in range(5)}), tmp_path / "t.parquet")
        with pytest.raises(SennError, match="claims 33,554,432 rows of 5 columns, which its"):
            read_table(tmp_path / "t.parquet")

    def test_several_tables_in_an_archive_are_named(self, tmp_path):
        with zipfile.ZipFile(tmp_path / "t.zip", "w") as archive:
            archive.writestr("a.csv", PLAIN)
            archive.writestr("b.csv", PLAIN)
        with pytest.raises(SennError, match=r"holds 2 files \('a.csv', 'b.csv'\), where one table"):
            read_table(tmp_path / "t.zip")

    def test_an_address_is_refused_as_one(self):
        with pytest.raises(
            SennError, match=r"'https://example\.invalid/t\.csv' is an address; download"
        ):
            read_table("https://example.invalid/t.csv")

    def test_whole_numbers_stay_exact(self, tmp_path):
        frame = read(tmp_path, f"a,b\n{2**53 + 1},1\n,2\n{10**30},3\n").frame
        assert frame["a"].tolist()[0] == str(2**53 + 1)
        frame = read(tmp_path, f"a,b\n{2**53 + 1},1\n,2\n3,3\n").frame
        assert frame["a"].iloc[0] == 2**53 + 1
        assert frame["b"].dtype == np.int64


class TestWideTables:
    def test_each_of_a_thousand_columns_is_read_as_one_alone(self, tmp_path):
        kinds = ("1.5", "2", "007", "a b", "", "1e400", str(10**30))
        names = [f"c{at}" for at in range(1000)]
        row = [kinds[at % len(kinds)] for at in range(1000)]
        wide = read(tmp_path, "\n".join([",".join(names), ",".join(row), ",".join(row)])).frame
        alone = read(tmp_path, "\n".join([",".join(names[:7]), *[",".join(row[:7])] * 2])).frame
        for at in range(7):
            pd.testing.assert_series_equal(wide[f"c{700 + at}"], alone[f"c{at}"], check_names=False)

    def test_more_columns_than_are_read_are_refused(self, tmp_path, monkeypatch):
        monkeypatch.setattr(containers, "MOST_COLUMNS", 4)
        for name, frame in (("t.csv", "to_csv"), ("t.parquet", "to_parquet")):
            getattr(pd.DataFrame(np.ones((2, 5))).rename(columns=str), frame)(
                tmp_path / name, index=False
            )
            with pytest.raises(SennError, match=r"has 5 columns, and a table of more than 4 isn't"):
                read_table(tmp_path / name)

    def test_blanks_within_quotes_are_left_out_column_by_column(self, tmp_path):
        frame = read(tmp_path, 'a,b,c\n" 1 ",x,"  "\n"2",y,"z "\n').frame
        assert frame["a"].tolist() == [1, 2]
        assert frame["c"].tolist() == [None, "z"]
        assert frame["b"].tolist() == ["x", "y"]
