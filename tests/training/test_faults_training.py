"""What goes wrong with the numbers in a run costs one round or one checkpoint, and is said; never the run."""

import math
from dataclasses import replace

import pytest
import torch
from resume_cases import TABLE, MemoryCheckpointer, X, Y

from senn.errors import SennError
from senn.policies import PricePolicy
from senn.training import Callback, train

SATURATED = replace(
    TABLE,
    activation="tanh",
    shortcut=False,
    epochs=4,
    addition_rounds=(0.1, 0.3, 0.9),
    pruning_rounds=(0.6,),
)


class Heard(Callback):
    """Notes faults."""

    def __init__(self):
        self.faults = []

    def on_fault(self, record):
        self.faults.append(record)


def fit(recipe, x=X, checkpointer=None, callback=None):
    callbacks = [] if callback is None else [callback]
    return train(
        x,
        Y,
        task="classification",
        outputs=10,
        recipe=recipe,
        callbacks=callbacks,
        checkpointer=checkpointer,
    )


def test_statistics_that_explode_cost_their_round():
    """Units that are saturated pass on nothing of a row's size, but its square is infinite."""
    x = X.clone()
    x[::7] = 1e25
    run = fit(SATURATED, x, callback=(heard := Heard()))
    faults = [record for record in run.history if record["event"] == "fault"]
    assert [record["text"] for record in faults] == [
        "the round was skipped: a curvature factor holds NaN or infinity: the network or its loss has diverged"
    ] * len(faults)
    assert len(faults) == 4
    assert heard.faults == faults
    assert not [record for record in run.history if record["event"] == "growth_round"]
    end = run.history[-1]
    assert end["reason"] == "all epochs done"
    assert end["epochs"] == 4
    assert all(parameter.isfinite().all() for parameter in run.model.parameters())


@pytest.mark.parametrize(
    "error", [ZeroDivisionError("by nothing"), torch.linalg.LinAlgError("not positive\nat 3")]
)
def test_a_decision_that_fails_costs_its_round(error):
    """What was looked at for it is forgotten, and the next round is one as if nothing had been."""

    class Once(PricePolicy):
        def choose(self, candidates, accepted):
            if not came:
                came.append(1)
                raise error
            return super().choose(candidates, accepted)

    came = []
    run = fit(replace(TABLE, policy=Once()))
    events = [record["event"] for record in run.history]
    assert events.count("fault") == 1
    assert str(error).splitlines()[0] in run.history[events.index("fault")]["text"]
    assert events.index("fault") < events.index("growth_round") < events.index("growth")
    assert run.history[events.index("growth_round")]["round"] == 1


def test_a_factorisation_that_fails_in_a_step_ends_the_run_with_the_best_net():
    class Broken(torch.optim.SGD):
        def step(self, closure=None):
            super().step(closure)
            count.append(1)
            if len(count) == 15:
                raise torch.linalg.LinAlgError("The factorization could not be completed.")

    count = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim, "Broken", Broken, raising=False)
        run = fit(replace(TABLE, optimizer="broken", grow=False, lr=0.1))
    assert run.history[-1]["reason"].startswith(
        "The factorization could not be completed., in epoch 3; the net is that"
    )
    assert run.best_epoch in (1, 2)


def test_no_checkpoint_holds_a_network_that_has_diverged():
    """The states before are good, and the run says that there are no more."""
    checkpointer = MemoryCheckpointer(wanted=range(1, 99))
    run = fit(replace(TABLE, optimizer="sgd", lr=1e38, grow=False), checkpointer=checkpointer)
    assert "not finite" in run.history[-1]["reason"]
    faults = [record["text"] for record in run.history if record["event"] == "fault"]
    assert faults
    assert all(
        "no checkpoint was written: " in text and "NaN or infinity" in text for text in faults
    )
    assert len(checkpointer.kept) + len(faults) == checkpointer.asked


def test_a_checkpoint_that_cannot_be_written_costs_itself_alone():
    class Full(MemoryCheckpointer):
        def save(self, state):
            if self.asked != 5:
                super().save(state)
                return
            raise (OSError(28, "No space left on device") if len(self.kept) else SennError("no"))

    run = fit(TABLE, checkpointer=(checkpointer := Full(wanted=(2, 5, 8))))
    assert len(checkpointer.kept) == 2
    assert [record["text"] for record in run.history if record["event"] == "fault"] == [
        "no checkpoint was written: [Errno 28] No space left on device"
    ]
    undisturbed = fit(TABLE)
    assert math.isclose(run.validation["loss"], undisturbed.validation["loss"], rel_tol=0)
