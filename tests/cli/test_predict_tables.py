"""`senn predict`, `senn.load_run` and exported code read new tables as training did, and say what it never saw."""

import io
import os
import sys
import zipfile

import numpy as np
import pandas as pd
import pytest
from cli_cases import refused

import senn
from senn.cli.main import main
from senn.errors import SennError


def amounts(rows=120):
    """A table as people write them, with a column of every kind."""
    draw = np.random.default_rng(3)
    value = draw.uniform(500, 9000, rows)
    frame = pd.DataFrame({"key": [f"k{at}" for at in range(rows)]})
    frame["revenue"] = [f"{one:,.2f} €".translate(str.maketrans(",.", ".,")) for one in value]
    frame["share"] = [f"{one:.1f}%" for one in draw.normal(10, 3, rows)]
    frame["when"] = pd.date_range("2020-01-05", periods=rows, freq="31h").strftime(
        "%d.%m.%Y %I:%M %p"
    )
    frame["quarter"] = [f"{2015 + at % 6}-Q{at % 4 + 1}" for at in range(rows)]
    frame["town"] = draw.choice(["Köln", "Ulm", "NA"], rows)
    frame["code"] = draw.choice(["1", "2", "3"], rows)
    frame["member"] = draw.choice(["TRUE", "FALSE"], rows)
    frame["label"] = np.where(value > 4000, "Groß", "Klein")
    return frame


