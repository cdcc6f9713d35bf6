"""Short forms of the paper's figures, and Theorem 3.1 on real runs."""

import functools
import json
import math

import pytest
import torch
from torch.nn import functional as F

from senn.candidates.candidate_config import CandidateConfig
from senn.policies import PaperPolicy
from senn.scoring.formulas import max_additions
from senn_reproduce import moons, regression
from senn_reproduce.landscape import Moment, landscape
from senn_reproduce.results import figures, table

QUICK = {
    moons: moons.Settings(
        steps=30,
        every=10,
        candidate_config=CandidateConfig(
            units=24, identity_bases=4, ascent_steps=3, activation="Rational"
        ),
    ),
    regression: regression.Settings(
        steps=27, every=9, candidate_config=CandidateConfig(units=24, ascent_steps=3)
    ),
}


@functools.cache
def sine():
    """A run that several tests look at."""
    return regression.run(100, QUICK[regression])


@pytest.mark.parametrize(("experiment", "measure"), [(moons, "accuracy"), (regression, "error")])
def test_main_writes_what_it_says(experiment, measure, tmp_path, capsys):
    records = experiment.main(seeds=2, out=tmp_path / "run", settings=QUICK[experiment])
    written = json.loads((tmp_path / "run" / "results.json").read_text())
    assert written["runs"] == records
    assert [record["seed"] for record in records] == [0, 1]
    values = [record["test"][measure] for record in records]
    assert written["mean"][f"test.{measure}"] == pytest.approx(sum(values) / 2)
    assert written["std"][f"test.{measure}"] == pytest.approx(
        abs(values[0] - values[1]) / math.sqrt(2)
    )
    assert written["command"].endswith("--seeds 2")
    assert (tmp_path / "run" / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert all(record["units"] == sum(record["hidden"]) for record in records)
    shown = capsys.readouterr().out
    assert f"test.{measure}" in shown
    assert "mean" in shown


def test_moons_grow_from_nothing_and_learn():
    run = moons.run(100, moons.Settings(steps=121, candidate_config=moons.CANDIDATE_CONFIG))
    assert len(run.record["hidden"]) >= 1
    assert (
        run.record["test"]["accuracy"] > 0.85
    )  # logistic regression reaches .86 on the training points at best
    assert sum(run.additions) > 0


def test_watching_the_score_changes_nothing():
    plain, watched = (moons.run(101, QUICK[moons], watch=watch) for watch in (0, 10))
    assert watched.record["test"] == plain.record["test"]
    assert [step for step, _ in watched.scores] == [0, 10, 20]
    assert len(watched.phases) == len(plain.phases)


def test_a_run_depends_on_its_seed_alone():
    first = sine().record
    torch.manual_seed(5)
    state = torch.get_rng_state()
    second = regression.run(100, QUICK[regression]).record
    assert torch.equal(torch.get_rng_state(), state)
    assert {**first, "seconds": 0} == {**second, "seconds": 0}


@pytest.mark.parametrize(("experiment", "tau"), [(moons, 0.02), (regression, 0.4)])
def test_theorem_3_1_bounds_the_additions_of_a_round(experiment, tau):
    alpha = 1e-3
    quick = QUICK[experiment]
    settings = type(quick)(**{**vars(quick), "policy": PaperPolicy(tau, alpha), "steps": 31})
    additions = experiment.run(102, settings).additions
    assert any(additions)
    assert max(additions) < max_additions(tau, alpha)


def test_the_landscape_is_zero_where_a_neuron_explains_nothing():
    x = torch.linspace(-2, 2, 50)[:, None]
    run = sine()
    moment = run.moments[-1]
    fitted = Moment(0, moment.model, 1.0, moment.weight, moment.bias, moment.taken)
    with torch.no_grad():
        explained = moment.model(x)
    assert float(landscape(fitted, (x, explained), size=8)[2].max()) < 1e-8
    locations, scales, score = landscape(fitted, (x, explained + (3 * x).sin()), size=8)
    assert score.shape == (len(scales), len(locations))
    assert float(score.min()) >= 0
    # No unit can be worth more than the whole residual: lambda = E[g^2 / h] with g = 2 r, h = 2.
    assert 0.01 < float(score.max()) <= 2 * float(F.mse_loss(explained + (3 * x).sin(), explained))


def test_the_fourth_neuron_is_shown_before_and_after():
    run = sine()
    shown = regression.shown(run.moments)
    assert shown[-1] is run.moments[-1]
    assert all(
        bool(moment.taken.any()) == (moment.units < 4) for moment in shown[:1] if len(shown) > 1
    )
    taken = [moment for moment in run.moments if bool(moment.taken.any())]
    assert sum(int(moment.taken.sum()) for moment in taken) == sum(run.additions)


def test_figures_and_table():
    run = {"seed": 3, "test": {"accuracy": 0.9, "loss": 0.1}, "hidden": [2, 3], "seconds": 1.5}
    assert figures(run) == {"seed": 3.0, "test.accuracy": 0.9, "test.loss": 0.1, "seconds": 1.5}
    lines = table([run, {**run, "seed": 4, "seconds": 2.5}]).splitlines()
    assert lines[1].endswith("2-3")
    assert lines[-1].split() == ["mean", "0.9", "0.1", "2"]
