"""A run that goes on from any of its states comes to the very same end: numbers, decisions, history."""

import functools
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from exhaustive import EVERYTHING
from resume_cases import TABLE, MemoryCheckpointer, X, Y
from sklearn.datasets import load_digits

from senn.checkpoint.model_state import packed, unpacked
from senn.errors import SennError
from senn.training import Callback, train
from senn.training.builders import build_model
from senn.training.image_training import image_config, train_images
from senn.training.incremental import IncrementalTrainer

_DIGITS = load_digits()
PIXELS = (X.view(-1, 1, 8, 8) * 255).to(torch.uint8)
IMAGES = image_config(
    hidden=(4, 4),
    epochs=3,
    batch_size=64,
    addition_rounds=(0.1, 0.5),
    pruning_rounds=(0.7,),
    max_scoring_samples=64,
    candidates_per_layer=4,
)
CASES = {
    "adamw": (TABLE, train),
    "adamw and ema": (replace(TABLE, average="ema"), train),
    "sgd and swa": (replace(TABLE, average="swa", optimizer="sgd"), train),
    "natural gradient": (replace(TABLE, optimizer="natural-gradient"), train),
    "natural gradient and ema": (
        replace(TABLE, optimizer="natural-gradient", average="ema"),
        train,
    ),
    "rmsprop, cut short": (
        replace(TABLE, optimizer="rmsprop", epochs=30, growth_steps=20, lr=0.05, patience=1),
        train,
    ),
    "images, adamw and swa": (replace(IMAGES, average="swa"), train_images),
    "images, natural gradient": (replace(IMAGES, optimizer="natural-gradient"), train_images),
}


STEPS = {
    name: (2, 14) if EVERYTHING or at % 4 == 0 else ((14,) if at % 2 else (2,))
    for at, name in enumerate(CASES)
}
"""From which steps a run is gone on with: before and after growth in one case of four, in each with SENN_ALL=1."""


def fitted(recipe, how, checkpointer=None, callbacks=()):
    if how is train_images:
        return how(
            PIXELS, Y, classes=10, recipe=recipe, checkpointer=checkpointer, callbacks=callbacks
        )
    return how(
        X,
        Y,
        task="classification",
        outputs=10,
        recipe=recipe,
        checkpointer=checkpointer,
        callbacks=callbacks,
    )


def told(run):
    """All that a run says, but for its seconds."""
    return [
        {key: value for key, value in record.items() if key != "seconds"} for record in run.history
    ]


@pytest.mark.parametrize(("name", "steps"), STEPS.items(), ids=CASES)
def test_whatever_the_state_the_end_is_the_same(name, steps):
    recipe, how = CASES[name]
    whole = fitted(recipe, how, checkpointer := MemoryCheckpointer(wanted=steps))
    assert any(record["event"] == "growth" for record in whole.history)
    assert len(checkpointer.kept) == len(steps)
    for document, numbers in checkpointer.kept:
        heard = Callback()
        started = []
        heard.on_start = started.append
        state = unpacked(document, numbers, Path("state"))
        run = fitted(recipe, how, again := MemoryCheckpointer(state), [heard])
        assert repr(told(run)) == repr(told(whole))
        assert again.restarted == run.history[: len(again.restarted)]
        assert started == [run.history[0]]
        ours, theirs = run.model.state_dict(), whole.model.state_dict()
        assert [*ours] == [*theirs]
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_keeping_the_state_changes_nothing():
    kept = fitted(TABLE, train, MemoryCheckpointer(wanted=(3, 9)))
    assert repr(told(kept)) == repr(told(fitted(TABLE, train)))


def test_training_without_an_end_goes_on(tmp_path):
    def fresh():
        torch.manual_seed(0)
        return IncrementalTrainer(build_model(64, 10, recipe), recipe, "classification")

    recipe = replace(TABLE, growth_steps=20)
    ours = fresh()
    for start in (0, 100, 200):
        ours.partial_fit(X[start:][:100], Y[start:][:100])
    theirs = fresh()
    theirs.load_state_dict(unpacked(*packed(ours.state_dict()), Path("state")))
    for start in (300, 0, 100, 200):
        rows = X[start:][:100], Y[start:][:100]
        assert repr(ours.partial_fit(*rows)) == repr(theirs.partial_fit(*rows))
    assert ours.learner.events
    with pytest.raises(SennError):
        theirs.load_state_dict({"learner": {}})


def test_a_nesting_comes_back_as_it_was():
    matrix = torch.arange(6.0).view(2, 3)
    state = {
        "a": [1, 2.5, -0.0, math.inf, math.nan, None, True, "x"],
        "b": {1: (2, 3), "c": {}},
        "d": [
            matrix,
            matrix.T,
            torch.zeros(0, 2),
            torch.tensor(3),
            torch.zeros(3, 1, 2).permute(2, 0, 1),
        ],
    }
    back = unpacked(*packed(state), Path("state"))
    assert repr(back) == repr(state)
    assert [one.stride() for one in back["d"][:2]] == [(3, 1), (1, 3)]
    with pytest.raises(TypeError, match="a set is neither"):
        packed({"a": {1}})


@functools.cache
def kept_after_three_steps():
    checkpointer = MemoryCheckpointer(wanted=(3,))
    fitted(replace(TABLE, epochs=1), train, checkpointer)
    return checkpointer.kept[0]


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state.pop("plan"),
        lambda state: state["plan"].update(batches=10**9),
        lambda state: state.update(history=[1]),
        lambda state: state["learner"].pop("grower"),
        lambda state: state["learner"]["optimizer"].update(names=[["a"]]),
        lambda state: state["learner"]["model"].update(version=99),
        lambda state: state["learner"]["model"]["tensors"].popitem(),
        lambda state: state["best"]["model"]["description"].pop("tied"),
        lambda state: state.update(generator=torch.zeros(2, dtype=torch.uint8)),
        lambda state: state.update(rounds=None),
    ],
)
def test_what_is_no_state_of_such_a_run_is_refused(change):
    state = unpacked(*kept_after_three_steps(), Path("state"))
    change(state)
    with pytest.raises(SennError):
        fitted(replace(TABLE, epochs=1), train, MemoryCheckpointer(state))
