"""Reading tables from files, and the built-in ones."""

import numpy as np
import pandas as pd
import pytest

from senn.data import BUILT_IN, TableEncoder, read_table
from senn.errors import SennError

SIZES = {
    "digits": (1797, 65, "classification", 10),
    "breast-cancer": (569, 31, "classification", 2),
    "wine": (178, 14, "classification", 3),
    "diabetes": (442, 11, "regression", 1),
    "moons": (1000, 3, "classification", 2),
}


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in_tables(name):
    table = read_table(name)
    rows, columns, task, outputs = SIZES[name]
    encoder = TableEncoder.fit(table.frame, table.target)
    assert table.frame.shape == (rows, columns)
    assert (encoder.target.task, encoder.target.outputs) == (task, outputs)
    assert table.frame.index[0] == 1
    assert read_table(name).frame.equals(table.frame)


@pytest.mark.parametrize(
    "kind", ["csv", "tsv", "semicolon", "bom", "row numbers", "parquet", "npz"]
)
def test_all_formats_hold_the_same(tmp_path, kind):
    frame = pd.DataFrame(
        {"größe": [1.5, 2.5, -1e300], "name": ['a "b", c', "ü\nx", "3;4\t5"], "k": [1, 2, 3]}
    )
    path = tmp_path / {"parquet": "t.parquet", "npz": "t.npz", "tsv": "t.TSV"}.get(kind, "t.csv")
    if kind == "parquet":
        frame.to_parquet(path)
    elif kind == "npz":
        np.savez(
            path, **{name: frame[name].to_numpy(str if name == "name" else None) for name in frame}
        )
    else:
        mark = {"tsv": "\t", "semicolon": ";"}.get(kind, ",")
        encoding = "utf-8-sig" if kind == "bom" else "utf-8"
        frame.to_csv(path, sep=mark, index=kind == "row numbers", encoding=encoding)
    table = read_table(path)
    assert table.frame.to_dict("list") == frame.to_dict("list")
    assert table.frame.index.tolist() == [1, 2, 3]
    assert (table.name, table.target) == ("t", None)


def test_npz_of_arrays(tmp_path):
    np.savez(tmp_path / "t.npz", X=np.arange(12.0).reshape(3, 2, 2), y=np.array([0, 1, 0]))
    table = read_table(tmp_path / "t.npz")
    assert list(table.frame) == ["X0", "X1", "X2", "X3", "y"]
    assert table.frame.loc[2].tolist() == [4, 5, 6, 7, 1]
    assert table.target == "y"


def test_text_columns_keep_their_zeros(tmp_path):
    (tmp_path / "t.csv").write_text("code,year,a\n007,2024,1\n012,2025,2\n")
    frame = read_table(tmp_path / "t.csv").frame
    assert frame["code"].tolist() == ["007", "012"]
    assert frame["year"].tolist() == [2024, 2025]
    frame = read_table(tmp_path / "t.csv", text=["year", "other"]).frame
    assert frame["year"].tolist() == ["2024", "2025"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", "", "'.*t.csv' is empty"),
        ("t.csv", "\n\n", "is empty"),
        ("t.csv", "a,b\n", "has no rows"),
        ("t.csv", "a,a\n1,2\n", "two columns named 'a'"),
        ("t.csv", "a,,b\n1,2,3\n", "column 2 of .* has no name"),
        ("t.csv", "a,b\n1,2\n3\n", "line 3 of .* has 1 cells where the header has 2"),
        ("t.csv", "a,b\n1,2\n3,4,5\n", "line 3 of .* has 3 cells"),
        ("t.csv", "a,b\n1," + "x" * 200_000, "can't be read as csv: field larger"),
        ("t.csv", b"a,b\n1,\x81\n", "text neither in UTF-8 nor in another encoding"),
        ("t.parquet", "PAR1 nonsense", "can't be read as parquet"),
        ("t.csv", 'a,b\n"1,2\n3"4,5\n', "can't be read as csv: ',' expected after"),
        ("t.npz", "nonsense", "can't be read as npz: it isn't an archive"),
        ("t.pdf", "nonsense", "ends in none of .csv, .tsv"),
    ],
)
def test_damaged_files(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(SennError, match=message) as caught:
        read_table(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_npz_of_objects_is_not_unpickled(tmp_path):
    np.savez(tmp_path / "t.npz", a=np.array([print, 1], dtype=object))
    with pytest.raises(SennError, match="can't be read as npz: Object arrays"):
        read_table(tmp_path / "t.npz")


def test_npz_of_different_lengths(tmp_path):
    np.savez(tmp_path / "t.npz", a=np.ones(2), b=np.ones(3))
    with pytest.raises(SennError, match="differ in length: 'a' 2, 'b' 3"):
        read_table(tmp_path / "t.npz")


def test_parquet_without_columns_or_rows(tmp_path):
    pd.DataFrame({"a": []}).to_parquet(tmp_path / "rows.parquet")
    pd.DataFrame().to_parquet(tmp_path / "columns.parquet")
    for name in ("rows", "columns"):
        with pytest.raises(SennError, match=f"has no {name}"):
            read_table(tmp_path / f"{name}.parquet")


def test_no_such_file(tmp_path):
    with pytest.raises(
        SennError, match=r"no file 'absent\.csv', and the built-in tables are digits"
    ):
        read_table("absent.csv")
    with pytest.raises(SennError, match="is a folder"):
        read_table(tmp_path)
