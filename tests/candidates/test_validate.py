"""Every public setting is checked where it is given: no wrong type, no NaN, nothing beyond an end gets through."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import make_moons
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel

import senn
from senn._validate import check, each, flag, fraction, number, one_of, positive, whole
from senn.candidates.initializers import DataDirections
from senn.errors import SennError
from senn.nn import MLP, ConvNet, DenseConvNet, Rational
from senn.nn.activations import ACTIVATIONS, activation_class
from senn.optim import NaturalGradient
from senn.policies import Budget, PaperPolicy, PricePolicy
from senn.training import TrainConfig

# By record and field, values just beyond its ends, beside the types that no field takes. Written down apart from the
# ranges in the source, so that neither is right by the other.
BEYOND: dict[str, dict[str, tuple[Any, ...]]] = {
    "Proposals": {
        "units": (0, -5, 2.5),
        "copy_fraction": (-1e-9, 1.0001),
        "data_direction_fraction": (-0.1, 7.0),
        "residual_units": (-1, 1.5),
        "stream_units": (-1, 0.5),
        "identity_bases": (-2,),
        "ascent_steps": (-3,),
        "ascent_step_size": (0.0, -1.0),
        "new_blocks": ("random", 1),
        "activation": ("nonsense", "", nn.ReLU),
        "initializer": (nn.ReLU(), DataDirections, "data"),
        "max_columns": (0, 1.5),
    },
    "PricePolicy": {
        "kappa": (0.0, -1.0),
        "confidence": (-1e-9,),
        "layer_cost": (0,),
        "hysteresis": (1.0, -0.1),
        "retention_factor": (-1.0,),
        "max_places_per_round": (0, 1.5),
        "unit": ("seconds", None),
        "window": (0, 1.5),
    },
    "PaperPolicy": {
        "tau": (0.0, -1),
        "alpha": (0.0, 1.0),
        "layer_cost": (0.0,),
        "prune_fraction": (-1.0,),
    },
    "Budget": {
        "max_params": (0, 1.5),
        "max_flops": (0, 1.5),
        "max_width": (0, 1.5, {"0": -1}, {0: 3}),
        "round_to": (0, 1.5, None),
    },
    "Recipe": {
        "hidden": ((0,), (2.5,), 3),
        "birth": ("loud", 1),
        "shortcut": (1,),
        "activation": ("swoosh", nn.ReLU()),
        "optimizer": ("", None),
        "lr": (0.0, -1),
        "weight_decay": (-1e-9,),
        "optimizer_options": (None, [1]),
        "epochs": (0, 1.5),
        "steps": (0, None),
        "min_epochs": (0,),
        "max_epochs": (0,),
        "batch_size": (0, 2.5),
        "schedule": ("steps", None),
        "tail": (-0.1, 2),
        "validation_fraction": (1.0, -0.1),
        "min_validation": (-1,),
        "patience": (0,),
        "monitor": ("accuracy",),
        "average": ("mean",),
        "average_decay": (-0.1, 1.1),
        "grow": (1, None),
        "policy": (PricePolicy, 3),
        "growth_steps": (0,),
        "addition_rounds": ((0.1, 1.5), [0.1], 8),
        "pruning_rounds": ((-0.1,), [0.5]),
        "candidates_per_layer": (0,),
        "ascent_steps": (-1, 0.5),
        "max_scoring_samples": (0, None),
        "max_params": (0,),
        "max_flops": (0,),
        "max_width": (0,),
        "round_to": (0,),
        "moves": ("width", ("hight",)),
        "max_seconds": (0, -1.0),
        "threads": (0, 1.5),
        "calibrate": (1, None),
        "members": (0, 1.5),
        "linear": (1, None),
        "target_transform": ("log", 1),
        "frontier": (1, None),
        "seed": (None, 2**64),
    },
    "Grower": {
        "loss": (None, 3),
        "policy": ("paper", PricePolicy),
        "samples": (0, -1, 1.5),
        "max_params": (0, 1.5),
        "max_flops": (0, 1.5),
        "max_width": (0,),
        "round_to": (0, 1.5, None),
        "moves": ("width", ("hight",), None, 3),
        "candidate_config": (3, {}),
        "round_config": (3, {}),
        "birth": ("loud", 1),
        "averaged": (AveragedModel(nn.Linear(2, 2)), None, ("model",)),
        "examples": (3, None),
        "on_uncarried_state": ("ignore", None),
        "ignore": ("0", None, (0,)),
        "metric": ("newton", None),
        "loss_hessian": (3, "fisher"),
        "coupled": (1, None),
        "prepare": ("batch",),
        "output": ("logits",),
        "seed": (None, 1.5, 2**64),
        "communicator": (2,),
    },
    "NaturalGradient": {
        "loss": (None, "mse"),
        "lr": (-1e-9,),
        "method": ("newton", None),
        "damping": (-1.0,),
        "momentum": (1.0, -0.1),
        "weight_decay": (-1e-9,),
        "metric": ("newton",),
        "norm_constraint": (-1.0,),
        "adapt": (1, None),
        "factor_every": (0, 1.5),
        "inverse_every": (0,),
        "decay": (1.0, -0.1),
        "burn_in": (0,),
        "iterations": (0,),
        "tolerance": (-1.0, None),
        "seed": (None, 1.5),
    },
    "MLP": {
        "in_features": (0, 1.5, None),
        "hidden": ((0,), (2.5,), None, 3),
        "out_features": (0,),
        "activation": ("swosh", nn.ReLU(), None),
        "norm": ("layer",),
        "dropout": (1.0, -0.1),
        "shortcut": (1, None),
    },
    "ConvNet": {
        "in_channels": (0, None),
        "stages": ((), ((),), ((0,),), (4, 4), None),
        "out_features": (0, 2.5),
    },
    "DenseConvNet": {
        "in_channels": (0,),
        "hidden": ((), ((4,), ()), ((4, 0),), None),
        "classes": (0, None),
        "bias": (1, None),
    },
    "Rational": {"num_parameters": (0, -1, 1.5, None)},
}

MAKERS: dict[str, tuple[type, dict[str, Any]]] = {
    "Proposals": (senn.CandidateConfig, {}),
    "PricePolicy": (PricePolicy, {}),
    "PaperPolicy": (PaperPolicy, {}),
    "Budget": (Budget, {}),
    "Recipe": (TrainConfig, {}),
    "Grower": (senn.Grower, {"model": nn.Linear(2, 2)}),
    "NaturalGradient": (NaturalGradient, {"model": nn.Linear(2, 2), "loss": F.mse_loss}),
    "MLP": (MLP, {"in_features": 2, "hidden": (3,), "out_features": 2}),
    "ConvNet": (ConvNet, {"in_channels": 2, "stages": ((3,),), "out_features": 2}),
    "DenseConvNet": (DenseConvNet, {"in_channels": 2, "hidden": ((3,),), "classes": 2}),
    "Rational": (Rational, {"num_parameters": 2}),
}

# Checked by what they are handed to: torch, or functions with sentences of their own.
ELSEWHERE = {"self", "model", "optimizer", "params", "device", "dtype"}
TAKES_TEXT = {"activation", "optimizer", "policy"}
TAKES_FLAG = {"shortcut", "grow", "calibrate", "frontier", "linear", "adapt", "bias", "coupled"}
TAKES_MAPPING = {"optimizer_options"}

FIELDS = [(name, field) for name, fields in BEYOND.items() for field in fields]

strange = st.one_of(
    st.just(math.nan),
    st.just(np.float64("nan")),
    st.booleans(),
    st.binary(max_size=3),
    st.complex_numbers(),
    st.text(alphabet="qxyz", min_size=1, max_size=5),
    st.builds(object),
    st.dictionaries(st.integers(0, 9), st.integers(0, 9), max_size=2),
    st.just(torch.ones(2)),
)


def make(name: str, field: str, value: Any) -> object:
    kind, valid = MAKERS[name]
    return kind(**{**valid, field: value})


def is_welcome(name: str, field: str, value: Any) -> bool:
    """True for a strange value of a type that the field does take."""
    if field in TAKES_FLAG and isinstance(value, bool):
        return True
    if field in TAKES_MAPPING and isinstance(value, dict):
        return True
    if field == "max_width" and value == {}:  # limits of no place
        return name != "Recipe"
    return name == "Recipe" and field in TAKES_TEXT - {"activation"} and isinstance(value, str)


@pytest.mark.parametrize(("name", "field"), FIELDS, ids=lambda one: one)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_a_setting_that_makes_no_sense_is_one_sentence_that_names_it(
    name: str, field: str, data: st.DataObject
):
    is_strange = data.draw(st.booleans())
    value = data.draw(strange if is_strange else st.sampled_from(BEYOND[name][field]))
    if is_strange and is_welcome(name, field, value):
        make(name, field, value)
        return
    with pytest.raises(SennError, match=field) as caught:
        make(name, field, value)
    assert "\n" not in str(caught.value)
    assert not str(caught.value).removesuffix("...").endswith(".")


def test_no_setting_is_forgotten():
    for name, (kind, _) in MAKERS.items():
        is_record = dataclasses.is_dataclass(kind)
        found = (
            {one.name for one in dataclasses.fields(kind)}
            if is_record
            else {*inspect.signature(kind).parameters}
        )
        assert found - ELSEWHERE <= BEYOND[name].keys() | (set() if is_record else {"optimizer"}), (
            name
        )


def test_the_defaults_and_numpys_numbers_are_in_range():
    for kind, valid in MAKERS.values():
        kind(**valid)
    senn.CandidateConfig(units=np.int64(4), copy_fraction=np.float32(0.5))
    TrainConfig(steps=np.int32(3), shortcut=np.True_, patience=math.inf, hidden=[np.int64(3)])
    PricePolicy(kappa=Fraction(1, 2))
    MLP(np.int64(3), np.array([4, 5]), 2)
    senn.Grower(
        nn.Linear(2, 2), averaged=[AveragedModel(nn.Linear(2, 2))], moves=["width"], seed=-1
    )


def test_a_sentence_has_the_setting_its_range_and_the_value():
    cases: list[tuple[Callable[[], object], str]] = [
        (
            lambda: senn.CandidateConfig(units=-5),
            "units must be a whole number of at least 1 or None, not -5",
        ),
        (
            lambda: PricePolicy(hysteresis=2),
            "hysteresis must be a number of at least 0 and below 1, not 2",
        ),
        (
            lambda: senn.CandidateConfig(copy_fraction=2.0),
            "copy_fraction must be a number from 0 to 1, not 2.0",
        ),
        (
            lambda: senn.Grower(nn.Linear(2, 2), ignore="0"),
            "ignore must be a sequence, each item a name, not '0'",
        ),
        (
            lambda: TrainConfig(schedule="steps"),
            "schedule must be one of 'tail', 'cosine', 'constant', not 'steps'",
        ),
    ]
    for run, sentence in cases:
        with pytest.raises(SennError) as caught:
            run()
        assert str(caught.value) == sentence


def test_a_long_value_is_cut_short_and_stays_on_one_line():
    with pytest.raises(SennError) as caught:
        check("units", nn.Sequential(*(nn.Linear(9, 9) for _ in range(9))), whole(low=1))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 150


@given(st.floats(allow_nan=False))
def test_ranges_have_the_ends_that_they_name(value: float):
    finite = math.isfinite(value)
    assert fraction().allows(value) == (0 <= value <= 1)
    assert fraction(high=0.9, open_low=True, open_high=True).allows(value) == (0 < value < 0.9)
    assert positive().allows(value) == (finite and value > 0)
    assert number(low=-1, infinite=True).allows(value) == (value >= -1)
    assert not whole().allows(value)
    assert positive().or_none().allows(value) == positive().allows(value)


def test_none_is_allowed_only_where_it_is_said():
    for rule in (whole(), positive(), flag(), one_of("a"), each(whole())):
        assert not rule.allows(None)
        assert rule.or_none().allows(None)
        assert rule.or_none().expected.endswith("or None")
    assert one_of("a", None).or_none().expected == one_of("a", None).expected


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_has_one_name_in_any_case(name: str):
    kind = ACTIVATIONS[name]
    for spelling in (name, name.lower(), name.upper(), "_".join(name)):
        assert activation_class(spelling) is kind
        senn.CandidateConfig(activation=spelling)
        assert type(MLP(2, (3,), 1, activation=spelling).body[1]) is kind


def test_an_unknown_activation_is_refused_with_the_known_ones():
    for run in (
        lambda: senn.CandidateConfig(activation="swoosh"),
        lambda: MLP(2, (3,), 1, activation="swoosh"),
    ):
        with pytest.raises(SennError, match=r"activation must be .*ReLU, .*not 'swoosh'"):
            run()


@pytest.mark.parametrize("spelling", ["gelu", "GELU"])
def test_new_layers_get_the_activation_that_was_named(spelling: str):
    model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 2))
    x, y = (torch.as_tensor(a) for a in make_moons(64, random_state=0))
    grower = senn.Grower(
        model,
        moves=("depth",),
        candidate_config=senn.CandidateConfig(activation=spelling, identity_bases=0),
    )
    found = grower.score_candidates([(x.float(), y)])
    assert {one.detail.rpartition("residual ")[2] for one in found} == {"GELU"}
