"""Short forms of figure 4, on images made up for the purpose, and on a few of MNIST where its files are."""

import json
import os
from dataclasses import replace

import numpy as np
import pytest
import torch

from senn.data.images import Images, ImageSet
from senn.errors import SennError
from senn.training import TrainConfig
from senn_reproduce import mnist, mnist_sizes
from senn_reproduce.image_sets import load_images
from senn_reproduce.mnist_sizes import compare, rank_correlation

RECIPE = TrainConfig(
    hidden=(3,),
    shortcut=False,
    epochs=5,
    batch_size=50,
    addition_rounds=(0.1, 0.4),
    pruning_rounds=(0.6,),
)
QUICK = mnist.Settings(
    natural=replace(RECIPE, optimizer="natural-gradient", optimizer_options={"damping": 0.1}),
    adam=replace(RECIPE, lr=3e-3),
    images=300,
    held_out=100,
    looks=6,
)
FEW = mnist_sizes.Settings(images=(12, 40), fixed=(2, 6), recipe=replace(RECIPE, moves=mnist.WIDTH))


def blobs(train=600, test=200):
    """Ten classes of 28 x 28 pixels: two bright squares each, under noise."""
    draw = np.random.default_rng(0)
    places = draw.integers(0, 22, (10, 2, 2))

    def part(count):
        labels = draw.integers(0, 10, count)
        pixels = draw.integers(0, 120, (count, 28, 28, 1))
        for image, label in zip(pixels, labels, strict=True):
            for down, across in places[label]:
                image[down : down + 6, across : across + 6] += 100
        return Images(pixels.astype(np.uint8), labels)

    return ImageSet("mnist", "made up", tuple("0123456789"), part(train), part(test))


@pytest.fixture
def images(monkeypatch):
    """The set that both experiments load."""
    whole = blobs()
    for module in ("image_runs", "mnist_sizes"):
        monkeypatch.setattr(
            f"senn_reproduce.{module}.load_images", lambda name, data_dir=None: whole
        )
    return whole


def check_courses(records):
    """Growing changed nothing at that moment, and what is written down agrees with itself."""
    for record in records:
        course = record["course"]
        assert course["units"][-1] == record["units"] == sum(record["hidden"])
        assert course["accuracy"][-1] == pytest.approx(record["validation"]["accuracy"], abs=1e-5)
        assert course["steps"] == sorted(course["steps"])
        assert record["largest"]["loss_change"] < 1e-5
        assert record["largest"]["accuracy_change"] <= 2e-3  # an output can round to the other side
        depth = any(growth["kind"] == "insert" for growth in course["growths"])
        assert not depth or record["arm"].endswith("depth")
    assert all(
        any(growth["kind"] == "widen" for growth in record["course"]["growths"])
        for record in records
    )


class TestMNIST:
    def test_main_writes_what_it_says(self, images, tmp_path, capsys, monkeypatch):
        monkeypatch.setattr(mnist, "FULL", QUICK)
        records = mnist.main(1, tmp_path, QUICK, device="cpu")
        written = json.loads((tmp_path / "results.json").read_text())
        assert written["runs"] == json.loads(json.dumps(records))
        assert written["command"] == "senn reproduce mnist --seeds 1 --full"
        assert [record["arm"] for record in records] == list(mnist.ARMS) == list(written["arms"])
        for record in records:
            assert (
                written["arms"][record["arm"]]["mean"]["test.accuracy"]
                == record["test"]["accuracy"]
            )
            assert record["test"]["accuracy"] > 0.5
        check_courses(records)
        assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
        assert [
            line for line in capsys.readouterr().out.splitlines() if line in mnist.ARMS
        ] == list(mnist.ARMS)

    def test_a_run_depends_on_its_seed_alone(self, images):
        data = mnist.load("mnist", 28, 200, 100, 0)
        rows = mnist.Rows.of(data)
        records = []
        for noise in (1, 2):
            torch.manual_seed(noise)
            state = torch.get_rng_state()
            records.append({**mnist.run("Adam, depth", 7, rows, QUICK), "seconds": 0})
            assert torch.equal(torch.get_rng_state(), state)
        assert records[0] == records[1]

    @pytest.mark.parametrize("arm", ["natural gradient", "Adam"])
    def test_the_papers_recipe_in_short(self, images, arm):
        short = {
            "epochs": 3,
            "batch_size": 50,
            "addition_rounds": (0.0, 0.5),
            "max_scoring_samples": 100,
            "candidates_per_layer": 8,
            "ascent_steps": 2,
        }
        full = mnist.FULL
        settings = replace(
            QUICK,
            natural=replace(full.natural, **short),
            adam=replace(full.adam, **short),
            deep=full.deep,
        )
        record = mnist.run(arm, 0, mnist.Rows.of(mnist.load("mnist", 28, 200, 100, 0)), settings)
        check_courses([record])

    @pytest.mark.skipif("SENN_DATA" not in os.environ, reason="SENN_DATA is not set")
    def test_images_of_mnist(self):
        rows = mnist.Rows.of(mnist.load("mnist", 28, 1000, 1000, 0))
        settings = replace(
            QUICK, natural=replace(QUICK.natural, epochs=4), adam=replace(QUICK.adam, epochs=4)
        )
        records = [mnist.run(arm, 0, rows, settings) for arm in ("natural gradient", "Adam")]
        check_courses(records)
        assert min(record["test"]["accuracy"] for record in records) > 0.8


