"""What becomes of finished runs: `senn predict` and `senn show`, and what they refuse."""

import json
import re
from io import StringIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from cli_cases import RESULTS, people, refused

from senn import atomic_files
from senn.checkpoint import save
from senn.cli.main import main
from senn.cli.show import _changes
from senn.runs import SavedRun


class TestPredict:
    def predict(self, home, capsys, frame, *options, run="classes"):
        frame.to_csv(home / "new.csv", index=False)
        capsys.readouterr()
        assert main(["predict", str(home / run), str(home / "new.csv"), *options]) == 0
        return pd.read_csv(StringIO(capsys.readouterr().out))

    def test_classes_and_probabilities(self, home, capsys):
        new = self.predict(home, capsys, people().drop(columns=["id", "kind"]), "--proba")
        assert list(new) == ["prediction", "probability big", "probability small"]
        np.testing.assert_allclose(new["probability big"] + new["probability small"], 1, atol=1e-6)
        assert (new["prediction"] == np.where(new["probability big"] > 0.5, "big", "small")).all()

    def test_order_and_further_columns_do_not_matter(self, home, capsys):
        plain = self.predict(home, capsys, people())
        shuffled = self.predict(home, capsys, people().iloc[:, ::-1].assign(more=1))
        assert plain.equals(shuffled)
        assert (
            plain.iloc[7:8]
            .reset_index(drop=True)
            .equals(self.predict(home, capsys, people().iloc[7:8]))
        )

    def test_unseen_categories_and_missing_cells(self, home, capsys):
        frame = (
            people(80)
            .head(3)
            .assign(color=["mauve", None, "red"], member=[None, None, True], größe=np.nan)
        )
        assert len(self.predict(home, capsys, frame)) == 3

    def test_numbers_in_their_own_unit(self, home, capsys):
        new = self.predict(home, capsys, people().drop(columns="größe"), run="numbers")
        results = json.loads((home / "numbers" / "results.json").read_text())
        assert new["prediction"].abs().max() < 5
        assert results["test"]["rmse"] < 3

    def test_to_a_file(self, home, capsys):
        self.predict(home, capsys, people().drop(columns="kind"))
        out = home / "predictions.csv"
        assert (
            main(["predict", str(home / "classes"), str(home / "people.csv"), "--out", str(out)])
            == 0
        )
        assert capsys.readouterr().out == ""
        assert len(pd.read_csv(out)) == 80
        message = refused(
            capsys,
            ["predict", home / "classes", home / "people.csv", "--out", home / "no/where.csv"],
        )
        assert "can't be written" in message

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (
                lambda frame: frame.drop(columns=["größe", "color"]),
                "lacks the columns 'größe', 'color'",
            ),
            (
                lambda frame: frame.assign(größe="tall"),
                "column 'größe', row 1: 'tall' is not a number",
            ),
            (lambda frame: frame.assign(größe=np.inf), "column 'größe', row 1: 'inf' is infinite"),
            (
                lambda frame: frame.assign(since="soon"),
                "column 'since', row 1: 'soon' is not a date",
            ),
            (lambda frame: frame.head(0), "has no rows"),
        ],
    )
    def test_bad_tables(self, home, capsys, change, message):
        change(people()).to_csv(home / "bad.csv", index=False)
        assert message in refused(capsys, ["predict", home / "classes", home / "bad.csv"])

    def test_bad_folders(self, home, capsys, tmp_path):
        assert "holds no saved model" in refused(capsys, ["predict", tmp_path, home / "people.csv"])
        save(tmp_path, torch.nn.Linear(1, 1))
        assert "so the columns it needs are unknown" in refused(
            capsys, ["predict", tmp_path, home / "people.csv"]
        )
        text = (home / "classes" / "model.json").read_text()
        (tmp_path / "model.json").write_text(text.replace("red", "rad"))
        assert "doesn't match its checksum" in refused(
            capsys, ["predict", tmp_path, home / "people.csv"]
        )
        (tmp_path / "model.json").write_text(text)
        assert "isn't the file that was saved" in refused(
            capsys, ["predict", tmp_path, home / "people.csv"]
        )

    def test_probabilities_of_numbers(self, home, capsys):
        assert "'größe' is a number" in refused(
            capsys, ["predict", home / "numbers", home / "money.csv", "--proba"]
        )


class TestShow:
    def test_shows_the_run(self, home, capsys):
        capsys.readouterr()
        assert main(["show", str(home / "classes")]) == 0
        out = capsys.readouterr().out
        results = json.loads((home / "classes" / "results.json").read_text())
        assert re.search(rf"\naccuracy +{results['test']['accuracy']:.4g} ", out)
        assert "test (16 rows)" in out
        assert re.search(r"true class, taken for +big +small\nbig +\d+ +\d+\nsmall", out)
        changes = [
            line
            for line in out.splitlines()
            if line.startswith("  step ") and "which is kept" not in line
        ]
        assert len(changes) == results["growth_events"]
        assert main(["show", str(home / "classes"), "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == results

    def test_shows_which_network_is_kept_if_it_changed_after(self):
        def saved(best):
            events = [
                {"event": "growth", "text": "widen", "realized_decrease": None},
                {"event": "epoch", "epoch": 1},
            ]
            history = [{**one, "step": step} for step, one in enumerate([*events, *events])]
            history[3]["epoch"] = 2
            return SavedRun(
                path=Path(), results={"best_epoch": best}, history=history, unfinished=False
            )

        assert _changes(saved(1)) == [
            "  step 0: widen",
            "  step 1: the network of epoch 1, which is kept",
            "  step 2: widen",
        ]
        assert _changes(saved(2)) == ["  step 0: widen", "  step 2: widen"]

    def test_bad_folders(self, home, capsys, tmp_path):
        assert "holds no run" in refused(capsys, ["show", tmp_path])
        for text, message in (
            ("{", "isn't JSON"),
            ("[]", "the format 'senn-run'"),
            ("{}", "the format 'senn-run'"),
        ):
            (tmp_path / "results.json").write_text(text)
            assert message in refused(capsys, ["show", tmp_path])
        for text in ("[1]\n", "{\n", "\x00", "{}\n", '{"event": "growth"}\n'):
            (tmp_path / "history.jsonl").write_text(text)
            told = {"bytes": len(text), "sha256": atomic_files.bytes_digest(text.encode())}
            for version in (1, 2, 3):
                head = {"format": "senn-run", "version": version}
                results = {**head, **RESULTS, "files": {"history.jsonl": told}}
                (tmp_path / "results.json").write_bytes(atomic_files.to_checksummed_json(results))
                message = "history.jsonl' is damaged"
                found = refused(capsys, ["show", tmp_path])
                assert (
                    message if version < 3 else "has format version 3; this senn reads 1 and 2"
                ) in found
