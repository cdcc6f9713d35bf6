"""A limit of time, on a clock that goes on by what the network computes: no real time is measured."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.helpers.resume_cases import MemoryCheckpointer, X, Y

from senn.checkpoint.model_state import unpacked
from senn.errors import SennError
from senn.nn import MLP
from senn.training import TrainConfig
from senn.training.batches import Rows
from senn.training.loop import fit_model

FIXED = TrainConfig(
    hidden=(4,), grow=False, epochs=10, batch_size=40, patience=float("inf"), tail=0.5
)


class Clock:
    """A clock that a training pass moves by a tenth of a second, and any other by a hundredth."""

    def __init__(self, now: float = 0.0, slow_from: int = 10**9) -> None:
        self.now, self.steps, self.slow_from = now, 0, slow_from

    def __call__(self) -> float:
        return self.now

    def tick(self, module: torch.nn.Module, args: object) -> None:
        self.steps += module.training
        pace = 0.3 if self.steps > self.slow_from else 0.1
        self.now += pace if module.training else 0.01


def run(recipe=FIXED, clock=None, checkpointer=None):
    clock = clock or Clock()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = MLP(64, (4,), 10)
        model.register_forward_pre_hook(clock.tick)
        result = fit_model(
            *(model, Rows(x=X[:320], y=Y[:320]), Rows(x=X[320:], y=Y[320:])),
            task="classification",
            recipe=recipe,
            generator=torch.Generator().manual_seed(0),
            checkpointer=checkpointer,
            clock=clock,
        )
    return result, clock


def records(result, kind):
    return [record for record in result.history if record["event"] == kind]


@pytest.mark.parametrize("schedule", ["tail", "cosine", "constant"])
@pytest.mark.parametrize("slow_from", [10**9, 30])
def test_a_run_ends_within_its_limit_as_a_shorter_one_would(schedule, slow_from):
    recipe = replace(FIXED, schedule=schedule, max_seconds=5.0)
    result, clock = run(recipe, Clock(slow_from=slow_from))
    assert 4.5 < clock.now <= 5.0  # 80 steps would take 8 seconds
    (end,), last = records(result, "end"), records(result, "epoch")[-1]
    assert end["reason"] == (f"{last['step']} of 80 steps were planned, to end within 5 s")
    assert last["steps"] == last["step"] == clock.steps
    assert last["epoch"] == last["epochs"]
    # the learning rate has fallen as it does over the last steps of any run, but for the steps that a slow end cost
    done = [last["step"] - back for back in ((1,) if slow_from > 80 else (1, 4))]
    factors = [recipe.lr_factor(step / last["step"]) for step in done]
    assert 0.99 * min(factors) <= last["lr"] / 4e-3 <= 1.01 * max(factors)
    assert result.seconds <= 5.0


def test_a_run_with_time_enough_is_the_same_as_without_a_limit():
    free, _ = run()
    limited, _ = run(replace(FIXED, max_seconds=9.0))
    assert [*records(free, "epoch"), *records(free, "end")] == [
        *records(limited, "epoch"),
        *records(limited, "end"),
    ]
    for name, tensor in free.model.state_dict().items():
        assert torch.equal(tensor, limited.model.state_dict()[name])


GROWING = TrainConfig(
    hidden=(4,),
    epochs=10,
    batch_size=40,
    patience=float("inf"),
    addition_rounds=(0.1, 0.3),
    pruning_rounds=(0.6,),
    candidates_per_layer=6,
    max_scoring_samples=64,
    moves=("width", "prune"),
    frontier=True,
)


def test_growth_belongs_to_the_shorter_run_and_what_comes_after_it_has_time():
    free, clock = run(GROWING)
    planned = [record["step"] for record in records(free, "growth_round")]
    assert planned == [8, 24, 48]
    limit = 0.8 * clock.now
    limited, clock = run(replace(GROWING, max_seconds=limit))
    assert 0.7 * limit < clock.now <= limit
    rounds = [record["step"] for record in records(limited, "growth_round")]
    assert len(rounds) == 3
    assert rounds[-1] < 48
    assert limited.frontier is not None
    assert records(limited, "fault") == []


def test_a_round_without_time_is_left_out_and_said():
    result, clock = run(replace(GROWING, max_seconds=1.5))
    assert clock.now <= 1.5
    faults = {record["text"] for record in records(result, "fault")}
    assert "a round of growth was left out: there is no time for it" in faults


def test_seconds_of_former_parts_count():
    limited = replace(FIXED, max_seconds=5.0)
    saved = MemoryCheckpointer(wanted=(20,))
    run(limited, checkpointer=saved)
    state = unpacked(*saved.kept[0], Path("state"))
    # in another process, whose clock may begin anywhere
    resumed, clock = run(limited, Clock(now=1000.0), MemoryCheckpointer(state))
    former = state["seconds"]
    assert former == pytest.approx(2.0, abs=0.1)
    assert 4.5 < former + clock.now - 1000.0 <= 5.0
    assert records(resumed, "end")[0]["reason"].endswith("to end within 5 s")


def test_a_limit_that_has_passed_ends_a_run_after_one_step():
    result, clock = run(replace(FIXED, max_seconds=0.05))
    assert clock.steps == 1
    assert len(records(result, "epoch")) == 1


def test_a_limit_is_a_number_above_0():
    with pytest.raises(SennError, match="max_seconds must be a number above 0 or None, not 0"):
        TrainConfig(max_seconds=0)
