"""What the experiments on images share."""

import os

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from senn.data.images import planes
from senn.errors import SennError
from senn.training.augment import ChannelStats
from senn_reproduce import image_runs
from senn_reproduce.image_runs import Part, accuracy_and_loss, batches, load, one_cycle, pick_device
from senn_reproduce.image_sets import load_images


@pytest.fixture
def part():
    generator = torch.Generator().manual_seed(0)
    return Part(
        torch.randint(256, (23, 3, 4, 4), generator=generator, dtype=torch.uint8),
        torch.randint(5, (23,), generator=generator),
    )


def test_batches_are_an_epoch_without_repetition(part):
    seen = list(batches(part, 5, torch.Generator().manual_seed(1)))
    again = list(batches(part, 5, torch.Generator().manual_seed(1)))
    assert [len(labels) for _, labels in seen] == [5] * 4
    assert all(
        torch.equal(x, y)
        for one, two in zip(seen, again, strict=True)
        for x, y in zip(one, two, strict=True)
    )
    rows = {
        tuple(image.flatten().tolist()): int(label)
        for image, label in zip(part.pixels, part.labels, strict=True)
    }
    found = [
        (tuple(image.flatten().tolist()), int(label))
        for x, y in seen
        for image, label in zip(x, y, strict=True)
    ]
    assert len(dict(found)) == 20
    assert all(rows[image] == label for image, label in found)
    assert [len(labels) for _, labels in batches(part, 100, torch.Generator())] == [23]


def test_accuracy_and_loss_are_those_of_all_images_at_once(part):
    model = nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(48, 5))
    standard = ChannelStats.of(part.pixels)
    found = accuracy_and_loss(model, part, standard, size=4)
    assert model.training
    logits = model.eval()(standard(part.pixels)).detach()
    assert found["accuracy"] == pytest.approx(
        float((logits.argmax(1) == part.labels).float().mean())
    )
    assert found["loss"] == pytest.approx(float(F.cross_entropy(logits, part.labels)), rel=1e-6)


def test_one_cycle_rises_and_falls():
    assert one_cycle(0) == pytest.approx(1 / 25)
    assert one_cycle(0.1) == one_cycle(0.3, rise=0.3) == 1
    assert one_cycle(0.55) == pytest.approx(0.5)
    assert one_cycle(1) == pytest.approx(0)


def test_a_device_that_is_not_here_is_one_sentence():
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device(None).type in ("cpu", "cuda")
    with pytest.raises(SennError, match="the device 'abacus' can't be used"):
        pick_device("abacus")


@pytest.mark.skipif("SENN_DATA" not in os.environ, reason="SENN_DATA names no folder of image sets")
def test_a_set_is_held_out_before_it_is_cut_down(monkeypatch):
    found = load_images("cifar-10")  # once: reading it takes longer than all the rest
    monkeypatch.setattr(image_runs, "load_images", lambda *_: found)
    data = load("cifar-10", 16, 300, 200, seed=3)
    whole = found.hold_out(200, 3)
    assert (len(data.train), len(data.validation), len(data.test), data.classes) == (
        300,
        200,
        10_000,
        10,
    )
    assert np.array_equal(data.validation.pixels, planes(whole.validation, 16))
    assert np.array_equal(data.train.labels, whole.train.labels[:300])
    standardized = data.standard(data.train.pixels)
    assert standardized.mean((0, 2, 3)).abs().max() < 1e-3
    assert (standardized.std((0, 2, 3)) - 1).abs().max() < 1e-3
    with pytest.raises(
        SennError,
        match="49,801 training images of cifar-10 are asked for, and there are 49,800",
    ):
        load("cifar-10", 16, 49_801, 200, seed=3)
