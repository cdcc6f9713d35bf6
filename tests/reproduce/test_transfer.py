"""A short form of figure 6: transfer at fixed size and self-expanding."""

import json
import os
from dataclasses import replace

import pytest
import torch

from senn.candidates.candidate_config import CandidateConfig
from senn.policies import PricePolicy
from senn.training.augment import ChannelStats
from senn_reproduce import transfer
from senn_reproduce.image_runs import Data, Part
from senn_reproduce.transfer import ARMS, Settings, fit, fresh, run, size, transferred

CPU = torch.device("cpu")
QUICK = Settings(
    hidden=((4, 4), (4,)), side=8, source_images=320, target_images=320, held_out=64, source_epochs=8, target_epochs=4,
    batch_size=32, lr=0.02, shift=0, rounds=(0.25, 0.4), pruning_rounds=(0.6,),
    policy=PricePolicy(kappa=1e-3, confidence=0.0),
    candidate_config=CandidateConfig(units=4, data_direction_fraction=1.0), looked_at=128, points=10,
)  # fmt: skip


def patterns(classes, labels_seed):
    """Noisy images of 12 symmetric patterns; the classes are groups of these, drawn by the seed."""
    generator = torch.Generator().manual_seed(0)
    shapes = torch.rand(12, 3, 8, 8, generator=generator)
    shapes = (shapes + shapes.flip(-1)) / 2
    group = torch.randperm(12, generator=torch.Generator().manual_seed(labels_seed)) % classes
    parts = []
    for count in (320, 64, 200):
        kind = torch.randint(12, (count,), generator=generator)
        noisy = shapes[kind] + 0.1 * torch.randn(count, 3, 8, 8, generator=generator)
        parts.append(Part((255 * noisy.clamp(0, 1)).byte(), group[kind]))
    return Data(*parts, classes, ChannelStats.of(parts[0].pixels))


@pytest.fixture(scope="module")
def source():
    return patterns(4, 1)


@pytest.fixture(scope="module")
def target():
    return patterns(6, 2)


@pytest.fixture(scope="module")
def record(source, target):
    return run(100, QUICK, source, target, CPU)[0]


def test_training_the_copy_leaves_the_pre_trained_net_alone(target):
    first = fresh(QUICK.hidden, 4, 0, CPU)
    before = {name: value.clone() for name, value in first.state_dict().items()}
    second = transferred(first, 6)
    assert second.head.weight.shape == (6, 4)
    fit(second, target, 1, 0, QUICK)
    assert all(torch.equal(value, before[name]) for name, value in first.state_dict().items())
    assert not any(
        torch.equal(a, b)
        for a, b in zip(first.blocks.parameters(), second.blocks.parameters(), strict=True)
    )


def test_a_grower_that_buys_nothing_leaves_the_run_as_it_is(target):
    dear = replace(QUICK, policy=PricePolicy(kappa=1e6, hysteresis=0.0), pruning_rounds=())
    nets = [fresh(QUICK.hidden, 6, 1, CPU) for _ in range(2)]
    plain, considered = (
        fit(nets[0], target, 2, 5, dear),
        fit(nets[1], target, 2, 5, dear, grow=True),
    )
    assert considered.considering > 0
    assert not considered.events
    assert plain.accuracy == considered.accuracy
    assert all(
        torch.equal(a, b) for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True)
    )


def test_arms_are_paired_and_the_budget_is_kept(record, source, target):
    steps = QUICK.target_epochs * 10
    first = record["widths"][1][0]
    assert first in (10, 16)
    fixed, grown = record["curves"]["fixed"], record["curves"]["grown"]
    assert [step for step, _ in fixed] == list(range(0, steps + 1, 4))
    assert [p for p in fixed if p[0] <= first] == [p for p in grown if p[0] <= first]
    assert fixed != grown
    before = size(transferred(fresh(QUICK.hidden, source.classes, 0, CPU), target.classes))
    parameters = record["parameters"]
    assert parameters["fixed"] == before < parameters["grown"] <= 2 * before
    assert parameters["scratch"] == parameters["grown"]
    assert record["widths"][-1] == (steps, record["hidden"])
    assert record["growth"]["loss change"] <= 1e-5
    assert record["validation"]["grown"] == grown[-1][1]


def test_arms_start_from_the_pre_trained_body_or_from_nothing(source, target):
    record, nets = run(100, replace(QUICK, target_epochs=0), source, target, CPU)
    assert record["source"]["test"] > 0.3  # chance is a quarter
    body = nets["source"].blocks.state_dict()
    for arm in ("fixed", "grown"):
        assert all(
            torch.equal(nets[arm].blocks.state_dict()[name], value) for name, value in body.items()
        )
        assert not nets[arm].head.weight.any()
    assert not any(
        torch.equal(nets["scratch"].blocks.state_dict()[name], value)
        for name, value in body.items()
    )
    first = fresh(QUICK.hidden, 4, 100, CPU)
    assert not any(
        torch.equal(a, b)
        for a, b in zip(nets["scratch"].blocks.parameters(), first.blocks.parameters(), strict=True)
    )


def test_a_run_depends_on_its_seed_alone(record, source, target):
    torch.manual_seed(5)
    state = torch.get_rng_state()
    again, _ = run(100, QUICK, source, target, CPU)
    assert torch.equal(torch.get_rng_state(), state)
    for one in (again, record):
        one["seconds"], one["growth"]["seconds"] = {}, 0
    assert again == record


@pytest.mark.skipif("SENN_DATA" not in os.environ, reason="SENN_DATA names no folder of image sets")
def test_main_writes_what_it_says(tmp_path, capsys):
    settings = replace(QUICK, source_epochs=1, target_epochs=1)
    records = transfer.main(1, tmp_path / "run", settings, device="cpu")
    written = json.loads((tmp_path / "run" / "results.json").read_text())
    assert written["runs"] == json.loads(json.dumps(records))
    assert written["command"] == "senn reproduce transfer --seeds 1"
    assert {f"test.{arm}" for arm in ARMS} <= {*written["mean"]}
    assert not any("curves" in name for name in written["mean"])
    assert (tmp_path / "run" / "figure.png").read_bytes().startswith(b"\x89PNG")
    shown = capsys.readouterr().out
    assert f"grown over scratch: {records[0]['gain']['over scratch']:+.4f}" in shown
