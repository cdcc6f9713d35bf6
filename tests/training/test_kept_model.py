"""Which network of a run is kept: that of the size which was found, unless one before was better beyond noise."""

from __future__ import annotations

import math
import time
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from senn.policies import PaperPolicy
from senn.training import TrainConfig, train
from senn.training.batches import Inputs, Rows
from senn.training.run_state import BestModel, RunState
from senn.training.validation import Validation, validate


def validation(losses, misses=None, weight=None) -> Validation:
    rows = torch.tensor(losses)
    share = torch.ones(len(rows)) if weight is None else torch.tensor(weight)
    share = (share / share.sum()).double()
    wrong = None if misses is None else torch.tensor(misses, dtype=torch.float32)
    figures = {"loss": float((share * rows).sum())}
    if wrong is not None:
        figures["accuracy"] = 1 - float((share * wrong).sum())
    return Validation(figures=figures, row_losses=rows, misses=wrong, weight=share)


def test_the_difference_is_that_of_the_same_rows():
    best = validation([0.0, 1.0, 2.0, 3.0])
    # Every row is worse by as much: the noise of the rows themselves cancels.
    assert not validation([0.1, 1.1, 2.1, 3.1]).is_level_with(best, "loss")
    # mean .1; deviations of 1 and -1 by turns: standard error 1 / 2
    assert validation([1.1, 0.1, 3.1, 2.1]).is_level_with(best, "loss")
    # mean .6
    assert not validation([1.6, 0.6, 3.6, 2.6]).is_level_with(best, "loss")
    assert best.is_level_with(best, "loss")
    assert validation([-1.0, 0.0, 1.0, 2.0]).is_level_with(best, "loss")
    assert not validation([math.nan, 1.0, 2.0, 3.0]).is_level_with(best, "loss")


def test_the_score_counts_wrong_classes():
    best = validation([0.0] * 4, [0, 0, 0, 0])
    # worse in loss, level in accuracy, and the other way round
    assert validation([1.0] * 4, [0, 0, 0, 0]).is_level_with(best, "score")
    assert not validation([0.0] * 4, [1, 1, 1, 1]).is_level_with(best, "score")
    # one miss in four: mean 1/4, standard error sqrt(3/16 / 4) = .22
    assert not validation([0.0] * 4, [1, 0, 0, 0]).is_level_with(best, "score")
    assert validation([0.0] * 4, [1, 0, 0, 0], [0.25, 1, 1, 1]).is_level_with(best, "score")


@given(
    st.lists(st.integers(-8, 8), min_size=2, max_size=20), st.lists(st.integers(-8, 8), min_size=20)
)
def test_what_is_hard_for_both_networks_cancels(differences, hard):
    hard = [float(value) for value in hard[: len(differences)]]
    plain = validation([0.0] * len(differences))
    one = validation([float(value) for value in differences])
    shifted = validation([a + b for a, b in zip(differences, hard, strict=True)])
    assert shifted.is_level_with(validation(hard), "loss") == one.is_level_with(plain, "loss")
    assert one.is_level_with(plain, "loss") or sum(differences) > 0


def state(best_losses) -> RunState:
    best = BestModel(model=nn.Linear(1, 1), epoch=0, validation=validation(best_losses))
    return RunState(
        config=TrainConfig().plan(100),
        best=best,
        order_generator=torch.Generator().get_state(),
        started=time.perf_counter(),
    )


def run(epochs, monitor="loss"):
    """Epochs with the losses of two rows, or None for a change of size; returns the epoch that is kept, and why."""
    now = state([9.0, 9.0])
    for losses in epochs:
        if losses is None:
            now.since_change = None
            continue
        now.epoch += 1
        now.consider(nn.Linear(1, now.epoch), validation(losses), monitor)
    kept, why = now.kept(monitor)
    assert kept.model.out_features == kept.epoch
    assert f"epoch {kept.epoch} is kept" in why
    return kept.epoch, why


@pytest.mark.parametrize(
    ("epochs", "kept", "why"),
    [
        ([[3.0, 3.0], [1.0, 1.0], [2.0, 2.0]], 2, "the best on the validation rows"),
        # level with epoch 1 by 1 +- 2
        ([[1.0, 1.0], None, [5.0, 5.0], [4.0, 0.0]], 3, "since the last change of size"),
        ([[1.0, 1.0], None, [2.0, 2.0], [1.5, 1.5]], 1, "none since the last change"),
        ([[1.0, 1.0], None, [0.5, 0.5], None, [2.0, -0.9]], 3, "since the last change of size"),
        ([[1.0, 1.0], None], 1, "the best on the validation rows"),
    ],
)
def test_the_size_that_was_found_is_kept_unless_it_is_worse_beyond_noise(epochs, kept, why):
    found, reason = run(epochs)
    assert found == kept
    assert why in reason


