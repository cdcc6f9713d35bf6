"""Figure 5 in short."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from senn.candidates.candidate_config import CandidateConfig
from senn.data.images import Images, ImageSet
from senn.errors import SennError
from senn.policies import Candidate
from senn_reproduce import cifar_cycles, image_runs
from senn_reproduce.cifar_cycles import BothWays, Curves, Settings, breathing

QUICK = Settings(
    hidden=((5, 5), (5,)), side=8, images=400, validation=100, cycles=4, cycle=24, every=6, batch=32,
    looked_at=192, policy=BothWays(kappa=0.02), candidate_config=CandidateConfig(units=4, data_direction_fraction=1.0),
)  # fmt: skip


@pytest.fixture
def _stripes(monkeypatch):
    """Images of ten directions and periods of stripes in noise instead of CIFAR-10."""

    def draw(count, seed):
        random = np.random.default_rng(seed)
        labels = random.integers(0, 10, count)
        down, across = np.mgrid[:8, :8]
        angle, phase = labels[:, None, None] * np.pi / 10, random.uniform(0, 6, (count, 1, 1))
        wave = np.sin(2 * (np.cos(angle) * across + np.sin(angle) * down) + phase)
        pixels = 128 + 70 * wave[..., None] + 20 * random.standard_normal((count, 8, 8, 3))
        return Images(pixels.clip(0, 255).astype(np.uint8), labels.astype(np.int64))

    def load(name, data_dir):
        return ImageSet(name, "stripes", tuple("0123456789"), draw(500, 0), draw(200, 1))

    monkeypatch.setattr(image_runs, "load_images", load)


@pytest.mark.usefixtures("_stripes")
def test_main_writes_what_it_says(tmp_path, capsys):
    state = torch.get_rng_state()
    (record,) = cifar_cycles.main(seeds=1, out=tmp_path, settings=QUICK, device="cpu")
    assert torch.equal(torch.get_rng_state(), state)
    written = json.loads((tmp_path / "results.json").read_text())
    assert written["runs"] == [record]
    assert written["command"] == "senn reproduce cifar-cycles --seeds 1"
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    widths = np.array(record["curves"]["widths"])
    changes = np.diff(widths, axis=0, prepend=[[5] * 3])
    assert (changes > 0).any(), "nothing grew"
    assert (changes < 0).any(), "nothing was removed"
    assert widths[-1].tolist() == record["hidden"]
    assert record["change"]["additions"] < 1e-4
    for part in ("test", "validation"):
        assert record[part]["grown"] > 0.15, "no better than chance"
    assert all(len(curve) == 16 for curve in record["curves"].values())
    assert "correlation" in capsys.readouterr().out


@pytest.mark.usefixtures("_stripes")
def test_a_run_depends_on_its_seed_alone():
    short = replace(QUICK, cycle=12, looked_at=96)
    first, second = (cifar_cycles.run(seed, short) for seed in (3, 3))
    assert {**first, "seconds": 0, "seconds_fixed": 0} == {
        **second,
        "seconds": 0,
        "seconds_fixed": 0,
    }


@pytest.mark.usefixtures("_stripes")
def test_too_few_images_or_steps_are_refused():
    with pytest.raises(
        SennError, match="450 training images of cifar-10 are asked for, and there are 400"
    ):
        cifar_cycles.run(0, replace(QUICK, images=450))
    with pytest.raises(SennError, match="measured over 4 cycles, and there are 3"):
        Settings(cycles=3)
    with pytest.raises(SennError, match="no two considerations"):
        Settings(every=400)


def test_the_rate_rises_and_falls_in_each_cycle():
    rates = [Settings().relative(step) for step in range(1200)]
    assert rates[:600] == rates[600:]
    assert max(rates) == pytest.approx(1, abs=1e-4)
    assert rates.index(max(rates)) == 60
    assert rates[0] == pytest.approx(0.04)
    assert rates[599] < 1e-4


def test_breathing_is_what_it_is_called():
    settings = replace(QUICK, cycle=60)
    steps = list(range(6, settings.steps + 1, 6))

    def measured(width):
        return breathing(Curves(steps, [((9, width(step), 3), (1,)) for step in steps]), settings)

    with_it = measured(lambda step: 10 + round(10 * settings.relative(step - 1 - 12)))
    assert with_it["correlation"] == pytest.approx(1, abs=0.01)
    assert with_it["lag"] == 12
    assert with_it["peak_to_trough"] == pytest.approx(1 - 13 / 23)
    assert measured(lambda step: 10 - round(10 * settings.relative(step - 1)))["correlation"] < 0.5
    assert measured(lambda _: 10) == {"correlation": 0, "lag": 18, "peak_to_trough": 0}


def test_a_removal_costs_what_both_halves_agree_on_and_a_margin():
    removal = Candidate(
        kind="prune",
        place="0",
        detail="",
        units=1,
        width=7,
        parameters=-100,
        gain=-0.5,
        gain_lower_bound=-0.5,
        held_out_gain=-0.5,
        held_out_stderr=0.0,
        eta=1.0,
        score_limit=4.0,
        samples=1000,
        cross_fold_gain=-0.01,
    )
    policy = BothWays(kappa=0.1, hysteresis=0.9, noise=0.0)
    assert policy.margin(removal) == pytest.approx(-0.01 / 2 + 0.9 * 0.1 * 100 / 1000)
    assert policy.choose([removal], []) is removal
    assert policy.choose([removal], [removal] * policy.most) is None
    assert replace(policy, noise=0.2).choose([removal], []) is None
