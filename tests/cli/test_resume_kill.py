"""`kill -9` at any moment, then `senn fit --resume`: the run that comes out is the one that nothing has disturbed.

`benchmarks/kills.py` tries more moments, other signals and several processes.
"""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from kill_cases import PACKAGES
from PIL import Image

from senn import atomic_files
from senn.cli.main import main
from senn.runs import read

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes can't be forked here")
TABLE = ["wine", "--epochs", "5", "--seed", "3"]
TRIALS = {
    "table": (TABLE, {"surgery": 1, "runs": 1}),
    "natural gradient": ([*TABLE, "--optimizer", "natural-gradient"], {"training": 1}),
    "images": (["IMAGES", "--epochs", "2"], {"scoring": 1}),
}
"""A run, and how often it is killed at a random call of a function in each package."""


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Stripes of two kinds."""
    draw = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("images")
    for kind in (0, 1):
        (folder / f"kind-{kind}").mkdir()
        for number in range(100):
            pixels = np.zeros((8, 8), np.uint8)
            (pixels if kind else pixels.T)[draw.integers(8)] = 255
            Image.fromarray(pixels).save(folder / f"kind-{kind}" / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """What carries out a list of trials, as a function, and the folder of their runs."""
    folder = tmp_path_factory.mktemp("runs")
    script = Path(__file__).parents[1] / "helpers" / "kill_cases.py"
    argv = [sys.executable, str(script), str(folder)]
    with (folder / "errors").open("w+") as errors:
        with subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
        ) as process:

            def served(trials):
                print(json.dumps(trials), file=process.stdin, flush=True)
                answer = process.stdout.readline()
                assert answer, (folder / "errors").read_text()
                return json.loads(answer)

            yield served, folder
            process.stdin.close()
        assert process.returncode == 0


def content(run):
    """All that a finished run's folder says, but for its seconds."""
    history = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    results = json.loads((run / "results.json").read_text())
    for record in (*history, results):
        record.pop("seconds", None)
    for name in ("checksum", "files"):
        results.pop(name)
    files = {name: (run / name).read_bytes() for name in ("model.json", "model.safetensors")}
    return results, history, files, sorted(entry.name for entry in run.iterdir())


def test_four_of_four_kills_cost_nothing(server, images):
    served, folder = server
    argv = {
        name: [str(images) if one == "IMAGES" else one for one in of]
        for name, (of, _) in TRIALS.items()
    }
    wholes = served(
        [
            {"argv": of, "package": "none", "place": f"whole-{number}"}
            for number, of in enumerate(argv.values())
        ]
    )
    assert all(whole["first"]["code"] == 0 for whole in wholes), wholes
    expected, trials = [], []
    draw = random.Random(0)
    for number, (name, (_, packages)) in enumerate(TRIALS.items()):
        counts = wholes[number]["first"]["counts"]
        assert min(counts[package] for package in PACKAGES) > 50, counts
        trials += [
            {"argv": argv[name], "package": package, "at": draw.randint(1, counts[package])}
            for package, times in packages.items()
            for _ in range(times)
        ]
        whole = content(folder / f"whole-{number}")
        assert any(record["event"] == "growth" for record in whole[1])
        expected += [whole] * sum(packages.values())
    assert len(trials) == 4
    done = served(
        [{**trial, "resume": True, "place": number} for number, trial in enumerate(trials)]
    )
    for number, (trial, one) in enumerate(zip(trials, done, strict=True)):
        assert one["first"]["code"] == -9, (trial, one)
        assert content(folder / str(number)) == expected[number], (trial, one)
    assert sum("checkpoint" in " ".join(one["left"] or ()) for one in done) >= 2


def test_another_process_goes_on_from_another_working_directory(server, tmp_path, capsys):
    """With a table that is named by a relative path."""
    served, folder = server
    rows = "".join(f"{at % 7},{at % 5},{'ab'[at % 7 > 3]}\n" for at in range(300))
    (tmp_path / "table.csv").write_text("x,y,kind\n" + rows)
    argv = ["table.csv", "--target", "kind", "--epochs", "6"]
    killed = {"argv": argv, "package": "runs", "at": 200, "cwd": str(tmp_path), "place": "relative"}
    (done,) = served([killed])
    assert done["first"]["code"] == -9
    saved = read(run := folder / "relative")
    assert saved.results is None
    assert saved.unfinished
    assert saved.options.data == f"{tmp_path}/table.csv"
    assert main(["fit", "--resume", str(run)]) == 0
    assert "note: resumed after step" in capsys.readouterr().out
    assert sorted(entry.name for entry in run.iterdir()) == [
        "growth.png", "history.jsonl", "model.json", "model.safetensors", "results.json", "test.json"
    ]  # fmt: skip
    results = atomic_files.read_checksummed_json(run / "results.json", "senn-run", 2)
    assert not results["interrupted"]


def test_closed_streams_end_no_training_and_take_no_files_number(server):
    served, folder = server
    (done,) = served([{"argv": ["wine", "--epochs", "1"], "closed": True, "place": "closed"}])
    assert done["first"]["code"] == 0
    assert main(["show", str(folder / "closed")]) == 0  # every file is intact