def test_without_validation_rows_the_last_network_is_kept():
    now = state([9.0])
    now.best.validation = None
    for epoch in (1, 2):
        now.epoch = epoch
        now.consider(nn.Linear(1, epoch), None, "loss")
    kept, why = now.kept("loss")
    assert kept.epoch == 2
    assert "no validation rows" in why


def test_both_networks_survive_a_checkpoint():
    now = state([9.0, 9.0])
    now.epoch = 1
    now.consider(nn.Linear(1, 1), validation([1.0, 1.0], [0, 1]), "loss")
    now.since_change = None
    now.epoch = 2
    now.consider(nn.Linear(1, 1), validation([0.5, 2.0], [0, 1]), "loss")
    again = state([9.0, 9.0])
    again.load_state_dict(now.state_dict(), torch.device("cpu"))
    assert (again.best.epoch, again.since_change.epoch, again.best_epoch) == (1, 2, 2)
    assert again.kept("loss")[1] == now.kept("loss")[1]
    # as version 0.1 wrote it, without losses of rows
    old = now.state_dict()
    del old["since_change"], old["best"]["rows"]
    again.load_state_dict(old, torch.device("cpu"))
    again.consider(nn.Linear(1, 1), validation([2.0, 2.0], [0, 1]), "loss")
    assert again.kept("loss")[0].epoch == 1


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_losses_of_rows_average_to_the_loss(task):
    torch.manual_seed(0)
    x, weight = torch.randn(20, 3), torch.rand(20)
    y = torch.randint(4, (20,)) if task == "classification" else torch.randn(20, 4)
    model = nn.Linear(3, 4)

    def loss(outputs, targets, weight):
        if task == "classification":
            each = nn.functional.cross_entropy(outputs, targets, reduction="none")
        else:
            each = (outputs - targets).square().mean(1)
        return (weight * each).sum() / weight.sum()

    found = validate(model, Rows(x=x, y=y, weight=weight), Inputs(), loss, task)
    assert float((found.weight * found.row_losses).sum()) == pytest.approx(found.figures["loss"])
    if found.misses is not None:
        missed = float((found.weight * found.misses).sum())
        assert missed == pytest.approx(1 - found.figures["accuracy"])


def test_removals_begin_with_the_best_network_of_the_size():
    now = state([9.0, 9.0])
    worse, level = validation([2.0, 2.0]), validation([0.0, 3.0])
    now.consider(nn.Linear(1, 1), validation([1.0, 1.0]), "loss")
    found = now.better_before(worse, "loss")
    assert found is now.since_change is not None
    assert now.better_before(level, "loss") is None  # worse by .5 +- 1.5
    assert now.better_before(validation([0.5, 0.5]), "loss") is None
    assert now.better_before(None, "loss") is None
    now.since_change = None  # of another size
    assert now.better_before(worse, "loss") is None


def learned_by_heart(**changes):
    """A run on labels that are noise to a good part: with time, the net learns its training rows by heart."""
    torch.manual_seed(0)
    x = torch.randn(240, 8)
    y = ((x[:, 0] + 1.5 * torch.randn(240)) > 0).long()
    recipe = TrainConfig(
        epochs=60,
        batch_size=16,
        lr=0.02,
        validation_fraction=0.4,
        hidden=(48,),
        moves=("width", "prune"),
        addition_rounds=(),
        pruning_rounds=(0.7,),
        schedule="constant",
        patience=None,
        linear=False,
    )
    return train(x, y, task="classification", outputs=2, recipe=replace(recipe, **changes))


def returns(run):
    return [one for one in run.history if one["event"] == "rollback" and "again" in one["text"]]


def test_a_network_that_has_got_worse_goes_back_before_units_go():
    run = learned_by_heart()
    (back,) = returns(run)
    losses = {
        one["epoch"]: one["validation_loss"] for one in run.history if one["event"] == "epoch"
    }
    former = {epoch: loss for epoch, loss in losses.items() if epoch < back["epoch"]}
    best = min(former, key=former.get)
    assert f"those of epoch {best} again" in back["text"]
    assert losses[back["epoch"] - 1] > 1.5 * former[best]
    assert run.architecture[0] < 48
    # What is kept is smaller, and as good as the best one of the former size.
    assert run.validation["loss"] < 1.1 * former[best]


@pytest.mark.parametrize(
    "changes",
    [{"moves": ("width",)}, {"grow": False}, {"policy": PaperPolicy(prune_fraction=0.01)}],
)
def test_a_network_that_can_lose_no_unit_and_the_papers_method_never_go_back(changes):
    assert returns(learned_by_heart(**changes)) == []
