"""The bench of criteria: its short form, and each rival by what its paper says of it."""

import pytest
import torch
from criteria import Results, measure
from criteria_arms import ARMS, WHEN, Counted
from criteria_oracle import correlate, rank_correlation
from criteria_run import Run
from criteria_tasks import Task, mlp
from rivals.net2net import Net2Net
from rivals.selection import largest_gradient, most_orthogonal
from torch import nn
from torch.nn import functional as F

import senn
from senn.candidates.initializers import PlaceActivations, PlaceGradients, ReaderRows


@pytest.fixture(scope="module")
def task():
    x = torch.randn(300, 6, generator=torch.Generator().manual_seed(0))
    y = (x[:, 0] * x[:, 1] > 0).long() + 2 * (x[:, 2] > 0)
    return Task(
        name="toy", rows=(x[:240], y[:240], x[240:], y[240:]), build=lambda w: mlp(6, w["0"], 4),
        start={"0": 4}, added=4, steps=8, batch=40, looked_at=96,
    )  # fmt: skip


@pytest.fixture(autouse=True)
def one_birth(monkeypatch):
    for when, moment in {"early": 0.2, "late": 0.5}.items():
        monkeypatch.setitem(WHEN, when, (moment,))


GROWING = [
    (name, birth)
    for name, arm in ARMS.items()
    if arm.places == "fixed"
    for birth in arm.births
    if birth in ("own", "silent")
]


@pytest.mark.parametrize(("name", "birth"), GROWING)
def test_every_arm_adds_as_many_units_and_leaves_the_function_as_it_is(task, name, birth):
    record = measure(Results(None), task, name, when="late", birth=birth, seed=0)
    assert record["widths"] == [8]
    assert record["jumps"] == [pytest.approx(0, abs=1e-3)]  # noise on copies, at most
    assert record["steps"] == 8
    assert record["looking flops"] > 0


def test_what_is_there_is_not_run_again_and_equal_flops_are_equal(task, tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    name = "never grown, equal FLOPs"
    found = measure(Results(path), task, name, when="early", birth="none", seed=1)
    like = Results(path).records["toy | score | early | stepped | 1"]
    spent = like["training flops"] + like["looking flops"]
    assert found["training flops"] == pytest.approx(spent, rel=1 / found["steps"])
    assert found["widths"] == [4]
    monkeypatch.setattr(Run, "run", None)
    again = measure(Results(path), task, name, when="early", birth="none", seed=1)
    assert again["loss"] == found["loss"]


def test_the_oracle_ranks_candidates_by_what_training_makes_of_them(task, monkeypatch):
    monkeypatch.setattr("criteria_oracle.STEPS", (2, 4))
    monkeypatch.setattr("criteria_oracle.CANDIDATES", 3)
    results = Results(None)
    correlate(results, task, when="early", birth="silent", seed=0)
    (record,) = results.records.values()
    assert {*record["correlations"]} == {"after 2", "after 4"}
    gains, worth = record["figures"]["gain"], record["worth"][4]
    assert record["correlations"]["after 4"]["gain"] == rank_correlation(gains, worth)
    assert rank_correlation([1, 2, 3], [10, 30, 90]) == pytest.approx(1)
    assert rank_correlation([1, 2, 3], [9, 5, 1]) == pytest.approx(-1)


def place(**others):
    """A place whose readers' gradients are known."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 5, generator=generator)
    weight = torch.randn(3, 5, generator=generator)
    z = x @ weight.mT
    gradient = torch.randn(200, 2, generator=generator)
    gradient[:, 0] += 2 * x[:, 1]
    a = torch.cat([F.relu(z), torch.ones(200, 1)], 1)
    rows = ReaderRows(a=a, output_grad=gradient, pseudo_grad=gradient)
    return PlaceActivations(
        group="0", map="0", x=x, z=z, weight=weight, bias=torch.zeros(3), rows_per_unit=1,
        outgoing_shapes={"2": (2, 1)},
        gradients=lambda: PlaceGradients(x=x, readers={"2": rows}), **others,
    )  # fmt: skip


@pytest.mark.parametrize("name", ["GradMax", "TINY", "gradient", "Firefly"])
def test_what_follows_the_gradient_finds_the_input_that_it_depends_on(task, name):
    one = ARMS[name].make(task)
    units = one.sample(place(), 1, torch.Generator().manual_seed(1))
    direction = units.weight[0] / units.weight[0].norm()
    # of the library's draw, no unit is all of one input
    assert abs(float(direction[1])) > (0.7 if name == "gradient" else 0.9)


def test_the_longest_gradient_and_the_least_explained_activation_are_chosen():
    gradients = place().gradients()
    new = torch.stack([gradients.x[:, 1], gradients.x[:, 2], gradients.readers["2"].a[:, 0]], 1)
    assert largest_gradient(gradients, new, 1).tolist() == [0]
    assert most_orthogonal(gradients, new, 3).tolist()[2] == 2  # the copy of an existing unit


def test_copies_share_what_their_originals_pass_on():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 3), nn.ReLU(), nn.Linear(3, 2))
    x = torch.randn(20, 5)
    before = model(x)
    net2net = Net2Net()
    config = senn.CandidateConfig(units=4, initializer=net2net)
    grower = senn.Grower(
        model,
        moves=("width",),
        candidate_config=config,
        policy=Counted({"0": 4}),
        birth="silent",
    )
    grower.grow([(x, torch.arange(20) % 2)])
    drawn = grower.candidate_set.widen["0"].values
    with torch.no_grad():
        model[0].weight[3:], model[0].bias[3:] = drawn["0.weight"], drawn["0.bias"]
    net2net.born(model, "0", torch.arange(4))
    assert bool(model[2].weight[:, 3:].all())
    torch.testing.assert_close(model(x), before, rtol=0, atol=0.02)