def written(frame, path, encoding="utf-8", **options):
    frame.to_csv(path, index=False, sep=";", encoding=encoding, **options)
    return str(path)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A run, and its export as Python code."""
    home = tmp_path_factory.mktemp("amounts")
    written(amounts(), home / "t.csv", "cp1252")
    argv = ["fit", home / "t.csv", "--target", "label", "--column", "code=category", "--epochs", 2]
    assert main([*map(str, argv), "--out", str(home / "run"), "--quiet"]) == 0
    assert main(["export", str(home / "run"), "--to", "python", "--out", str(home / "net")]) == 0
    return home


def predict(home, capsys, source, *options):
    """The predictions as a list of texts, and the lines on stderr."""
    capsys.readouterr()
    assert main(["predict", str(home / "run"), str(source), *options]) == 0
    said = capsys.readouterr()
    table = pd.read_csv(io.StringIO(said.out), dtype=str, keep_default_na=False)
    return table, said.err.splitlines()


def test_what_is_like_training_needs_no_word(home, capsys):
    table, said = predict(home, capsys, written(amounts().head(30), home / "new.csv"))
    assert len(table) == 30
    assert said == []


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda new: new.assign(town="Atlantis"), "'town': 30 of 30 cells were never seen"),
        (lambda new: new.assign(revenue=""), "'revenue': 30 of 30 cells are empty"),
        (
            lambda new: new.assign(share=new["share"].str.rstrip("%")),
            "'share': 30 of 30 cells lack the unit '%'",
        ),
    ],
)
def test_what_training_never_saw_is_told_with_count_and_first(home, capsys, change, told):
    table, said = predict(home, capsys, written(change(amounts().head(30)), home / "new.csv"))
    assert len(table) == 30
    assert len(said) == 1
    assert told in said[0]


@pytest.mark.parametrize(
    "change",
    [
        lambda new: new.assign(town=" " + new["town"]),
        lambda new: new.assign(code=new["code"] + ".0"),
        lambda new: new.assign(code=" " + new["code"] + ".00"),
        lambda new: new.assign(member=new["member"].str.lower()),
        lambda new: new.assign(revenue="€ " + new["revenue"].str.removesuffix(" €")),
    ],
)
def test_other_spellings_of_one_cell_predict_the_same(home, capsys, change):
    new = amounts().head(30)
    known, _ = predict(home, capsys, written(new, home / "new.csv"), "--proba")
    other, said = predict(home, capsys, written(change(new), home / "new.csv"), "--proba")
    assert other.equals(known)
    assert said == []


FILES = {
    "utf-8": lambda text: text.encode(),
    "windows": lambda text: text.encode("cp1252"),
    "utf-16": lambda text: text.encode("utf-16"),
    "mark": lambda text: ("\ufeff" + text).encode(),
    "tabs": lambda text: text.replace(";", "\t").encode(),
    "furniture": lambda text: f"sep=;\n{text};;;;\n\nTotal;1,5\n".encode(),
    "title": lambda text: f"Umsatz 2020\n\n{text}".encode(),
    "line ends": lambda text: text.replace("\n", ";\r\n").encode(),
    "points": lambda text: text.replace(" €", "").encode(),
}


@pytest.mark.parametrize("kind", FILES)
def test_exported_code_and_the_run_read_alike(home, capsys, kind):
    new = amounts().drop(columns=["label", "key"])
    new.loc[::7, ["revenue", "when", "town"]] = ["", "NA", None]
    text = new.to_csv(index=False, sep=";")
    (home / "new.csv").write_bytes(FILES[kind](text))
    wanted, _ = predict(home, capsys, home / "new.csv")
    net = {"__name__": "net", "__file__": str(home / "net" / "net.py")}
    exec((home / "net" / "net.py").read_text(encoding="utf-8"), net)
    rows = net["read_rows"](home / "new.csv")
    assert net["predict"](rows) == wanted["prediction"].tolist()
    encoder = senn.load_run(home / "run").encoder
    known = net["read_preprocessing"]()["columns"]
    x = encoder.transform(encoder.read(home / "new.csv").frame)
    np.testing.assert_allclose(net["encode"](rows, known), x, rtol=1e-5, atol=1e-6)


def test_pasted_sources_share_no_name():
    import ast

    from senn.export.python_folder import _SOURCES_OF

    seen = set()
    for path in _SOURCES_OF["tables"]:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            targets = node.targets if isinstance(node, ast.Assign) else []
            names = {name.id for name in targets if isinstance(name, ast.Name)} | {
                getattr(node, "name", None)
            }
            assert not (names - {None}) & seen
            seen |= names - {None}


class TestFiles:
    def test_parquet_is_parquet_and_keeps_columns(self, home, capsys):
        source = written(amounts().head(9), home / "new.csv")
        plain, _ = predict(home, capsys, source)
        for name, read in (("p.parquet", pd.read_parquet), ("p.feather", pd.read_feather)):
            argv = [
                "predict",
                home / "run",
                source,
                "--keep",
                "key",
                "--out",
                home / name,
                "--keep",
                "town",
            ]
            assert main(list(map(str, argv))) == 0
            table = read(home / name)
            assert list(table) == ["key", "town", "prediction"]
            assert table["key"].tolist() == [f"k{at}" for at in range(9)]
            assert table["prediction"].tolist() == plain["prediction"].tolist()

    def test_other_endings_and_columns_are_refused(self, home, capsys):
        source = written(amounts().head(9), home / "new.csv")
        argv = ["predict", home / "run", source]
        assert "p.xlsx' ends in none of" in refused(capsys, [*argv, "--out", home / "p.xlsx"])
        assert "no column 'kee' to keep; the table has 'key'" in refused(
            capsys, [*argv, "--keep", "kee"]
        )

    def test_a_pipe_is_written_to_and_a_link_followed(self, home, capsys):
        source = written(amounts().head(9), home / "new.csv")
        plain, _ = predict(home, capsys, source)
        os.mkfifo(home / "pipe")
        (home / "link.csv").symlink_to(home / "target.csv")
        reader = os.open(home / "pipe", os.O_RDONLY | os.O_NONBLOCK)
        for name in ("pipe", "link.csv"):
            assert main(["predict", str(home / "run"), source, "--out", str(home / name)]) == 0
        assert pd.read_csv(io.BytesIO(os.read(reader, 1 << 16))).equals(plain)
        os.close(reader)
        assert (home / "pipe").is_fifo()
        assert (home / "link.csv").is_symlink()
        assert pd.read_csv(home / "target.csv").equals(plain)
        argv = ["report", home / "run", "--out", home / "pipe"]
        assert "isn't an HTML page" in refused(capsys, argv)
        argv = ["export", home / "run", "--to", "pt2", "--out", home / "pipe", "--overwrite"]
        assert "is a device or a pipe" in refused(capsys, argv)

    def test_standard_input_and_output(self, home, capsys, monkeypatch):
        new = amounts().head(9)
        plain, _ = predict(home, capsys, written(new, home / "new.csv"))
        content = io.BytesIO((home / "new.csv").read_bytes())
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(content))
        piped, said = predict(home, capsys, "-", "--out", "-")
        assert piped.equals(plain)
        assert said == []

    def test_archives(self, home, capsys):
        plain, _ = predict(home, capsys, written(amounts().head(9), home / "new.csv"))
        with zipfile.ZipFile(home / "new.zip", "w") as archive:
            archive.write(home / "new.csv", "new.csv")
        assert predict(home, capsys, home / "new.zip")[0].equals(plain)


class TestLoadRun:
    def test_a_frame_and_a_file_are_predicted_as_by_the_command(self, home, capsys):
        source = written(amounts().head(30), home / "new.csv")
        told, _ = predict(home, capsys, source, "--proba")
        run = senn.load_run(home / "run")
        frame = pd.read_csv(source, sep=";").drop(columns=["label", "key"])
        assert (
            run.predict(source).tolist()
            == run.predict(frame).tolist()
            == told["prediction"].tolist()
        )
        chances = run.predict_proba(frame)
        assert run.classes == ("Groß", "Klein")
        np.testing.assert_allclose(chances, told.iloc[:, 1:].astype(float), rtol=1e-6)

    def test_what_training_never_saw_is_a_warning(self, home):
        new = amounts().head(4).assign(town="Rome")
        with pytest.warns(UserWarning, match=r"'town': 4 of 4 cells .* 'Rome'"):
            senn.load_run(str(home / "run")).predict(new)

    def test_bad_calls_are_sentences(self, home, tmp_path):
        run = senn.load_run(home / "run")
        with pytest.raises(SennError, match="lacks the column"):
            run.predict(amounts().drop(columns="share"))
        with pytest.raises(SennError, match="predicts the rows of one table"):
            run.predict([home / "t.csv", home / "t.csv"])
        with pytest.raises(SennError, match="holds no saved model"):
            senn.load_run(tmp_path)
