"""The bench at equal operations: its short form, and that the operations of looks and steps are all counted."""

import json
from dataclasses import replace
from pathlib import Path

import equal_flops_tasks
import pytest
import torch
from adaptive_width import AdaptiveMLP
from equal_flops import main
from equal_flops_growth import like
from equal_flops_runs import library_run, shapes_of
from equal_flops_tasks import TASKS, shortened, table
from flop_meter import CountOperations, Meter
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from senn.nn import MLP
from senn.training import train

FIELDS = {
    *("task", "arm", "budget", "seed", "commit", "command", "flops", "by kind", "budget flops"),
    *("parameters", "validation", "test", "curve", "steps", "seconds"),
}


@pytest.fixture
def tiny(monkeypatch):
    """Digits so short that all arms take seconds."""
    short = replace(shortened(TASKS["digits"]()), start=(8, 8), grid=((4, 4), (12, 12)))
    monkeypatch.setitem(TASKS, "digits", lambda: short)


def test_every_arm_is_a_record_of_equal_operations_that_is_not_run_again(tiny, tmp_path, capsys):
    out = tmp_path / "found.json"
    argv = ["--tasks", "digits", "--budgets", "1", "--seeds", "1", "--out", str(out)]
    assert main(argv) == 0
    records = {one["arm"]: one for one in json.loads(out.read_text()).values()}
    arms = {"scratch", "best_fixed", "schedule", "random", "grid_full", "adaptive_width"}
    assert {*records} == {"grown", *arms}
    for arm, one in records.items():
        assert {*one} >= FIELDS
        assert one["by kind"]["training"] + one["by kind"]["looking"] == one["flops"]
        spent = [point[0] for point in one["curve"]]
        assert spent == sorted(spent)
        assert spent[-1] == one["flops"]
        assert 0 <= one["test"]["score"] <= 1
        if arm not in ("grown", "grid_full"):
            assert one["flops"] == pytest.approx(one["budget flops"], rel=0.05)
            assert one["budget flops"] == records["grown"]["flops"]
    assert records["grown"]["by kind"]["looking"] > 0
    assert records["random"]["by kind"]["looking"] > 0
    assert records["scratch"]["by kind"]["looking"] == 0
    for arm in ("scratch", "schedule"):
        assert records[arm]["parameters"] == records["grown"]["parameters"]
    assert records["best_fixed"]["size"] in ([4, 4], [12, 12])
    assert records["best_fixed"]["search flops"] == pytest.approx(
        2 * records["grown"]["flops"], rel=0.05
    )
    written = out.read_text()
    capsys.readouterr()
    assert main(argv) == 0
    assert out.read_text() == written
    assert capsys.readouterr().out == ""


def record(task, arm, seed, score, budget=1.0):
    return {
        "task": task,
        "arm": arm,
        "seed": seed,
        "budget": budget,
        "test": {"score": score, "loss": 1 - score},
        "commit": "abc",
        "command": "python bench.py",
        "parameters": 100,
        "flops": 1e9,
        "by kind": {"looking": 5e8},
        "curve": [[1e8, 50, 1.0, 0.1], [1e9, 100, 0.5, score]],
    }


