"""Training on images, in memory and from the command line: what it writes, prints, predicts and refuses."""

import copy
import csv
import io
import json
import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from cli_cases import FILES, TWO_CLASSES, refused
from photo_cases import folder_of, stripes
from PIL import Image
from torch import nn

from senn.checkpoint import load, load_extra, save
from senn.cli.fit_images import prepare_images
from senn.cli.main import main
from senn.errors import SennError
from senn.nn import ConvNet
from senn.runs import FitOptions
from senn.training import TrainConfig, validation
from senn.training.augment import ChannelStats
from senn.training.batches import Inputs, Rows
from senn.training.image_training import (
    PRICES,
    build_conv_net,
    image_config,
    start_widths,
    train_images,
)
from senn.training.loop import fit_model
from senn.training.progress import LinesCallback
from senn_reproduce.image_sets import load_images

FIXED = image_config(grow=False, epochs=6, batch_size=16, hidden=(4, 4))


def tensors(count, **options):
    pixels, labels = stripes(count, **options)
    return torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()), torch.from_numpy(labels)


# -- in memory


def test_images_are_learnt():
    x, y = tensors(80)
    seen = torch.random.get_rng_state()
    run = train_images(x, y, classes=2, recipe=replace(FIXED, epochs=12))
    assert torch.equal(torch.random.get_rng_state(), seen)
    new, labels = tensors(40, seed=1)
    assert (run.model(ChannelStats.of(x)(new)).argmax(1) == labels).float().mean() > 0.9
    assert (run.architecture, run.model.training) == ((4, 4), False)


def test_a_net_grows_and_is_the_same_by_seed():
    x, y = tensors(64)
    recipe = image_config(
        epochs=5,
        batch_size=16,
        hidden=(2, 2),
        addition_rounds=(0.1, 0.3, 0.4),
        pruning_rounds=(0.6,),
        candidates_per_layer=8,
    )
    runs = [train_images(x, y, classes=2, recipe=replace(recipe, seed=seed)) for seed in (0, 0, 1)]
    states = [
        torch.cat([tensor.flatten().double() for tensor in run.model.state_dict().values()])
        for run in runs
    ]
    assert torch.equal(states[0], states[1])
    assert states[0].shape != states[2].shape or not torch.equal(states[0], states[2])
    growth = [record for record in runs[0].history if record["event"] == "growth"]
    assert growth
    assert {record["kind"] for record in growth} <= {"widen", "prune"}
    assert growth[-1]["architecture"] == list(runs[0].architecture) == list(runs[0].model.hidden)


def test_any_model_is_fitted_on_rows_of_any_shape(monkeypatch):
    x, y = tensors(48)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    )
    augmented = []
    inputs = Inputs(lambda bytes: bytes / 255, lambda x, generator: augmented.append(len(x)) or x)
    rows, held_out = Rows(x=x[:32], y=y[:32]), Rows(x=x[32:], y=y[32:])
    recipe = TrainConfig(epochs=3, batch_size=16, seed=1)
    recipe = replace(
        recipe,
        addition_rounds=(0.3,),
        pruning_rounds=(0.6,),
        max_scoring_samples=20,
        moves=("width", "prune"),
    )
    found = []
    for at_once in (500, 7):  # images are validated in parts, which changes nothing
        monkeypatch.setattr(validation, "IMAGES_AT_ONCE", at_once)
        generator = torch.Generator().manual_seed(1)
        net = copy.deepcopy(model)
        found.append(
            fit_model(
                net,
                rows,
                held_out,
                task="classification",
                recipe=recipe,
                generator=generator,
                inputs=inputs,
            )
        )
    assert augmented == 2 * [
        16,
        16,
        20,
        16,
        16,
        20,
        16,
        16,
    ]  # batches and probes, never what is held out
    assert found[0].validation == pytest.approx(found[1].validation)
    assert (found[0].architecture, found[0].history[-1]["architecture"]) == ((), [])
    with torch.no_grad():
        loss = nn.functional.cross_entropy(found[0].model(x[32:] / 255), y[32:]).item()
    assert found[0].validation["loss"] == pytest.approx(loss)


