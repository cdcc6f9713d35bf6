"""The training loop: data splits, plans, stopping, growth, and what it must leave alone."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits, load_wine
from torch import nn

from senn.errors import DivergenceError, SennError, SurgeryError
from senn.flops import forward_flops
from senn.nn import MLP, Rational
from senn.policies import PaperPolicy, PricePolicy
from senn.training import Callback, TrainConfig, train
from senn.training.builders import build_grower, build_model, build_optimizer, resolve_policy
from senn.training.incremental import IncrementalTrainer
from senn.training.train_step import TrainStep

FIXED = TrainConfig(hidden=(8,), grow=False, epochs=4, batch_size=32)


def blobs(n=240, features=4, classes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % classes
    centres = torch.randn(classes, features, generator=generator) * 3
    return centres[y] + torch.randn(n, features, generator=generator), y


def curve(n=300, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(n, 1, generator=generator) * 4 - 2
    return x, torch.sin(3 * x) + 0.05 * torch.randn(n, 1, generator=generator)


def fit(x, y, recipe=FIXED, **options):
    return train(x, y, task="classification", outputs=int(y.max()) + 1, recipe=recipe, **options)


def states(run):
    return run.model.state_dict().items()


class Listener(Callback):
    def __init__(self):
        self.heard = []

    def on_start(self, record):
        self.heard.append(("start", dict(record)))

    def on_epoch(self, record):
        self.heard.append(("epoch", dict(record)))

    def on_growth(self, record):
        self.heard.append(("growth", dict(record)))

    def on_end(self, record):
        self.heard.append(("end", dict(record)))


# -- training


def test_classes_are_learnt():
    x, y = blobs()
    run = fit(x, y, replace(FIXED, epochs=20))
    assert run.validation["accuracy"] >= 0.9
    assert (run.model(x).argmax(1) == y).float().mean() >= 0.9
    assert run.architecture == (8,)
    assert run.parameters == 8 * 5 + 3 * 9 + 3 * 4  # with the shortcut
    assert not run.model.training
    assert not run.interrupted


def test_several_targets_are_regressed():
    x, y = curve()
    y = torch.cat([y, x**2 - 1], 1)
    recipe = TrainConfig(hidden=(32,), grow=False, epochs=80, activation="tanh", lr=0.02)
    run = train(x, y, task="regression", outputs=2, recipe=recipe)
    assert run.validation["r2"] > 0.8
    assert F.mse_loss(run.model(x), y) < 0.1


def test_the_start_predicts_nothing():
    model = build_model(3, 2, TrainConfig(hidden=(5,)))
    assert torch.equal(model(torch.randn(4, 3)), torch.zeros(4, 2))


def test_same_seed_same_net_and_another_seed_another():
    x, y = blobs()
    first, again, other = fit(x, y), fit(x, y), fit(x, y, replace(FIXED, seed=1))
    assert all(
        torch.equal(a, b) for (_, a), (_, b) in zip(states(first), states(again), strict=True)
    )
    assert not all(
        torch.equal(a, b) for (_, a), (_, b) in zip(states(first), states(other), strict=True)
    )


def test_global_random_state_and_grad_mode_are_left_alone():
    x, y = blobs()
    before = torch.get_rng_state()
    with torch.no_grad():
        fit(x, y)
        assert not torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), before)


def test_history_is_json_and_callbacks_hear_the_same():
    x, y = blobs()
    listener = Listener()
    run = fit(x, y, callbacks=[listener])
    kinds = [kind for kind, _ in listener.heard]
    assert kinds == ["start", *["epoch"] * 4, "end"]
    assert [record for _, record in listener.heard] == run.history
    assert json.loads(json.dumps(run.history)) == run.history
    assert listener.heard[0][1]["train_rows"] + listener.heard[0][1]["validation_rows"] == len(x)
    assert run.history[-1]["epochs"] == 4
    assert run.history[4]["step"] == run.history[4]["steps"]


def test_the_best_epoch_is_kept():
    """Validation targets that contradict the training targets: the first epochs are the best."""
    x, y = blobs()
    run = fit(
        x,
        y,
        replace(FIXED, epochs=12, patience=3, addition_rounds=(), pruning_rounds=()),
        validation=(x, (y + 1) % 3),
    )
    assert run.best_epoch == 0
    assert run.history[-1]["epochs"] == 5  # three of patience make two thirds, the rest is the tail
    assert run.history[5]["lr"] < run.history[3]["lr"] == 4e-3
    assert "no better validation loss" in run.history[-1]["reason"]
    assert torch.equal(run.model(x), torch.zeros(len(x), 3))
    assert run.validation["loss"] == pytest.approx(math.log(3), rel=1e-6)


def test_the_best_epoch_by_accuracy_or_by_loss():
    x, y = blobs()
    for monitor, figure, best in (
        ("loss", "validation_loss", min),
        ("score", "validation_score", max),
    ):
        run = fit(x, y, replace(FIXED, epochs=10, lr=0.05, monitor=monitor))
        figures = [record[figure] for record in run.history if record["event"] == "epoch"]
        assert figures[run.best_epoch - 1] == best(figures)


def test_a_run_is_not_cut_short_while_the_net_may_grow():
    x, y = blobs()
    for last in (
        {"addition_rounds": (0.1, 0.5), "pruning_rounds": ()},
        {"addition_rounds": (0.1,), "pruning_rounds": (0.2, 0.5)},
    ):
        recipe = replace(FIXED, epochs=12, patience=3, **last)
        assert fit(x, y, recipe, validation=(x, (y + 1) % 3)).history[-1]["epochs"] == 9
        cosine = replace(recipe, schedule="cosine")
        assert fit(x, y, cosine, validation=(x, (y + 1) % 3)).history[-1]["epochs"] == 6


def test_without_validation_rows_the_last_epoch_is_kept():
    x, y = blobs(36)
    run = fit(x, y)
    assert (run.best_epoch, run.validation) == (4, {})


@pytest.mark.parametrize("average", ["ema", "swa"])
def test_averaged_weights_are_what_comes_out(average):
    x, y = blobs()
    plain = fit(x, y, replace(FIXED, epochs=8, tail=0.5))
    averaged = fit(x, y, replace(FIXED, epochs=8, tail=0.5, average=average, average_decay=0.9))
    assert averaged.best_epoch == 8
    assert isinstance(averaged.model, MLP)
    assert not torch.equal(plain.model(x), averaged.model(x))
    assert averaged.validation["loss"] < 0.9 * math.log(3)


def test_a_loss_that_is_not_finite_ends_the_run_with_the_last_good_net():
    x, y = blobs()
    run = fit(x, y, replace(FIXED, optimizer="sgd", lr=1e30, epochs=6))
    assert "not finite" in run.history[-1]["reason"]
    assert all(torch.isfinite(p).all() for p in run.model.parameters())
    assert json.loads(json.dumps(run.history, allow_nan=False)) == run.history


def test_an_interruption_gives_the_run_so_far():
    class Impatient(Callback):
        def on_epoch(self, record):
            if record["epoch"] == 2:
                raise KeyboardInterrupt

    x, y = blobs()
    run = fit(x, y, callbacks=[Impatient()])
    assert run.interrupted
    assert run.history[-1]["interrupted"]
    assert run.history[-1]["epochs"] == 2
    assert run.model(x).shape == (240, 3)


# -- weights


def test_rows_of_weight_zero_count_as_absent():
    x, y = blobs()
    weight = torch.ones(len(x))
    weight[::5] = 0
    weighted = fit(x, y, sample_weight=weight)
    removed = fit(x[weight > 0], y[weight > 0])
    assert all(
        torch.equal(a, b) for (_, a), (_, b) in zip(states(weighted), states(removed), strict=True)
    )


def test_only_the_ratio_of_weights_counts():
    x, y = blobs()
    weight = torch.rand(len(x)) + 0.5
    first, scaled = fit(x, y, sample_weight=weight), fit(x, y, sample_weight=weight * 8)
    for (_, a), (_, b) in zip(states(first), states(scaled), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_a_weighted_loss_is_the_mean_over_repeated_rows(task):
    learner = TrainStep(MLP(3, (4,), 2), FIXED, task, 6)
    output = torch.randn(6, 2)
    target = torch.randint(2, (6,)) if task == "classification" else torch.randn(6, 2)
    weight = torch.tensor([1.0, 3.0, 0.0, 2.0, 1.0, 1.0])
    rows = torch.repeat_interleave(torch.arange(6), weight.long())
    expected = learner.loss(output[rows], target[rows])
    torch.testing.assert_close(learner.loss(output, target, weight / weight.mean()), expected)


# -- optimizers


@pytest.mark.parametrize(
    "name", ["adam", "AdamW", "sgd", "rmsprop", "nadam", "adagrad", "adadelta", "adafactor"]
)
def test_any_optimizer_by_name(name):
    x, y = blobs()
    run = fit(x, y, replace(FIXED, optimizer=name))
    losses = [record["train_loss"] for record in run.history if record["event"] == "epoch"]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("choices", "words"),
    [
        ({"optimizer": "adamant"}, "unknown optimizer 'adamant'"),
        ({"optimizer": "lbfgs"}, "'lbfgs' cannot be used"),
        ({"optimizer_options": {"speed": 2}}, "speed"),
        ({"activation": "swoosh"}, "swoosh"),
    ],
)
def test_what_cannot_be_made_is_refused_by_name(choices, words):
    x, y = blobs()
    with pytest.raises(SennError, match=words):
        fit(x, y, TrainConfig(**choices, grow=False))


def test_options_reach_the_optimizer():
    recipe = replace(
        FIXED, optimizer="adamw", lr=0.1, weight_decay=0.2, optimizer_options={"eps": 1e-3}
    )
    defaults = build_optimizer(MLP(3, (2,), 2), recipe, F.cross_entropy).defaults
    assert (defaults["lr"], defaults["weight_decay"], defaults["eps"]) == (0.1, 0.2, 1e-3)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x": torch.zeros(240)}, "x must be"),
        ({"x": torch.full((240, 4), math.nan)}, "x contains NaN"),
        ({"y": torch.zeros(240)}, "torch.long"),
        ({"y": torch.full((240,), 3)}, "class numbers from 0 to 2"),
        ({"y": torch.zeros(3, dtype=torch.long)}, "shape"),
        ({"task": "ranking"}, "task must be"),
        ({"sample_weight": torch.zeros(240)}, "sample_weight"),
        ({"sample_weight": -torch.ones(240)}, "sample_weight"),
        ({"task": "regression"}, "y must have the shape"),
    ],
)
def test_bad_data_is_refused_by_name(change, words):
    x, y = blobs()
    with pytest.raises(SennError, match=words):
        train(**{"x": x, "y": y, "task": "classification", "outputs": 3, "recipe": FIXED, **change})


# -- growth

GROWING = TrainConfig(
    epochs=12,
    batch_size=32,
    addition_rounds=(0.1, 0.2, 0.3, 0.4, 0.5),
    pruning_rounds=(),
    moves=("width",),
)


def test_a_net_grows_to_what_its_data_need():
    x, y = curve()
    listener = Listener()
    recipe = replace(GROWING, hidden=(1,), epochs=100, lr=0.02)
    run = train(x, y, task="regression", outputs=1, recipe=recipe, callbacks=[listener])
    growth = [record for record in run.history if record["event"] == "growth"]
    assert growth
    assert growth[0]["architecture"] == [growth[0]["width_after"]]
    assert run.architecture[0] > 1
    assert run.validation["r2"] > 0.8
    assert json.loads(json.dumps(run.history)) == run.history
    assert [kind for kind, _ in listener.heard].count("growth") == len(growth)
    assert growth[0]["realized_decrease"] is not None


def test_growth_is_deterministic_by_seed():
    x, y = blobs()
    runs = [fit(x, y, GROWING) for _ in range(2)]
    assert runs[0].architecture == runs[1].architecture
    assert torch.equal(runs[0].model(x), runs[1].model(x))


def test_growth_keeps_to_its_budget():
    x, y = blobs(features=8)
    free = fit(x, y, GROWING)
    bounded = fit(x, y, replace(GROWING, max_params=65))
    assert free.parameters > 65
    assert bounded.parameters <= 65
    # the widths at the start are halved, and a unit of the second layer brings 2 + 3 weights
    wide = fit(x, y, replace(GROWING, max_flops=115))
    assert wide.architecture == (2, 3)
    assert forward_flops(wide.model, x) == 110 == wide.history[-2]["flops"]
    with pytest.raises(SennError, match="max_flops is 71, but the net starts with 72 operations"):
        fit(x, y, replace(GROWING, hidden=(1, 1), max_flops=71))


def test_an_average_grows_along():
    x, y = blobs()
    run = fit(x, y, replace(GROWING, average="ema", average_decay=0.9))
    assert run.architecture[0] > 2
    assert run.validation["accuracy"] > 0.6


def test_a_change_that_was_rolled_back_does_not_end_the_run(monkeypatch):
    def fail(self, batches, moves, validation=None):
        raise SurgeryError("body.0 was rolled back")

    monkeypatch.setattr(TrainStep, "grow", fail)
    x, y = blobs()
    run = fit(x, y, GROWING)
    first = next(record for record in run.history if record["event"] not in ("start", "epoch"))
    assert first == {"event": "rollback", "epoch": 2, "step": 8, "text": "body.0 was rolled back"}
    assert run.history[-1]["reason"] == "all epochs done"


def test_an_unknown_policy_is_refused_by_name():
    x, y = blobs()
    with pytest.raises(SennError, match="unknown policy 'cheap'"):
        fit(x, y, replace(GROWING, policy="cheap"))


def test_policies_by_name():
    assert isinstance(resolve_policy("paper"), PaperPolicy)
    assert isinstance(resolve_policy("price"), PricePolicy)
    assert isinstance(resolve_policy(None), PricePolicy)
    own = PaperPolicy(tau=0.5)
    assert resolve_policy(own) is own


def test_rounds_that_were_not_given_follow_from_the_policy():
    price, paper = TrainConfig(), TrainConfig(policy="paper")
    assert max(paper.addition_rounds) > 4 * max(price.addition_rounds)
    assert replace(price, policy="paper") == paper
    assert replace(paper, policy=None).addition_rounds == price.addition_rounds
    assert TrainConfig(policy=PaperPolicy(tau=2.0)).addition_rounds == paper.addition_rounds
    own = TrainConfig(policy="paper", addition_rounds=(0.5,), pruning_rounds=())
    assert (own.addition_rounds, own.pruning_rounds) == ((0.5,), ())


def test_the_papers_policy_ascends_where_ascent_is_possible():
    config = TrainConfig(policy="paper")
    for model, steps in ((MLP(2, (2,), 2), 300), (nn.Sequential(nn.Linear(2, 2)), 0)):
        optimizer = torch.optim.SGD(model.parameters())
        for recipe, expected in ((config, steps), (replace(config, ascent_steps=5), 5)):
            grower = build_grower(model, optimizer, recipe)
            assert grower.candidate_config.ascent_steps == expected
            assert grower.policy.prune_fraction > 0


def test_the_papers_policy_has_the_papers_network_and_candidates():
    config = TrainConfig(policy="paper")
    model = build_model(3, 2, config)
    assert model.hidden == (1,)
    assert model.shortcut is None
    assert any(isinstance(module, Rational) for module in model.modules())
    optimizer = torch.optim.SGD(model.parameters())
    grower = build_grower(model, optimizer, config)
    assert grower.policy == PaperPolicy(tau=1.0, alpha=2.5e-3, layer_cost=2.0, prune_fraction=0.01)
    offered = grower.candidate_config
    assert (offered.units, offered.residual_units, offered.activation) == (100, 0, "Rational")
    own = replace(config, hidden=(4,), activation="tanh", shortcut=True, candidates_per_layer=7)
    model = build_model(3, 2, own)
    assert model.hidden == (4,)
    assert model.shortcut is not None
    offered = build_grower(model, torch.optim.SGD(model.parameters()), own).candidate_config
    assert (offered.units, offered.activation) == (7, None)
    assert replace(TrainConfig(), policy="paper").start("activation") == "rational"


@pytest.mark.parametrize("load", [load_wine, load_digits])
def test_the_papers_policy_grows_and_prunes_on_tables(load):
    """From one unit a network grows; of a wide one, units go that cost little beside eta."""
    x, y = load(return_X_y=True)
    x, y = torch.tensor((x - x.mean(0)) / (x.std(0) + 1e-3)).float()[:400], torch.tensor(y)[:400]
    config = TrainConfig(policy="paper", epochs=8, ascent_steps=2, validation_fraction=0)
    config = replace(config, addition_rounds=(0.3, 0.6, 0.9), pruning_rounds=())
    assert fit(x, y, config).architecture > (1,)
    wide = replace(config, hidden=(24,), addition_rounds=(), pruning_rounds=(0.2,))
    assert fit(x, y, wide).architecture < (24,)


# -- natural gradient


@pytest.mark.parametrize("weights", [False, True])
def test_natural_gradient_trains_and_grows(weights):
    x, y = blobs()
    recipe = replace(GROWING, hidden=(1,), optimizer="natural-gradient")
    run = fit(x, y, recipe, sample_weight=torch.rand(len(x)) + 0.5 if weights else None)
    losses = [record["train_loss"] for record in run.history if record["event"] == "epoch"]
    assert losses[-1] < losses[0] / 2
    assert run.architecture[0] > 1


def test_a_natural_gradient_that_is_not_finite_ends_the_run():
    x, y = blobs()
    run = fit(
        x,
        y,
        replace(
            FIXED,
            optimizer="natural-gradient",
            lr=1e30,
            optimizer_options={"norm_constraint": None},
        ),
    )
    # the optimizer's own sentence, and where it was said
    assert run.history[-1]["reason"].startswith(
        "the natural gradient is not finite: raise the damping, in epoch 1; "
    )
    assert all(torch.isfinite(p).all() for p in run.model.parameters())


# -- rows as they come


def test_online_training_goes_on_with_the_same_net():
    x, y = blobs(480)
    model = build_model(4, 3, GROWING)
    online = IncrementalTrainer(
        model, replace(GROWING, batch_size=16, growth_steps=100), "classification"
    )
    before = F.cross_entropy(model(x), y)
    parts = 2 * list(zip(x.split(160), y.split(160), strict=True))
    history = [record for part in parts for record in online.partial_fit(*part)]
    assert F.cross_entropy(model(x), y) < before / 2
    assert online.learner.samples == 960
    assert [record["epoch"] for record in history if record["event"] == "epoch"] == [
        1,
        2,
        3,
        4,
        5,
        6,
    ]
    assert any(record["event"] == "growth" for record in history)
    assert model.hidden[0] > 2


def test_online_training_says_when_the_loss_is_not_finite():
    x, y = blobs()
    online = IncrementalTrainer(
        build_model(4, 3, FIXED), replace(FIXED, optimizer="sgd", lr=1e30), "classification"
    )
    with pytest.raises(SennError, match="not finite"):
        online.partial_fit(x, y)


def test_online_training_passes_on_what_the_natural_gradient_says():
    x, y = blobs()
    recipe = replace(
        FIXED, optimizer="natural-gradient", lr=1e30, optimizer_options={"norm_constraint": None}
    )
    torch.manual_seed(0)
    online = IncrementalTrainer(build_model(4, 3, recipe), recipe, "classification")
    with pytest.raises(
        DivergenceError, match="the natural gradient is not finite: raise the damping"
    ):
        online.partial_fit(x, y)


def test_a_network_that_diverged_in_the_step_before_a_round_ends_the_run():
    x, y = blobs()
    run = fit(
        x,
        y,
        replace(
            GROWING,
            optimizer="sgd",
            lr=1e38,
            addition_rounds=tuple(step / 84 for step in range(1, 9)),
        ),
    )
    assert "diverged" in run.history[-1]["reason"]
    assert run.best_epoch == 0
