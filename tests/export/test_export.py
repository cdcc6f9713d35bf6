"""Models as graphs and as folders of plain PyTorch: read back and compared, written whole or not at all."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from cli_cases import people
from growth_cases import FEW, Take, X, Y
from PIL import Image
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

import senn
from senn.data import TableEncoder
from senn.data.images import ImageEncoder
from senn.errors import SennError
from senn.export import to_onnx, to_pt2, to_python
from senn.export.templates import image_template, table_template
from senn.nn import MLP, ConvNet
from senn.training.augment import ChannelStats


@pytest.fixture(scope="module")
def grown() -> nn.Module:
    """A network after a widening and an inserted layer, in training mode."""
    torch.manual_seed(0)
    model = MLP(64, (3,), 10, activation="prelu", norm="batch", dropout=0.5, shortcut=True)
    optimizer = torch.optim.Adam(model.parameters())
    for policy in (Take("widen", 2), Take("insert", detail="residual")):
        grower = senn.Grower(
            model, optimizer, loss=F.cross_entropy, policy=policy, candidate_config=FEW
        )
        assert grower.grow([(X, Y)])
    return model


def expected(model: nn.Module, x: Tensor) -> Tensor:
    was, _ = model.training, model.eval()
    with torch.no_grad():
        result: Tensor = model(x)
    model.train(was)
    return result


@pytest.mark.parametrize("write", [to_pt2, to_onnx, to_python])
def test_looking_for_a_way_out_leaves_the_model_as_it_was(
    grown: nn.Module, write: Any, tmp_path: Path
) -> None:
    if write is to_onnx:
        pytest.importorskip("onnxscript")
        pytest.importorskip("onnxruntime")
    before = {name: x.clone() for name, x in grown.state_dict().items()}
    random = torch.random.get_rng_state()
    done = write(grown, tmp_path / "mit Ümlaut" / "net", X[:1])
    assert done.samples == (2, 3)
    assert done.difference <= 1e-5
    assert "read back by" in str(done)
    assert "\n" not in str(done)
    assert torch.equal(torch.random.get_rng_state(), random)
    assert grown.training
    assert grown.body[2].training
    assert all(torch.equal(x, before[name]) for name, x in grown.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in grown.parameters())
    assert [path.name for path in tmp_path.rglob("*") if path.name.startswith(".")] == []


def test_a_program_takes_any_number_of_samples_and_needs_no_senn(
    grown: nn.Module, tmp_path: Path
) -> None:
    path = tmp_path / "net.pt2"
    done = to_pt2(grown, path, X[:4], metadata={"classes": ["ä"]})
    assert done.difference == 0
    torch.save({"x": X[:7], "y": expected(grown, X[:7])}, tmp_path / "batch.pt")
    script = (
        "import json, sys, torch; found = {'metadata.json': ''}\n"
        f"model = torch.export.load({str(path)!r}, extra_files=found).module()\n"
        f"batch = torch.load({str(tmp_path / 'batch.pt')!r})\n"
        "assert torch.equal(model(batch['x']), batch['y']) and len(model(batch['x'][:1])) == 1\n"
        "assert json.loads(found['metadata.json']) == {'classes': ['ä']} and 'senn' not in sys.modules\n"
        "import senn.export\n"
        "assert not {'onnx', 'onnxruntime', 'huggingface_hub', 'pandas'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_onnx_has_names_and_metadata_and_any_number_of_samples(
    grown: nn.Module, tmp_path: Path
) -> None:
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    path = tmp_path / "net.onnx"
    to_onnx(
        grown,
        path,
        X[:4],
        input_names=["digits"],
        output_names=["logits"],
        metadata={"classes": '["ä"]'},
    )
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (given,), (got,) = session.get_inputs(), session.get_outputs()
    assert (given.name, given.shape, got.name, got.shape) == (
        "digits",
        ["batch", 64],
        "logits",
        ["batch", 10],
    )
    assert session.get_modelmeta().custom_metadata_map == {"classes": '["ä"]', "producer": "senn"}
    (found,) = session.run(None, {"digits": X[:5].numpy()})
    assert_close(torch.from_numpy(found), expected(grown, X[:5]), rtol=1e-4, atol=1e-5)


class Pair(nn.Module):
    """Two inputs and a number for all samples to a mapping."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(2, 3), nn.Linear(4, 3)

    def forward(self, left: Tensor, right: Tensor, scale: Tensor) -> dict[str, Tensor]:
        sum_ = self.a(left) + self.b(right)
        return {"sum": sum_ * scale, "product": self.a(left) * self.b(right)}


