"""`senn export`: what a run's folder becomes, what it says, and what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from cli_cases import people, refused
from photo_cases import folder_of
from torch import nn

import senn
from senn.checkpoint import load_extra
from senn.cli.main import main
from senn.data import TableEncoder


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on a table with a column of every kind, in a folder with a name that takes quoting."""
    place = tmp_path_factory.mktemp("läufe und mehr")
    people(60).to_csv(place / "people.csv", index=False)
    argv = [
        "fit",
        place / "people.csv",
        "--target",
        "kind",
        "--out",
        place / "run a",
        "--epochs",
        3,
        "--quiet",
    ]
    assert main([str(arg) for arg in argv]) == 0
    return place / "run a"


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on images."""
    place = tmp_path_factory.mktemp("photos")
    folder_of(place / "stripes", count=20)
    argv = ["fit", place / "stripes", "--out", place / "run", "--epochs", 1, "--quiet"]
    assert main([str(arg) for arg in argv]) == 0
    return place / "run"


def export(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    capsys.readouterr()
    assert main(["export", *map(str, argv)]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert said.out.count("\n") == 1
    return said.out


def test_a_table_is_predicted_without_senn_as_with_it(
    table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = export(capsys, table, "--to", "python")
    out = table.with_name("run a-python")
    assert (
        said
        == f"{out}: read back by its net.py and run on batches of 8 and 3; outputs are the same to the last bit\n"
    )
    assert {file.name for file in out.iterdir()} == {
        "net.py",
        "model.safetensors",
        "preprocessing.json",
    }
    new = table.parent / "people.csv"
    assert main(["predict", str(table), str(new)]) == 0
    wanted = capsys.readouterr().out.split()[1:]
    script = (
        "import sys, runpy; sys.modules |= dict.fromkeys(['senn', 'pandas']); sys.argv[:] = sys.argv[1:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    command = [sys.executable, "-c", script, str(out / "net.py"), str(new)]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert found == wanted
    assert len(found) == 60
    known = json.loads((out / "preprocessing.json").read_text(encoding="utf-8"))
    assert known["features"] == TableEncoder.from_dict(load_extra(table)["encoder"]).features


def test_images_are_predicted_without_senn_as_with_it(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = photos.parent / "export"
    export(capsys, photos, "--to", "python", "--out", out)
    files = sorted(map(str, (photos.parent / "stripes").rglob("*.png")))
    assert main(["predict", str(photos), *files]) == 0
    wanted = [line.split(",")[1] for line in capsys.readouterr().out.splitlines()[1:]]
    namespace = {"__name__": "net", "__file__": str(out / "net.py")}
    exec((out / "net.py").read_text(encoding="utf-8"), namespace)
    assert namespace["predict"](files) == wanted


@pytest.mark.parametrize("kind", ["table", "photos"])
def test_onnx_says_what_goes_in_and_comes_out(
    kind: str, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    run: Path = request.getfixturevalue(kind)
    said = export(capsys, run, "--to", "onnx")
    assert (
        "read back by ONNX Runtime and run on batches of 8 and 3; outputs differ by at most" in said
    )
    session = runtime.InferenceSession(
        run.with_name(f"{run.name}.onnx"), providers=["CPUExecutionProvider"]
    )
    (given,), (got,) = session.get_inputs(), session.get_outputs()
    assert given.name == ("images" if kind == "photos" else "features")
    assert got.name == "logits"
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about["classes"]) == (
        ["across", "down"] if kind == "photos" else ["big", "small"]
    )
    record = json.loads(about["preprocessing"])
    encoder = load_extra(run)["encoder"]
    assert {**record, **encoder} == record
    x = np.random.default_rng(0).normal(size=(2, *given.shape[1:])).astype(np.float32)
    with torch.no_grad():
        wanted = senn.load(run)(torch.from_numpy(x))
    torch.testing.assert_close(torch.from_numpy(session.run(None, {given.name: x})[0]), wanted)


def test_an_earlier_export_is_replaced_only_if_asked_for(
    table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = table.with_name("net.pt2")
    export(capsys, table, "--to", "pt2", "--out", out)
    before = out.read_bytes()
    assert "is there already" in refused(capsys, ["export", table, "--to", "pt2", "--out", out])
    assert out.read_bytes() == before
    export(capsys, table, "--to", "pt2", "--out", out, "--overwrite")
    assert "isn't empty and holds no export" in refused(
        capsys, ["export", table, "--to", "python", "--out", table.parent, "--overwrite"]
    )
    assert "is the folder of the run" in refused(
        capsys, ["export", table, "--to", "python", "--out", table]
    )


def test_bad_folders_and_targets_are_refused_in_a_sentence(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def sentence(folder: Path, *argv: object) -> str:
        return refused(
            capsys, ["export", folder, *(argv or ("--to", "python")), "--out", tmp_path / "out"]
        )

    assert "invalid choice: 'tflite'" in sentence(table, "--to", "tflite")
    assert "--to" in sentence(table, "--overwrite")
    assert "--license is for --to hub" in sentence(table, "--to", "onnx", "--license", "mit")
    assert "holds no saved model" in sentence(tmp_path / "nowhere")
    (tmp_path / "run" / "unfinished").mkdir(parents=True)
    assert "isn't finished" in sentence(tmp_path / "run")
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for file in ("model.json", "model.safetensors", "results.json"):
        (damaged / file).write_bytes((table / file).read_bytes())
    (damaged / "results.json").write_text("{")
    assert "results.json' is damaged" in sentence(damaged, "--to", "hub")
    (damaged / "model.safetensors").write_bytes(b"x")
    assert "is damaged" in sentence(damaged)
    senn.save(tmp_path / "own", nn.Linear(2, 2))
    assert "wasn't made by 'senn fit'" in sentence(tmp_path / "own", "--to", "onnx")
    senn.save(tmp_path / "odd", nn.Linear(2, 2), {"encoder": {"columns": 3}})
    assert "damaged" in sentence(tmp_path / "odd")
    assert not (tmp_path / "out").exists()


def test_a_model_of_ones_own_becomes_a_folder_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    senn.save(tmp_path / "own", nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)))
    assert "not checked: there are no example inputs" in export(
        capsys, tmp_path / "own", "--to", "python"
    )
    monkeypatch.chdir(tmp_path / "own")
    export(capsys, ".", "--to", "hub")
    assert {path.name for path in tmp_path.iterdir()} == {"own", "own-python", "own-hub"}


def test_numbers_come_back_in_their_own_unit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw = np.random.default_rng(0)
    frame = pd.DataFrame({"x": draw.normal(size=40)}).assign(y=lambda t: 1000 * t.x + 5)
    frame.to_csv(tmp_path / "line.csv", index=False)
    argv = [
        "fit",
        tmp_path / "line.csv",
        "--target",
        "y",
        "--out",
        tmp_path / "run",
        "--epochs",
        2,
        "--quiet",
    ]
    assert main([str(arg) for arg in argv]) == 0
    export(capsys, tmp_path / "run", "--to", "python")
    assert main(["predict", str(tmp_path / "run"), str(tmp_path / "line.csv")]) == 0
    wanted = [float(cell) for cell in capsys.readouterr().out.split()[1:]]
    namespace = {"__name__": "net", "__file__": str(tmp_path / "run-python" / "net.py")}
    exec((tmp_path / "run-python" / "net.py").read_text(encoding="utf-8"), namespace)
    found = namespace["predict"](namespace["read_rows"](tmp_path / "line.csv"))
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
