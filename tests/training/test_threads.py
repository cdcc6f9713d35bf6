"""Threads of a run: chosen by the work of a step, a caller's setting left alone, the former number given back."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from resume_cases import TABLE, MemoryCheckpointer, X, Y
from torch import nn
from torch.nn import functional as F

from senn.checkpoint.model_state import unpacked
from senn.errors import SennError
from senn.integrations.sklearn import SENNClassifier
from senn.training import Callback, TrainConfig, threads, train
from senn.training.threads import (
    MANY_FLOPS,
    SLOWER,
    WINDOW,
    RunThreads,
    caller_setting,
    is_faster_alone,
    is_slower,
    pass_of,
    resumed_number,
    threads_for,
)

CPU = torch.device("cpu")
QUICK = replace(TABLE, epochs=2, addition_rounds=(0.05,), pruning_rounds=())
ROWS = 192  # threads are a matter of steps, and of few of them


@pytest.fixture(autouse=True)
def own_number(monkeypatch):
    """Three threads are torch's own number here, and no variable is set."""
    former = torch.get_num_threads()
    monkeypatch.setattr(threads, "default_numbers", lambda: {3})
    for variable in threads.VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(former)


def fitted(recipe, checkpointer=None, callbacks=()):
    return train(
        X[:ROWS],
        Y[:ROWS],
        task="classification",
        outputs=10,
        recipe=recipe,
        checkpointer=checkpointer,
        callbacks=callbacks,
    )


class Numbers(Callback):
    """Hears how many threads there are at the end of each epoch."""

    def __init__(self, then=None):
        self.seen, self.then = [], then

    def on_epoch(self, record):
        self.seen.append(torch.get_num_threads())
        if self.then is not None:
            raise self.then


def test_the_work_of_a_step_per_weight_decides():
    assert threads_for(0, weights=0, most=4) == 1
    assert threads_for(3 * MANY_FLOPS - 1, weights=3, most=4) == 1
    assert threads_for(3 * MANY_FLOPS, weights=3, most=4) == 4


def test_the_median_of_the_last_steps_decides_whether_they_are_slower():
    assert not is_slower([1.0, 1.0, 1.0, 50.0, 50.0], usual=1.0)
    assert is_slower([1.0, 1.0, 2.1, 2.1, 2.1], usual=1.0)


def test_one_thread_must_be_clearly_faster():
    assert is_faster_alone([0.7, 0.7, 9.0], [1.0, 1.0, 1.0])
    assert not is_faster_alone([0.9, 0.9, 0.9], [1.0, 1.0, 1.0])


def test_a_small_network_takes_one_thread_and_says_so():
    run = fitted(QUICK, callbacks=[heard := Numbers()])
    assert heard.seen == [1, 1]
    (change,) = run.threads
    assert (change["step"], change["number"], change["by"]) == (0, 1, "work")
    assert "MFLOP per weight, less than 32" in change["reason"]
    assert run.history[-1]["threads"] == run.threads
    assert torch.get_num_threads() == 3


def test_a_number_that_is_given_holds():
    run = fitted(replace(QUICK, threads=2), callbacks=[heard := Numbers()])
    assert heard.seen == [2, 2]
    assert [(change["number"], change["by"]) for change in run.threads] == [(2, "given")]
    assert torch.get_num_threads() == 3
    with pytest.raises(SennError, match="threads must be a whole number of at least 1 or None"):
        TrainConfig(threads=0)


@pytest.mark.parametrize("variable", threads.VARIABLES)
def test_a_variable_of_the_caller_is_left_alone(variable, monkeypatch):
    monkeypatch.setenv(variable, "3")
    run = fitted(QUICK, callbacks=[heard := Numbers()])
    assert heard.seen == [3, 3]
    assert run.threads[0]["by"] == "caller"
    assert run.threads[0]["reason"] == f"left alone: {variable} is set"


def test_a_call_of_the_caller_is_left_alone():
    torch.set_num_threads(2)
    run = fitted(QUICK, callbacks=[heard := Numbers()])
    assert heard.seen == [2, 2]
    assert run.threads[0]["reason"] == "left alone: torch.set_num_threads"


def test_torchs_own_number_is_known_on_this_machine(monkeypatch):
    monkeypatch.undo()
    assert threads.default_numbers() <= set(range(1, 10_000))
    for variable in threads.VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    torch.set_num_threads(max(threads.default_numbers()) + 1)
    assert caller_setting() == "torch.set_num_threads"


def test_several_processes_and_other_devices_are_left_alone():
    for arguments, by in (((CPU, False), "processes"), ((torch.device("meta"), True), "device")):
        with RunThreads(None, arguments[0], is_single=arguments[1]) as several:
            several.choose(lambda: 0, nn.Linear(1, 1), step=0)
            assert torch.get_num_threads() == 3
        assert [change["by"] for change in several.changes] == [by]


@pytest.mark.parametrize("error", [ValueError("stop"), KeyboardInterrupt()])
def test_an_estimator_gives_back_the_number_also_after_an_exception(error, monkeypatch):
    model = SENNClassifier(recipe=QUICK, verbose=1)
    heard = Numbers(then=error)
    monkeypatch.setattr("senn.integrations._sklearn_base.progress", lambda verbose: (heard,))
    with pytest.raises(type(error)):
        model.fit(X[:ROWS].numpy(), Y[:ROWS].numpy())
    assert heard.seen == [1]
    assert torch.get_num_threads() == 3