@pytest.mark.parametrize("write", [to_pt2, to_onnx])
def test_models_of_several_inputs_and_outputs_become_graphs(write: Any, tmp_path: Path) -> None:
    if write is to_onnx:
        pytest.importorskip("onnxscript")
        pytest.importorskip("onnxruntime")
    inputs = {"right": torch.randn(3, 4), "left": torch.randn(3, 2), "scale": torch.tensor(0.5)}
    done = write(Pair(), tmp_path / "net", inputs)
    assert done.samples == (3, 5)
    assert done.difference <= 1e-6


def test_without_onnx_runtime_it_is_said_that_nothing_was_checked(
    grown: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxscript")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    done = to_onnx(nn.Linear(2, 2), tmp_path / "net.onnx", torch.randn(3, 2))
    assert done.difference is None
    assert str(done).endswith(
        "written, but not checked: onnxruntime isn't installed (pip install onnxruntime)"
    )
    assert (tmp_path / "net.onnx").stat().st_size
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(SennError, match=r"'onnx': pip install 'senn\[export\]'"):
        to_onnx(grown, tmp_path / "other.onnx", X[:2])


def test_what_onnx_runtime_has_no_kernels_for_is_refused_in_a_sentence(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    with pytest.raises(SennError, match="ONNX Runtime can't read what was exported: ") as caught:
        to_onnx(
            nn.Linear(2, 2).bfloat16(),
            tmp_path / "net.onnx",
            torch.randn(3, 2, dtype=torch.bfloat16),
        )
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


class Fickle(nn.Module):
    """Says something else every time it is asked in Python, which no graph can."""

    def __init__(self) -> None:
        super().__init__()
        self.count, self.map = 0, nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        result: Tensor = self.map(x) * self.count
        return result


class Fixed(nn.Module):
    """For batches of four only."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.arange(4)[:, None]


class Misnamed(nn.Module):
    """With a part that is called like an attribute of torch.fx's own modules."""

    def __init__(self) -> None:
        super().__init__()
        self.code = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.code(x)
        return result


@pytest.mark.parametrize(
    ("model", "inputs", "sentence"),
    [
        (Misnamed(), torch.randn(4, 2), "torch.export can't read back what it wrote: "),
        (Fickle(), torch.randn(4, 2), "what was exported isn't the model"),
        (Fixed(), torch.randn(4, 2), "can't be exported for batches of any size"),
        (nn.Linear(2, 2), torch.randn(0, 2), "example batch"),
        (nn.Linear(2, 2), torch.full((2, 2), math.nan), "not finite"),
        (nn.Linear(2, 2), torch.randn(2, 3), "can't be exported"),
    ],
)
def test_what_does_not_compute_the_same_is_refused_and_gone(
    model: nn.Module, inputs: Tensor, sentence: str, tmp_path: Path
) -> None:
    (tmp_path / "net.pt2").write_text("old")
    with pytest.raises(SennError, match=sentence) as caught:
        to_pt2(model, tmp_path / "net.pt2", inputs, overwrite=True)
    assert "\n" not in str(caught.value)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_nothing_is_replaced_unasked_and_nothing_else_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = nn.Linear(2, 2), torch.randn(3, 2)
    path = tmp_path / "net"
    to_python(model, path, x)
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    with pytest.raises(SennError, match="is there already"):
        to_python(model, path, x)
    with pytest.raises(SennError, match="is a folder already"):
        to_pt2(model, path, x, overwrite=True)
    with pytest.raises(SennError, match="has no name"):
        to_pt2(model, "/", x)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").touch()
    with pytest.raises(SennError, match="holds no export"):
        to_python(model, tmp_path / "photos", x, overwrite=True)
    monkeypatch.setattr(Path, "replace", _full)
    with pytest.raises(SennError, match="can't be written: No space left"):
        to_python(nn.Linear(2, 2), path, x, overwrite=True)
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before
    monkeypatch.undo()
    to_python(nn.Linear(2, 2), path, x, overwrite=True)
    assert (path / "model.safetensors").read_bytes() != before["model.safetensors"]
    assert {file.name for file in tmp_path.iterdir()} == {"net", "photos"}


def _full(self: Path, target: Path) -> Path:
    raise OSError(28, "No space left on device")


def test_a_folder_without_examples_says_so_and_one_that_cannot_be_read_is_not_written(
    tmp_path: Path,
) -> None:
    done = to_python(MLP(3, (2,), 2), tmp_path / "net", name="Small")
    assert str(done).endswith("not checked: there are no example inputs")
    assert "class Small(nn.Module):" in (tmp_path / "net" / "net.py").read_text()
    with safe_open(tmp_path / "net" / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
    with pytest.raises(SennError, match="preprocessing can't be written as JSON"):
        to_python(nn.Linear(1, 1), tmp_path / "other", preprocessing={"x": math.nan})
    assert not (tmp_path / "other").exists()


# -- what is pasted into net.py


def test_rows_are_encoded_as_in_training_to_the_last_bit() -> None:
    frame = people().assign(
        when=pd.date_range("2020-01-01", periods=80, freq="37h", tz="Europe/Berlin"),
        code=[3.0, 4.0, None, 3.0] * 20,
    )
    frame.loc[3, "when"], frame.loc[5, "since"], frame.loc[7, "color"] = pd.NaT, "?", None
    frame.loc[8, "color"] = "rare"
    encoder = TableEncoder.fit(frame, "kind", kinds={"code": "category"})
    assert {column.kind for column in encoder.columns} == {
        "number",
        "category",
        "date",
        "boolean",
        "dropped",
    }
    record = json.loads(json.dumps(encoder.to_dict()))
    frame.loc[9, "color"], frame.loc[10, "größe"] = "unseen", 1e300
    found = np.array(
        table_template.encode(frame.to_dict("records"), record["columns"]), dtype=np.float32
    )
    np.testing.assert_array_equal(found, encoder.transform(frame))
    values = np.random.default_rng(0).normal(size=(5, 2))
    assert table_template.decode(values.tolist(), record["target"]) == encoder.target.decode(values)


@pytest.mark.parametrize(
    ("column", "cell"),
    [
        ("größe", "tall"),
        ("größe", "1_0"),
        ("größe", math.inf),
        ("since", "soon"),
        ("member", "may"),
    ],
)
def test_a_cell_that_is_not_understood_is_named(column: str, cell: Any) -> None:
    record = TableEncoder.fit(people(), "kind").to_dict()
    rows = people(1).astype(object).to_dict("records")
    with pytest.raises(ValueError, match=f"column '{column}': .* is no "):
        table_template.encode([{**rows[0], column: cell}], record["columns"])


def test_images_are_encoded_as_in_training_to_the_last_bit(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    paths = []
    for at, (mode, size) in enumerate(
        [("RGB", (20, 11)), ("L", (7, 7)), ("RGBA", (9, 30)), ("P", (8, 8))]
    ):
        bytes_ = draw.integers(0, 256, (size[1], size[0], 4), dtype=np.uint8)
        paths.append(str(tmp_path / f"{at}.png"))
        Image.fromarray(bytes_).convert(mode).save(paths[-1])
    for channels in (1, 3):
        mean, std = (0.4, 0.5, 0.3)[:channels], (0.2, 0.1, 0.3)[:channels]
        encoder = ImageEncoder(
            side=8, channels=channels, mean=mean, std=std, labels=("a", "b"), flip=False
        )
        (_, pixels, left_out) = next(encoder.read(paths))
        assert not left_out
        wanted = ChannelStats(mean=encoder.mean, std=encoder.std)(
            torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())
        )
        assert torch.equal(image_template.encode(paths, encoder.to_dict()), wanted)


@pytest.mark.parametrize("name", ["a" * 47 + "\\" * 9, 'say "this"\nand {that}', "\\N{x}" * 20])
def test_any_column_can_be_the_target(tmp_path: Path, name: str) -> None:
    """Its name stands in the docstring of the module."""
    frame = pd.DataFrame({"x": [1.0, 2.5] * 5, name: ["a", "b"] * 5})
    record = TableEncoder.fit(frame, name).to_dict()
    to_python(MLP(1, (2,), 2), tmp_path / "net", torch.randn(3, 1), preprocessing=record)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compile((tmp_path / "net" / "net.py").read_text(), "net.py", "exec")


def test_the_written_module_is_formatted_and_clean(tmp_path: Path) -> None:
    table = TableEncoder.fit(people(), "kind")
    to_python(MLP(len(table.features), (2,), 2), tmp_path / "table", preprocessing=table.to_dict())
    image = ImageEncoder(side=8, channels=1, mean=(0.4,), std=(0.2,), labels=("a", "b"), flip=False)
    to_python(ConvNet(1, ((2,),), 2), tmp_path / "images", preprocessing=image.to_dict())
    options = ["--line-length", "100", "--isolated", "--no-cache"]
    files = [str(tmp_path / name / "net.py") for name in ("table", "images")]
    for command in (["format", "--check"], ["check", "--select", "E,F,I,UP,B"]):
        subprocess.run([sys.executable, "-m", "ruff", *command, *options, *files], check=True)
