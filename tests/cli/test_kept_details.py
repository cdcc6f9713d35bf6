"""What a run keeps of its test for pictures: pairs of numbers, and the images that it got most wrong."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from senn.cli.baselines import LinearModel, constant
from senn.cli.kept_details import MOST_IMAGES, MOST_PAIRS, data_uri, kept_details
from senn.cli.scorer import Scorer
from senn.events.run_schema import check_details

DRAW = np.random.default_rng(0)


def details(scorer, predictions, truth, pixels=None, **options):
    classes = len(scorer.labels) or None
    found = kept_details(
        scorer, predictions, truth, {"constant": constant(truth, classes)}, pixels, **options
    )
    check_details(found, "it")
    return found


def opened(uri):
    head, _, text = uri.partition(",")
    return head, np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))


def test_pairs_are_true_and_predicted_numbers_in_the_unit_of_the_target():
    truth = DRAW.normal(size=(5, 1))
    found = details(Scorer(task="regression", scale=10.0), truth + 1, truth, mean=3.0)
    for (true, predicted), value in zip(found["pairs"], truth[:, 0], strict=True):
        assert true == pytest.approx(10 * value + 3)
        assert predicted == pytest.approx(true + 10)
    many = DRAW.normal(size=(3 * MOST_PAIRS, 1))
    assert len(details(Scorer(task="regression"), many, many)["pairs"]) == MOST_PAIRS


def test_the_wrongest_images_come_first_and_are_few():
    own = np.linspace(0.05, 0.95, 40)
    chances = np.stack([own, 1 - own], axis=1)
    pixels = np.zeros((40, 8, 8, 1), np.uint8) + np.arange(40, dtype=np.uint8)[:, None, None, None]
    found = details(
        Scorer(task="classification", labels=("a", "b")), chances, np.zeros(40, int), pixels
    )
    assert found["wrong"] == 20
    shown = found["wrongest"]
    assert len(shown) == MOST_IMAGES
    assert [one["probability"] for one in shown] == pytest.approx(1 - own[:MOST_IMAGES])
    assert {(one["true"], one["taken_for"]) for one in shown} == {(0, 1)}
    for at, one in enumerate(shown):
        head, image = opened(one["image"])
        assert head == "data:image/png;base64"
        assert (image == at).all()


def test_large_images_are_small_jpegs():
    noise = DRAW.integers(0, 256, (300, 300, 3), dtype=np.uint8)
    uri = data_uri(noise)
    head, image = opened(uri)
    assert head == "data:image/jpeg;base64"
    assert image.shape == (96, 96, 3)
    assert len(uri) < 20_000


def test_a_linear_model_of_many_numbers_is_not_kept():
    large = LinearModel(weight=np.zeros((100_001, 1)), bias=np.zeros(1), is_classifier=False)
    truth = np.zeros((4, 1))
    guesses = {"constant": constant(truth, None), "linear": large}
    assert kept_details(Scorer(task="regression"), truth, truth, guesses, None)["linear"] is None