class TestSizes:
    def test_main_writes_what_it_says(self, images, tmp_path, capsys):
        records = mnist_sizes.main(2, tmp_path, FEW, device="cpu")
        written = json.loads((tmp_path / "results.json").read_text())
        assert written["runs"] == records
        assert written["command"] == "senn reproduce mnist-sizes --seeds 2"
        assert len(records) == 2 * 2 * 3
        assert all(int(r["net"]) == r["units"] for r in records if r["net"] != "grown")
        assert written["comparison"] == compare(records)
        assert -1 <= written["rank_correlation"] <= 1
        assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
        assert "rank correlation" in capsys.readouterr().out

    def test_fewer_images_are_among_more(self, images):
        few, many = (mnist_sizes.Sample.of(images, n, 3, torch.device("cpu")) for n in (5, 20))
        assert len(few.train[0]) == 50
        assert torch.equal(few.train[1], many.train[1][:50])
        assert len(few.test[0]) == len(images.test)

    def test_too_many_images(self, images):
        with pytest.raises(SennError, match="610 images of mnist are asked for, and there are 600"):
            mnist_sizes.Sample.of(images, 61, 0, torch.device("cpu"))

    def test_the_best_fixed_net_is_chosen_twice(self):
        def record(net, seed, validation, test, units):
            parts = {"validation": {"accuracy": validation}, "test": {"accuracy": test}}
            return {"net": net, "images": 60, "seed": seed, "units": units, **parts}

        rows = [
            ("grown", 0.5, (0.9, 0.8), 11),
            ("8", 0.7, (0.8, 0.8), 8),
            ("16", 0.6, (0.95, 0.85), 16),
        ]
        records = [
            record(net, seed, v, test[seed], units)
            for net, v, test, units in rows
            for seed in (0, 1)
        ]
        (line,) = compare(records)
        assert line["units"] == [11, 11]
        assert line["accuracy"] == pytest.approx(0.85)
        by_validation, by_test = line["best by validation"], line["best by test"]
        assert (by_validation["net"], by_test["net"]) == ("8", "16")
        assert by_validation["difference"] == pytest.approx(0.05)
        assert by_validation["error"] == pytest.approx(0.05)  # differences .1 and 0
        assert by_test["difference"] == pytest.approx(-0.05)
        assert by_test["error"] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ([1, 2, 3], [10, 30, 90], 1.0),
        ([1, 2, 3], [3, 2, 1], -1.0),
        ([1, 2, 3, 4], [1, 3, 2, 4], 0.8),  # 1 - 6 * 2 / (4 * 15)
        ([1, 1, 2, 2], [1, 2, 3, 4], 4 / 20**0.5),
        ([1, 2, 3], [5, 5, 5], 0.0),
    ],
)
def test_rank_correlation(first, second, expected):
    assert rank_correlation(first, second) == pytest.approx(expected)


@pytest.mark.skipif("SENN_DATA" not in os.environ, reason="SENN_DATA is not set")
def test_as_many_images_as_mnist_has():
    assert max(mnist_sizes.Settings().images) * mnist_sizes.CLASSES == len(
        load_images("mnist").train
    )