def test_the_page_says_on_how_many_tasks_growing_is_ahead(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "docs"))
    from equal_flops_page import draw, equal_flops
    from stored_results import table as markdown

    rivals = {"best_fixed": 0.8, "scratch": 0.6}
    records = [
        record(task, arm, seed, score + seed / 100)
        for task in ("one", "two")
        for seed in (0, 1)
        for arm, score in ({"grown": 0.7 if task == "one" else 0.9} | rivals).items()
    ]
    stored = {"equal_flops": {str(number): one for number, one in enumerate(records)}}
    page = "\n".join(equal_flops(stored.get, stored.__contains__, markdown))
    assert "| one | 0.7050 | -0.1000 ± 0.0000 | +0.1000 ± 0.0000 |" in page
    assert "| 1 | best fixed | 1 | 0 | 1 |" in page
    assert "| 1 | scratch | 2 | 0 | 0 |" in page
    assert [*equal_flops({}.get, {}.__contains__, markdown)] == []
    draw(records, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 1000


def test_a_run_that_is_counted_grows_as_one_that_is_not(tiny):
    problem = TASKS["digits"]()
    recipe = problem.recipe(seed=3)
    counted = library_run(problem, problem.fresh((8, 8), 3), recipe)
    x, y = problem.train.x, problem.train.y
    start = problem.recipe(seed=3, hidden=(8, 8), moves=("width", "prune"), members=1)
    start = replace(start, linear=False)  # a run that is counted is of networks alone
    plain = train(x, y, task="classification", outputs=10, recipe=start)
    assert counted["parameters"] == plain.parameters
    assert counted["validation"] == plain.validation
    assert counted["events"] > 0
    assert counted["faults"] == []


def test_a_step_of_a_perceptron_costs_its_products():
    model, x = MLP(6, (5, 4), 3), torch.randn(32, 6)
    y = torch.randint(3, (32,))
    # forward, and backward to weights and to inputs, but not to those of the first layer
    weights, first = 6 * 5 + 5 * 4 + 4 * 3, 6 * 5
    expected = 2 * 32 * (3 * weights - first)
    meter = Meter()
    assert meter.step_cost(model, F.cross_entropy, x, y) == expected
    assert meter.step_cost(model, F.cross_entropy, x[:8], y[:8]) == expected / 4
    assert meter.total == 0
    with FlopCounterMode(display=False) as counter:
        F.cross_entropy(model(x), y).backward()
    assert counter.get_total_flops() == expected
    model.zero_grad()
    x.requires_grad_()
    with CountOperations() as ours:
        F.cross_entropy(model(x), y).backward()
    assert ours.flops == 2 * 32 * 3 * weights


def test_factorizations_and_attention_are_counted():
    a = torch.eye(6, dtype=torch.float64)
    with CountOperations() as counter:
        factor = torch.linalg.cholesky(a)
    assert counter.flops == 6**3 // 3
    with CountOperations() as counter:
        torch.linalg.solve_triangular(factor, torch.ones(6, 4, dtype=torch.float64), upper=False)
    assert counter.flops == 6 * 6 * 4
    q = torch.randn(2, 3, 8, 4)
    with CountOperations() as counter:
        F.scaled_dot_product_attention(q, q, q, is_causal=True)
    assert counter.flops == 2 * 2 * (2 * 3) * 8 * 8 * 4
    with torch.inference_mode(), CountOperations() as counter:
        F.linear(torch.ones(5, 6), torch.ones(2, 6))
    assert counter.flops == 2 * 5 * 6 * 2


def test_a_net_of_the_grown_size_is_fresh():
    x = torch.randn(60, 5)
    problem = table("toy", (x, torch.arange(60) % 3, x, torch.arange(60) % 3))
    grown = problem.build((7, 9))
    shapes = json.loads(json.dumps(shapes_of(grown)))
    one, other = like(problem, shapes, 0), like(problem, shapes, 0)
    assert one.hidden == (7, 9)
    assert all(map(torch.equal, one.parameters(), other.parameters()))
    assert bool(one.body[0].weight.std() > 0.1)
    assert not one.body[-1].weight.any()
    with pytest.raises(TypeError, match="Odd"):
        equal_flops_tasks.reset(Odd())


class Odd(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(3))


def test_a_width_that_is_learned_follows_its_rate():
    model = AdaptiveMLP(5, (16, 8), 3)
    assert model.widths == (16, 8)
    assert model.used_parameters == 6 * 16 + 17 * 8 + 9 * 3 + 5 * 3 + 2
    assert float(model.importance(0, 16).detach().square().mean()) == pytest.approx(1)
    x, y = torch.randn(40, 5), torch.arange(40) % 3
    model.head.weight.data.normal_()
    F.cross_entropy(model(x), y).backward()
    assert all(one.grad is not None and one.grad != 0 for one in model.log_rates)
    meter = Meter()
    before = meter.step_cost(model, F.cross_entropy, x, y)
    model.log_rates[0].data.fill_(-0.7)
    assert model.widths[0] in (32, 33)
    assert meter.step_cost(model, F.cross_entropy, x, y) > 1.5 * before
