"""The command line, mostly in this process: what it writes, prints and refuses."""

import json
import re
import subprocess
import sys
from io import StringIO

import pytest
import torch
from cli_cases import FILES, TWO_CLASSES, fit, refused
from rich.console import Console

from senn.checkpoint import load
from senn.cli.main import main
from senn.training import TrainConfig, train
from senn.training.progress import LiveCallback, short_state_line, state_line


def nothing_written(folder):
    return [path.name for path in folder.iterdir() if "run" in path.name] == []


class TestFit:
    def test_writes_a_folder_that_says_all(self, home):
        run = home / "classes"
        assert sorted(path.name for path in run.iterdir()) == FILES
        results = json.loads((run / "results.json").read_text())
        assert (results["task"], results["seed"], results["interrupted"]) == (
            "classification",
            0,
            False,
        )
        assert set(results["test"]) == TWO_CLASSES
        assert results["data"]["rows"] == 80
        assert (results["data"]["train_rows"], results["data"]["test_rows"]) == (64, 16)
        assert results["data"]["classes"] == ["big", "small"]
        assert results["data"]["columns"] == {
            "größe": "number",
            "color": "category",
            "since": "date",
            "member": "boolean",
            "id": "dropped",
        }
        assert results["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
        model = load(run)
        assert results["parameters"] == sum(parameter.numel() for parameter in model.parameters())
        assert results["architecture"] == list(model.hidden)
        history = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
        assert sum(record["event"] == "epoch" for record in history) == 12
        assert sum(record["event"] == "growth" for record in history) == results["growth_events"]
        assert history[-1]["event"] == "end"
        assert (run / "growth.png").read_bytes().startswith(b"\x89PNG")

    def test_regression(self, home):
        results = json.loads((home / "numbers" / "results.json").read_text())
        assert results["task"] == "regression"
        assert set(results["test"]) == {"r2", "rmse", "mae"}
        assert results["test"]["mae"] <= results["test"]["rmse"]

    def test_same_seed_same_run(self, home, capsys):
        documents = []
        for seed in (0, 0, 1):
            argv = [
                *fit(home, "people.csv", "again"),
                "--target",
                "kind",
                "--epochs",
                "3",
                "--json",
                "--overwrite",
            ]
            assert main([*argv, "--seed", str(seed)]) == 0
            documents.append(json.loads(capsys.readouterr().out))
        assert documents[0]["test"] == documents[1]["test"] != documents[2]["test"]
        assert documents[0]["out"] == str(home / "again")

    def test_plain_lines(self, tmp_path, capsys, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert main(["fit", "wine", "--epochs", "20"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0] == (
            "wine: 178 rows (142 to train on, 36 for the test), 13 features, target 'cultivar' (3 classes)"
        )
        growth = json.loads((tmp_path / "runs/wine/results.json").read_text())["growth_events"]
        assert growth > 0
        steps = [line for line in lines if line.startswith("step ")]
        # a return to the best weights of a size is told, and is no change of it
        assert sum(": the weights are those" not in line for line in steps) == growth
        assert any(line.startswith("epoch 20/20: loss ") for line in lines)
        assert lines[-10].split("  ")[0] == "test (36 rows)"
        assert lines[-9].startswith("accuracy ")
        assert lines[-2].startswith(("one network, pruned without", "without training no unit"))
        assert lines[-1].startswith("written to runs/wine: ")

    def test_quiet(self, home, capsys):
        argv = [*fit(home, "people.csv", "silent"), "--target", "kind", "--epochs", "1", "--quiet"]
        assert main(argv) == 0
        assert capsys.readouterr() == ("", "")

    def test_dry_run_writes_nothing(self, tmp_path, capsys, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert main(["fit", "wine", "--dry-run"]) == 0
        out = capsys.readouterr().out
        assert "number: alcohol, malic_acid" in out
        # 128 of the 142 rows to fit: 2 steps an epoch, two fifths of them with rounds
        assert (
            "classification, adamw, PricePolicy: at most 120 epochs (240 steps), growing until step 96"
            in out
        )
        assert (
            f"one more unit has 17 parameters and has to lower the loss by {0.01 * 17 / 128:.3g} nats per sample"
            in out
        )
        assert list(tmp_path.iterdir()) == []
        assert main(["fit", "digits", "--dry-run", "--epochs", "5000"]) == 0
        assert "growing until step 800 at the latest" in capsys.readouterr().out
        assert main(["fit", "wine", "--dry-run", "--json", "--kappa", "2"]) == 0
        plan = json.loads(capsys.readouterr().out)["plan"]
        assert plan["fitted_rows"] + plan["validation_rows"] == 142
        assert plan["price_per_unit"] == pytest.approx(2 * 17 / plan["fitted_rows"])

    def test_budget_is_kept(self, tmp_path, capsys):
        assert (
            main([*fit(tmp_path, "wine"), "--epochs", "30", "--max-params", "120", "--json"]) == 0
        )
        assert json.loads(capsys.readouterr().out)["parameters"] <= 120

    @pytest.mark.parametrize("optimizer", ["SGD", "rmsprop", "natural-gradient"])
    def test_other_optimizers_and_the_paper_policy(self, tmp_path, optimizer, capsys):
        argv = [
            *fit(tmp_path, "wine"),
            "--epochs",
            "4",
            "--optimizer",
            optimizer,
            "--policy",
            "paper",
        ]
        own = ["--tau", "0.5", "--alpha", "0.01", "--ascent-steps", "3"]
        assert main([*argv, *own, "--json"]) == 0
        results = json.loads(capsys.readouterr().out)
        assert results["optimizer"] == optimizer
        assert "PaperPolicy(tau=0.5, alpha=0.01" in results["policy"]

    def test_overwrite(self, tmp_path, capsys):
        argv = [*fit(tmp_path, "wine"), "--epochs", "1", "--quiet"]
        assert main(argv) == 0
        (tmp_path / "run" / "mine.txt").write_text("note")
        before = (tmp_path / "run" / "model.json").read_text()
        assert "holds a run already" in refused(capsys, argv)
        assert (tmp_path / "run" / "model.json").read_text() == before
        assert main([*argv, "--overwrite", "--seed", "1"]) == 0
        assert (tmp_path / "run" / "model.json").read_text() != before
        assert sorted(path.name for path in (tmp_path / "run").iterdir()) == sorted(
            [*FILES, "mine.txt"]
        )

    def test_foreign_folder(self, tmp_path, capsys):
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "thesis.tex").write_text("")
        for more in ([], ["--overwrite"]):
            assert "isn't empty and holds no run" in refused(
                capsys, [*fit(tmp_path, "wine"), *more]
            )
        (tmp_path / "file").write_text("")
        assert "is a file, not a folder" in refused(capsys, fit(tmp_path, "wine", "file"))
        assert "can't be written: Not a directory" in refused(
            capsys, fit(tmp_path, "wine", "file/run")
        )

    def test_full_disk_leaves_nothing(self, tmp_path, capsys):
        resource = pytest.importorskip("resource")
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, limits[1]))
        try:
            message = refused(
                capsys, [*fit(tmp_path, "wine", "deep/run"), "--epochs", "1", "--quiet"]
            )
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert "can't be written: File too large" in message
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--optimizer", "magic"], "unknown optimizer 'magic'"),
            (["--optimizer", "lbfgs"], "'lbfgs' cannot be used here"),
            (["--policy", "paper", "--tau", "0"], "tau must be a number above 0, not 0.0"),
            (["--policy", "paper", "--tau", "nan"], "tau must be a number above 0, not nan"),
            (["--policy", "paper", "--alpha", "1.5"], "alpha must be"),
            (["--policy", "paper", "--kappa", "1"], "--kappa belongs to --policy price"),
            (["--tau", "1"], "--tau belongs to --policy paper"),
            (["--prune-fraction", "1"], "--prune-fraction belongs to --policy paper"),
            (["--ascent-steps", "-1"], "ascent_steps must be a whole number of at least 0"),
            (["--kappa", "-1"], "kappa must be a number above 0"),
            (["--policy", "luck"], "invalid choice: 'luck'"),
            (["--max-params", "5"], "--max-params 5 is less than the 61"),
            (["--max-flops", "5"], "--max-flops 5 is less than the"),
            (["--max-params", "-5"], "'-5' is not a whole number above 0"),
            (["--max-seconds", "0"], "max_seconds must be a number above 0 or None, not 0.0"),
            (["--epochs", "0"], "'0' is not a whole number above 0"),
            (["--seed", "-1"], "'-1' is not a whole number from 0"),
            (["--seed", str(2**64)], "is not a whole number from 0"),
            (["--test-fraction", "1"], "'1' is not between 0 and 1"),
            (["--target", "vintage"], "no column 'vintage'; the table has 'alcohol'"),
            (["--column", "ash"], "'ash' is not of the form NAME=KIND"),
            (["--column", "ash=tree"], "can't be of kind 'tree'"),
            (["--column", "soot=number"], "no column 'soot'"),
            (["--column", "cultivar=number"], "'cultivar' is the target"),
            (["--task", "regression"], "target 'cultivar' holds text"),
        ],
    )
    def test_bad_options(self, tmp_path, capsys, options, message):
        assert message in refused(capsys, [*fit(tmp_path, "wine"), *options])
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (None, "there is no file"),
            ("", "is empty"),
            ("a,y\n", "has no rows"),
            ("a,y\n1,x\n", "a single class|1 row"),
            ("a,y\n" + "1,x\n2,z\n" * 3, "the table has 6 rows; at least 8"),
            ("a,y\n" + "1,x\n2,x\n" * 9, "a single class"),
            ("a,y\n" + "1,x\n1,z\n" * 9, "no column is left to predict 'y' from ('a' is always 1)"),
            ("a,y\n" + ",x\n,z\n" * 9, "no column is left to predict 'y' from ('a' is empty)"),
            ("y\n" + "x\nz\n" * 9, "no column is left"),
            ("a,y\n" + "1,x\ninf,z\n" * 9, "column 'a', row "),
            ("a,y\n" + "1,x\n2,\n" * 9, "target 'y' holds a single class ('x')"),
            ("a,y\n" + "1,.5\n2,inf\n" * 9, "'y', row 2: 'inf' is infinite"),
            ("a,a,y\n" + "1,2,x\n2,1,z\n" * 9, "two columns named 'a'"),
            ("a,y\n" + "1,x\n2,z\n3,x\n4,z\n" * 4 + "oops,x\n5,z\n", "row 17: 'oops'"),
            (
                "a,y\n" + "".join(f"{at},name{at}\n" for at in range(40)),
                "40 classes in 40 rows; is it an identifier",
            ),
            ("a,y\n1,2,3\n", "line 2 of"),
        ],
    )
    def test_bad_tables(self, tmp_path, capsys, content, message):
        if content is not None:
            (tmp_path / "t.csv").write_text(content)
        found = refused(capsys, [*fit(tmp_path, "t.csv"), "--target", "y", "--seed", "1"])
        assert any(part in found for part in message.split("|"))
        assert nothing_written(tmp_path)

    def test_the_target_must_be_named(self, home, capsys):
        assert "name it with --target; the table has '" in refused(capsys, fit(home, "people.csv"))

    def test_a_target_near_the_largest_number(self, tmp_path, capsys, recwarn):
        (tmp_path / "t.csv").write_text(
            "a,y\n" + "".join(f"{at},{at % 7}e299\n" for at in range(60))
        )
        argv = [
            *fit(tmp_path, "t.csv"),
            "--target",
            "y",
            "--task",
            "regression",
            "--epochs",
            "2",
            "--json",
        ]
        assert main(argv) == 0
        test = json.loads(capsys.readouterr().out)["test"]
        assert 1e298 < test["mae"] <= test["rmse"] < 1e301
        assert not [warning for warning in recwarn if issubclass(warning.category, RuntimeWarning)]

    def test_huge_integers_and_many_categories(self, tmp_path):
        rows = 240
        lines = [
            f"{10**25 + at * 10**23},{2**63 + at},c{at % 10_000},{at % 2}" for at in range(rows)
        ]
        (tmp_path / "t.csv").write_text("\n".join(["big,bigger,many,y", *lines]))
        assert main([*fit(tmp_path, "t.csv"), "--target", "y", "--epochs", "2", "--quiet"]) == 0


