"""`senn evaluate`, and images that are tested on pictures of one's own."""

import base64
import json
import shutil
from io import StringIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from cli_cases import refused
from photo_cases import folder_of
from sklearn import metrics as sk

from senn import atomic_files
from senn.cli import trained_rows
from senn.cli.fit_images import prepare_images
from senn.cli.fit_table import prepare
from senn.cli.main import main
from senn.errors import SennError
from senn.runs import FitOptions

SAVED = Path(__file__).parents[1] / "saved" / "run_version_1_finished"


def frauds(rows, seed):
    frame = pd.DataFrame(
        np.random.default_rng(seed).normal(size=(rows, 3)), columns=["a", "b", "c"]
    )
    frame["kind"] = np.where(frame.a + frame.b > 1, "fraud", "ok")
    return frame.assign(price=2 * frame.a - frame.c)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a table, rows to score, and a run of each task."""
    folder = tmp_path_factory.mktemp("evaluate")
    frauds(200, 0).to_csv(folder / "train.csv", index=False)
    frauds(90, 1).to_csv(folder / "june.csv", index=False)
    for target, other, metric in (("kind", "price", "f1"), ("price", "kind", "r2")):
        argv = ["fit", folder / "train.csv", "--target", target, "--column", f"{other}=dropped"]
        argv += ["--epochs", 3, "--out", folder / target, "--metric", metric, "--quiet"]
        assert main([str(one) for one in argv]) == 0
    return folder


def document(capsys, *argv):
    assert main(["evaluate", *map(str, argv), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_classes_are_scored_as_scikit_learn_does(home, capsys):
    found = document(capsys, home / "kind", home / "june.csv")
    assert main(["predict", str(home / "kind"), str(home / "june.csv"), "--proba"]) == 0
    text = capsys.readouterr().out
    guess = pd.read_csv(StringIO(text))
    truth = frauds(90, 1).kind
    assert found["rows"] == 90
    assert (found["positive"], found["metric"]) == ("fraud", "f1")
    expected = sk.f1_score(truth, guess.prediction, pos_label="fraud")
    assert found["test"]["f1"] == pytest.approx(expected)
    assert found["test"]["roc_auc"] == pytest.approx(
        sk.roc_auc_score(truth == "fraud", guess["probability fraud"]), abs=1e-6
    )
    assert found["baselines"]["constant"]["accuracy"] == pytest.approx((truth == "ok").mean())
    assert found["baselines"]["linear"]["accuracy"] > 0.9
    assert np.sum(found["confusion"]) == 90
    low, high = found["intervals"]["accuracy"]
    assert low <= found["test"]["accuracy"] <= high


def test_numbers_are_scored_and_lines_are_printed(home, capsys):
    found = document(capsys, home / "price", home / "june.csv", "--metric", "neg_max_error")
    assert found["test"]["neg_max_error"] < 0
    assert found["baselines"]["constant"]["r2"] < 0.05
    assert main(["evaluate", str(home / "kind"), str(home / "june.csv")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split("  ")[0] == "test (90 rows)"
    assert any(line.startswith("f1 of 'fraud' ") for line in lines)
    assert any(line.startswith("true class, taken for") for line in lines)


@pytest.mark.parametrize(
    ("change", "options", "words"),
    [
        (lambda f: f.drop(columns="kind"), [], "has no column 'kind', the target"),
        (lambda f: f.assign(kind="odd"), [], "class 'odd' is unknown"),
        (lambda f: f.drop(columns="b"), [], "lacks the column 'b'"),
        (lambda f: f, ["--metric", "f7"], "the metric 'f7' isn't one of scikit-learn's"),
    ],
)
def test_rows_that_can_not_be_scored_are_refused(home, capsys, change, options, words):
    change(frauds(20, 2)).to_csv(home / "odd.csv", index=False)
    assert words in refused(capsys, ["evaluate", home / "kind", home / "odd.csv", *options])


def test_baselines_are_those_of_the_run(home, capsys):
    """The test rows of a run, scored again, have all scores of the run."""
    made = prepare(FitOptions(data=str(home / "train.csv"), target="price", metric="r2"))
    frame = pd.read_csv(home / "train.csv")
    x_test = made.encoder.transform(frame)
    kept = [any((row == other).all() for other in made.x_test.numpy()) for row in x_test]
    frame[kept].to_csv(home / "again.csv", index=False)
    found = document(capsys, home / "price", home / "again.csv")
    results = json.loads((home / "price" / "results.json").read_text())
    assert set(found["baselines"]) == {"constant", "linear"}
    for name, scores in found["baselines"].items():
        assert scores == pytest.approx(results["baselines"][name], abs=1e-6)


def test_a_run_of_an_older_version_is_scored_alone(capsys, tmp_path):
    folder = shutil.copytree(SAVED, tmp_path / "run")
    assert main(["evaluate", str(folder), "wine", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["baselines"] == {}
    assert found["test"]["accuracy"] > 0.5


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda record: record["linear"]["weight"].pop(), "don't fit its network"),
        (lambda record: record["constant"].append(0.0), "don't fit its network"),
        (lambda record: record["linear"]["bias"].append("x"), "is damaged"),
        (lambda record: record.pop("pairs"), "is damaged"),
    ],
)
def test_forged_baselines_are_refused_in_a_sentence(home, capsys, tmp_path, change, words):
    folder = shutil.copytree(home / "price", tmp_path / "run")
    record = json.loads((folder / "test.json").read_text())
    change(record)
    del record["checksum"]
    text = atomic_files.to_checksummed_json(record)
    (folder / "test.json").write_bytes(text)
    results = json.loads((folder / "results.json").read_text())
    del results["checksum"]
    results["files"]["test.json"] = atomic_files.file_digest(text)
    (folder / "results.json").write_bytes(atomic_files.to_checksummed_json(results))
    assert words in refused(capsys, ["evaluate", folder, home / "june.csv"])


def test_a_folder_without_a_run_is_refused(home, capsys):
    refused(capsys, ["evaluate", home, home / "june.csv"])


class TestPictures:
    def test_a_folder_of_ones_own_is_tested_on_and_evaluated(self, tmp_path, capsys):
        photos = folder_of(tmp_path / "photos", 24)
        fresh = folder_of(tmp_path / "fresh", 8, seed=1)
        argv = ["fit", photos, "--test", fresh, "--epochs", 1, "--out", tmp_path / "run", "--json"]
        assert main([str(one) for one in argv]) == 0
        results = json.loads(capsys.readouterr().out)
        assert (results["data"]["train_rows"], results["data"]["test_rows"]) == (24, 8)
        assert results["data"]["class_rows"] == [16, 16]
        assert any(note.startswith("0 images for validation") for note in results["data"]["notes"])
        found = document(capsys, tmp_path / "run", fresh)
        assert found["test"] == results["test"]
        assert set(results["baselines"]) == {"constant", "linear"}

    def test_pictures_on_both_sides_are_told(self, tmp_path):
        photos = folder_of(tmp_path / "photos", 24)
        same = folder_of(tmp_path / "same", 8)
        made = prepare_images(FitOptions(data=str(photos), test=str(same)))
        assert "100% of the test images also stand among the training images" in made.notes

    @pytest.mark.parametrize(
        ("test", "options", "words"),
        [
            ("nowhere", {}, "there is no file or folder"),
            ("photos/across", {}, "has no sub-folders"),
            ("photos", {"test_fraction": 0.5}, "--test-fraction can't be combined"),
            ("photos", {"group": "a"}, "--group is for tables"),
        ],
    )
    def test_what_can_not_be_tested_on_is_refused(self, tmp_path, test, options, words):
        photos = folder_of(tmp_path / "photos", 24)
        with pytest.raises(SennError, match=words):
            prepare_images(FitOptions(data=str(photos), test=str(tmp_path / test), **options))


class TestRowsThatWereTrainedOn:
    @pytest.mark.parametrize("run", ["kind", "price"])
    def test_are_told_with_their_share(self, home, capsys, run):
        assert main(["evaluate", str(home / run), str(home / "train.csv")]) == 0
        said = capsys.readouterr().err
        assert "senn: 80% of the rows stand among those that the network was trained on" in said
        assert document(capsys, home / run, home / "train.csv")["share_trained_on"] == 0.8

    def test_new_rows_need_no_word(self, home, capsys):
        found = document(capsys, home / "kind", home / "june.csv")
        assert found["share_trained_on"] == 0
        assert main(["evaluate", str(home / "kind"), str(home / "june.csv")]) == 0
        assert "trained on" not in capsys.readouterr().err

    def test_are_known_in_another_format_and_order(self, home, capsys):
        frame = pd.read_csv(home / "train.csv")[::-1]
        frame[["kind", "c", "b", "price", "a"]].to_parquet(home / "train.parquet", index=False)
        assert document(capsys, home / "kind", home / "train.parquet")["share_trained_on"] == 0.8

    def test_of_many_a_sample_is_kept_that_tells_the_share(self, monkeypatch):
        monkeypatch.setattr(trained_rows, "MOST", 200)
        draw = np.random.default_rng(0)
        x, y = draw.normal(size=(2000, 3)).astype(np.float32), draw.integers(0, 2, 2000)
        kept = trained_rows.kept_fingerprints(x[:1000], y[:1000])
        assert len(base64.b64decode(kept)) == 5 * 200
        share = trained_rows.share_trained_on(kept, x[500:], y[500:])
        assert share == pytest.approx(1 / 3, abs=0.08)
        assert trained_rows.share_trained_on(kept, x[1000:], y[1000:]) == 0
        assert trained_rows.share_trained_on(kept, x[:1000], 1 - y[:1000]) == 0

    @pytest.mark.parametrize("kept", ["!", "AAAA", "é"])
    def test_a_damaged_record_is_refused(self, kept):
        with pytest.raises(SennError, match="record of its training rows is damaged"):
            trained_rows.share_trained_on(kept, np.zeros((1, 1), np.float32), np.zeros(1))