def test_the_widths_are_dealt_out_to_stages():
    assert [len(start_widths(side)) for side in (8, 13, 14, 28, 32, 56, 64)] == [
        2,
        2,
        3,
        5,
        5,
        7,
        7,
    ]
    model = build_conv_net(1, 32, 10, (3, 4, 5, 6, 7))
    assert model.hidden == (3, 4, 5, 6, 7)
    assert model.body(torch.zeros(1, 1, 32, 32)).shape == (1, 7, 8, 8)
    twin = ConvNet(1, ((3,), (4, 5), (6, 7)), 10)
    assert [*twin.state_dict()] == [*model.state_dict()]
    with pytest.raises(SennError, match="side 32 need at least 3 hidden layers, not 2"):
        build_conv_net(1, 32, 10, (3, 4))


def test_other_optimizers_start_from_their_own_rate():
    assert image_config().lr == 1e-2
    assert image_config(optimizer="sgd").lr is None
    x, y = tensors(32)
    for name in ("sgd", "natural-gradient"):
        run = train_images(
            x, y, classes=2, recipe=replace(image_config(optimizer=name), epochs=1, hidden=(2, 2))
        )
        assert np.isfinite(run.history[0].get("train_loss", 0.0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pixels": torch.zeros(4, 3, 8, 8)}, "must be bytes of square images"),
        ({"pixels": torch.zeros(4, 3, 8, 9, dtype=torch.uint8)}, "must be bytes of square images"),
        (
            {"labels": torch.zeros(3, dtype=torch.long)},
            "labels must be 4 class numbers from 0 to 1",
        ),
        ({"labels": torch.tensor([0, 1, 2, 0])}, "labels must be 4 class numbers"),
    ],
)
def test_bad_images_are_named(change, message):
    given = {
        "pixels": torch.zeros(4, 3, 8, 8, dtype=torch.uint8),
        "labels": torch.zeros(4, dtype=torch.long),
    }
    given |= change
    with pytest.raises(SennError, match=message):
        train_images(given["pixels"], given["labels"], classes=2)


def test_a_budget_below_the_start_is_refused():
    x, y = tensors(32)
    with pytest.raises(SennError, match="max_params is 10, but the net starts with"):
        train_images(x, y, classes=2, recipe=image_config(max_params=10))