def test_live_display_shows_the_state_and_scrolls_events():
    buffer = StringIO()
    callback = LiveCallback(Console(file=buffer, force_terminal=True, width=180))
    x = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
    y = (x[:, 0] * x[:, 1] > 0).long()
    run = train(
        x, y, task="classification", outputs=2, recipe=TrainConfig(epochs=20), callbacks=(callback,)
    )
    shown = buffer.getvalue()
    events = [record["text"] for record in run.history if record["event"] == "growth"]
    assert events
    assert all(text in shown for text in events)
    assert "20/20 epochs" in shown
    assert not re.search(
        r"\x1b\[32m[^\x1b]*epochs", shown
    )  # the bar doesn't take the events' colours
    assert "training ended: " in shown


def test_nothing_is_said_of_a_validation_that_is_not_made():
    record = {
        "train_loss": 0.5,
        "validation_loss": None,
        "validation_score": None,
        "architecture": [3],
        "parameters": 9,
    }
    assert state_line(record) == "loss 0.5, hidden 3, 9 parameters"
    assert short_state_line(record) == "hidden 3, loss 0.5"


@pytest.mark.parametrize(
    "argv", [[], ["dance"], ["fit"], ["fit", "wine", "--nonsense"], ["reproduce", "alchemy"]]
)
def test_bad_commands(capsys, argv):
    assert "--help" in refused(capsys, argv)


def test_version_and_help_in_a_process():
    code = "import sys; from senn.cli.main import main, parser; parser()\n"
    code += "assert not {'torch', 'numpy', 'pandas', 'rich', 'sklearn', 'matplotlib'} & set(sys.modules)\n"
    code += "main(['--version'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("senn ")