def test_a_pass_of_an_estimator_gives_back_the_number(monkeypatch):
    seen = []
    monkeypatch.setattr(F, "cross_entropy", noting(F.cross_entropy, seen))
    SENNClassifier(recipe=QUICK).partial_fit(X[:ROWS].numpy(), Y[:ROWS].numpy(), classes=range(10))
    assert set(seen) == {1}
    assert torch.get_num_threads() == 3


def noting(function, seen):
    def called(*arguments, **keywords):
        seen.append(torch.get_num_threads())
        return function(*arguments, **keywords)

    return called


# -- resumption


def saved_state(recipe):
    fitted(recipe, checkpointer := MemoryCheckpointer(wanted=(3,)))
    return unpacked(*checkpointer.kept[0], Path("state"))


def test_a_resumed_run_takes_the_number_of_its_state(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    torch.set_num_threads(2)
    state = saved_state(QUICK)
    torch.set_num_threads(3)
    monkeypatch.delenv("OMP_NUM_THREADS")
    run = fitted(QUICK, MemoryCheckpointer(state), [heard := Numbers()])
    assert heard.seen == [2, 2]
    assert [change["number"] for change in run.threads] == [2]
    assert resumed_number(state["threads"], None) == 2
    assert torch.get_num_threads() == 3


def test_a_run_that_fell_to_one_thread_is_resumed_with_one():
    state = saved_state(replace(QUICK, threads=2))
    state["threads"]["changes"].append({"step": 2, "number": 1, "by": "slower", "reason": ""})
    run = fitted(QUICK, MemoryCheckpointer(state), [heard := Numbers()])
    assert heard.seen == [1, 1]
    assert [change["by"] for change in run.threads] == ["given", "slower"]


def test_a_caller_of_now_is_left_alone_in_a_resumed_run(monkeypatch):
    state = saved_state(QUICK)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    run = fitted(QUICK, MemoryCheckpointer(state), [heard := Numbers()])
    assert heard.seen == [3, 3]
    assert [(one["number"], one["by"]) for one in run.threads] == [(1, "work"), (3, "caller")]
    assert resumed_number(state["threads"], None) == 3


def test_a_run_of_a_former_version_is_resumed_as_it_was():
    state = saved_state(replace(QUICK, threads=3))
    del state["threads"]
    fitted(QUICK, MemoryCheckpointer(state), [heard := Numbers()])
    assert heard.seen == [3, 3]
    assert resumed_number(None, None) == 3


def test_a_state_without_a_number_is_refused():
    state = saved_state(QUICK)
    for saved in ({}, {"changes": []}, {"changes": [{"number": 0}]}):
        state["threads"] = saved
        with pytest.raises(SennError):
            fitted(QUICK, MemoryCheckpointer(state))


# -- the second look


def large():
    """A run whose steps have work enough for all threads."""
    run = RunThreads(None, CPU)
    run.choose(lambda: MANY_FLOPS, nn.Linear(1, 1), step=0)
    assert torch.get_num_threads() == 3
    return run


def noticed(run, monkeypatch, alone, together):
    """Notice steps that become slower, when passes take these times."""
    looks = []
    monkeypatch.setattr(run, "_timed", lambda stand_in, number: ([alone], [together]))
    for step in range(2 * WINDOW):
        seconds = 1.0 if step < WINDOW else 1.1 * SLOWER
        run.notice(seconds, step, lambda: looks.append(torch.get_num_threads()))
    return looks


def test_slower_steps_fall_to_one_thread_if_that_is_faster(monkeypatch):
    with large() as run:
        assert noticed(run, monkeypatch, alone=1.0, together=2.0) == [3]
        assert torch.get_num_threads() == 1
        assert [(one["number"], one["by"]) for one in run.changes] == [(3, "work"), (1, "slower")]
        run.choose(lambda: MANY_FLOPS, nn.Linear(1, 1), step=99)
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 3


def test_slower_steps_keep_their_threads_if_one_is_no_faster(monkeypatch):
    with large() as run:
        assert noticed(run, monkeypatch, alone=2.0, together=2.0) == [3]
        assert noticed(run, monkeypatch, alone=1.0, together=2.0) == []  # that is usual by now
        assert torch.get_num_threads() == 3
        assert len(run.changes) == 1


def test_the_clock_has_no_say_in_deterministic_runs(monkeypatch):
    torch.use_deterministic_algorithms(True)
    try:
        with large() as run:
            assert noticed(run, monkeypatch, alone=1.0, together=2.0) == []
    finally:
        torch.use_deterministic_algorithms(False)


def test_a_timed_pass_touches_nothing():
    model = nn.Sequential(nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 10))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    run, state = large(), torch.get_rng_state()
    with run:
        alone, together = run._timed(pass_of(model, F.cross_entropy, (X, Y)), number=3)
    assert len(alone) == len(together) == 3
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.get_num_threads() == 3