# -- from the command line


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder of images, some unreadable, and a run on it."""
    root = tmp_path_factory.mktemp("home")
    pictures = folder_of(root / "stripes", 60)
    (pictures / "down" / "broken.png").write_text("no image")
    (pictures / "readme.txt").write_text("mine")
    assert (
        main(["fit", str(pictures), "--out", str(root / "run"), "--epochs", "12", "--quiet"]) == 0
    )
    return root


def test_a_run_says_all(home, capsys):
    assert sorted(path.name for path in (home / "run").iterdir()) == FILES
    results = json.loads((home / "run" / "results.json").read_text())
    assert (results["task"], results["optimizer"]) == ("classification", "adamw")
    assert set(results["test"]) == TWO_CLASSES
    data = results["data"]
    assert (data["name"], data["classes"], data["shape"]) == (
        "stripes",
        ["across", "down"],
        [12, 12, 3],
    )
    assert (data["rows"], data["train_rows"], data["test_rows"], data["flip"]) == (60, 48, 12, True)
    assert [one["file"] for one in data["left_out"]] == ["down/broken.png"]
    model = load(home / "run")
    assert isinstance(model, ConvNet)
    assert results["architecture"] == list(model.hidden)
    assert results["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert main(["show", str(home / "run")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert (
        lines[0]
        == "stripes: classification of images of 12 x 12 x 3 into 2 classes, 48 training images"
    )
    assert lines[1].startswith("test (12 images) ")
    assert lines[2].startswith("accuracy ")


def test_new_images_are_predicted(home, tmp_path, capsys):
    new = folder_of(tmp_path / "new", 12, side=12, seed=5)
    (new / "note.txt").write_text("no image")
    out = tmp_path / "predictions.csv"
    argv = ["predict", str(home / "run"), str(new), str(home / "stripes" / "down" / "001.png")]
    assert main([*argv, "--proba", "--out", str(out)]) == 0
    complaint = capsys.readouterr().err.splitlines()
    assert complaint[0] == "senn: left out 1 image that can't be read:"
    assert complaint[1].startswith(f"senn: {str(new / 'note.txt')!r} can't be decoded")
    rows = list(csv.DictReader(out.open()))
    assert len(rows) == 13
    assert rows[-1]["file"] == str(home / "stripes" / "down" / "001.png")
    assert list(rows[0]) == ["file", "prediction", "probability across", "probability down"]
    for row in rows:
        chances = {name: float(row[f"probability {name}"]) for name in ("across", "down")}
        assert sum(chances.values()) == pytest.approx(1)
        assert row["prediction"] == max(chances, key=chances.get)
    hits = [row["prediction"] == row["file"].split("/")[-2] for row in rows]
    assert np.mean(hits) > 0.8


def test_predictions_are_the_networks(home, capsys):
    path = home / "stripes" / "across" / "000.png"
    capsys.readouterr()
    assert main(["predict", str(home / "run"), str(path), "--proba"]) == 0
    (row,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    record = load_extra(home / "run")["encoder"]
    image = torch.from_numpy(np.asarray(Image.open(path)).transpose(2, 0, 1).copy())[None]
    chances = load(home / "run")(
        ChannelStats(mean=tuple(record["mean"]), std=tuple(record["std"]))(image)
    ).softmax(-1)[0]
    assert float(row["probability across"]) == pytest.approx(chances[0].item(), abs=1e-6)


def test_predict_refuses(home, tmp_path, capsys):
    run = home / "run"
    assert "there is no file or folder" in refused(capsys, ["predict", run, tmp_path / "none.png"])
    (tmp_path / "a.png").write_text("?")
    assert "no image can be read: " in refused(capsys, ["predict", run, tmp_path / "a.png"])
    record = load_extra(run)["encoder"]
    save(tmp_path / "damaged", load(run), {"encoder": {**record, "side": -1}})
    assert "encoding of the images is damaged" in refused(
        capsys, ["predict", tmp_path / "damaged", tmp_path / "a.png"]
    )
    assert main(["fit", "wine", "--out", str(tmp_path / "wine"), "--epochs", "1", "--quiet"]) == 0
    assert "one table, not of 2" in refused(
        capsys, ["predict", tmp_path / "wine", "a.csv", "b.csv"]
    )


def test_dry_run_writes_nothing(home, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    argv = ["fit", str(home / "stripes"), "--dry-run", "--image-size", "16", "--no-flip"]
    assert main(argv) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [
        "stripes: 60 images (48 to train on, 12 for the test), 2 classes, taken as 16 x 16 x 3",
        "  to train on: across (24), down (24)",
    ]
    assert "  note: left out 1 image that can't be read:" in lines
    assert any("one more unit has up to " in line for line in lines)
    assert main([*argv, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)["plan"]
    assert plan["price_per_unit"] == PRICES.price(plan["parameters_per_unit"], plan["fitted_rows"])
    assert main([*argv, "--json", "--kappa", "2"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["plan"]["price_per_unit"] == 100 * plan["price_per_unit"]  # instead of 0.02
    assert (document["data"]["flip"], document["plan"]["architecture"]) == (False, [16, 16, 16])
    # a unit more: 9 weights from each of 16 channels, 2 of its norm, 9 weights to each of 16
    assert document["plan"]["parameters_per_unit"] == 9 * 16 + 2 + 9 * 16
    assert list(tmp_path.iterdir()) == []


def test_same_seed_same_run_within_a_budget(home, capsys):
    documents = []
    argv = [
        "fit",
        str(home / "stripes"),
        "--out",
        str(home / "again"),
        "--epochs",
        "2",
        "--json",
        "--overwrite",
    ]
    for seed in (0, 0, 1):
        assert (
            main([*argv, "--max-params", "3100", "--test-fraction", "0.3", "--seed", str(seed)])
            == 0
        )
        documents.append(json.loads(capsys.readouterr().out))
    assert documents[0]["test"] == documents[1]["test"] != documents[2]["test"]
    assert all(document["parameters"] <= 3100 for document in documents)
    assert documents[0]["data"]["test_rows"] == 18


def test_the_command_asks_the_prices_of_the_recipe(home):
    options = FitOptions(data=str(home / "stripes"), image_size=16)
    assert prepare_images(options).recipe == image_config()
    dearer = prepare_images(replace(options, kappa=0.5)).recipe
    assert dearer == image_config(policy=replace(PRICES, kappa=0.5))


def test_an_interruption_keeps_the_best_net(home, capsys, monkeypatch):
    monkeypatch.setattr("senn.cli.fit_results.SCORED", 60.0)  # however busy the machine is

    def interrupt(self, record):
        if record["epoch"] == 2:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(LinesCallback, "on_epoch", interrupt)
    assert (
        main(
            ["fit", str(home / "stripes"), "--out", str(home / "cut"), "--epochs", "50", "--quiet"]
        )
        == 130
    )
    assert "interrupted; the best network so far is saved" in capsys.readouterr().err
    assert json.loads((home / "cut" / "results.json").read_text())["interrupted"]
    assert {path.name for path in (home / "cut").iterdir()} - {"growth.png"} == {
        *FILES[1:],
        "unfinished",
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--target", "x"], "--target is for tables, and "),
        (["--column", "a=number"], "--column is for tables, and "),
        (["--task", "regression"], "senn only classifies images"),
        (["--image-size", "4"], "--image-size must be from 8 to 512, not 4"),
        (["--image-size", "0"], "'0' is not a whole number above 0"),
        (["--optimizer", "magic"], "unknown optimizer 'magic'"),
        (["--max-params", "5"], "--max-params 5 is less than the"),
        (["--max-flops", "5"], "--max-flops 5 is less than the"),
        (["--tau", "1"], "--tau belongs to --policy paper"),
    ],
)
def test_bad_options(home, tmp_path, capsys, options, message):
    assert message in refused(
        capsys, ["fit", home / "stripes", "--out", tmp_path / "out", *options]
    )
    assert list(tmp_path.iterdir()) == []


def test_options_of_images_with_a_table(tmp_path, capsys):
    for option in (["--image-size", "32"], ["--data-dir", str(tmp_path)], ["--no-flip"]):
        message = refused(capsys, ["fit", "wine", "--out", tmp_path / "out", *option])
        assert f"{option[0]} is for images, and 'wine' is a table" in message


def test_bad_folders(tmp_path, capsys):
    assert "is empty" in refused(capsys, ["fit", tmp_path])
    folder_of(tmp_path / "few", 6)
    assert "there are 6 images; at least 8 are needed" in refused(capsys, ["fit", tmp_path / "few"])
    # The folder around it, as archives have one, is that of the same images.
    assert "there are 6 images; at least 8 are needed" in refused(capsys, ["fit", tmp_path])


def test_a_known_set_by_name(tmp_path, capsys):
    for name in ("images-idx3", "labels-idx1"):
        (tmp_path / f"train-{name}-ubyte").write_bytes(b"")
    message = refused(capsys, ["fit", "mnist", "--data-dir", tmp_path])
    assert "lacks t10k-images-idx3-ubyte* and t10k-labels-idx1-ubyte* for mnist" in message


@pytest.mark.skipif(
    not os.environ.get("SENN_DATA"), reason="SENN_DATA names no folder with CIFAR-10"
)
def test_photographs_of_cifar_10(tmp_path, monkeypatch, capsys):
    images = load_images("cifar-10").train
    rows = np.flatnonzero(np.isin(images.labels, [1, 6]))[:400]  # automobiles and frogs
    for row in rows:
        folder = tmp_path / "photos" / str(images.labels[row])
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images.pixels[row]).save(folder / f"{row}.png")
    argv = [
        "fit",
        str(tmp_path / "photos"),
        "--image-size",
        "12",
        "--epochs",
        "8",
        "--out",
        str(tmp_path / "run"),
    ]
    assert main([*argv, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["test"]["accuracy"] > 0.75
