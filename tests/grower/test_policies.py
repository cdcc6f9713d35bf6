"""Policies are functions of records: Theorem 3.1, prices, budgets, and what is out of range."""

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from senn.errors import SennError
from senn.events import Decision
from senn.policies import Budget, Candidate, PaperPolicy, PricePolicy
from senn.scoring import formulas

BASE = Candidate(
    kind="widen",
    place="body.0",
    detail="",
    units=1,
    width=3,
    parameters=10,
    gain=0.1,
    gain_lower_bound=0.1,
    held_out_gain=0.1,
    held_out_stderr=0.0,
    eta=0.2,
    score_limit=1.0,
    samples=1000,
)


@settings(max_examples=300, deadline=None)
@given(
    gains=st.lists(st.floats(0, 10), min_size=1, max_size=60),
    eta=st.floats(0, 1),
    limit=st.floats(1e-6, 1e3),
    tau=st.floats(0.01, 5),
    alpha=st.floats(1e-5, 0.5),
)
def test_theorem_3_1_bounds_the_additions_of_a_round(gains, eta, limit, tau, alpha):
    policy, accepted = PaperPolicy(tau, alpha), 0
    eta = eta * limit
    for gain in gains:
        candidate = replace(
            BASE, gain=gain * limit, gain_lower_bound=gain * limit, eta=eta, score_limit=limit
        )
        if policy.choose([candidate], []) is not None:
            accepted += 1
            eta = min(eta + candidate.gain, limit)
    assert accepted < formulas.max_additions(tau, alpha)


def test_the_bound_of_theorem_3_1_is_nearly_reached():
    """A sequence that gains just enough each time: the bound is not a loose one."""
    tau, alpha, eta, accepted = 0.5, 0.01, 0.0, 0
    policy = PaperPolicy(tau, alpha)
    while accepted < 100:
        gain = max(tau * eta, alpha) * 1.0001
        candidate = replace(BASE, gain=gain, gain_lower_bound=gain, eta=eta, score_limit=1.0)
        if policy.choose([candidate], []) is None:
            break
        accepted, eta = accepted + 1, eta + gain
    limit = formulas.max_additions(tau, alpha)
    assert limit - 2 < accepted < limit


def test_without_eta_brought_up_to_date_the_theorem_fails():
    """The reference's stale eta_c, kept from the start of the round, accepts without end."""
    policy = PaperPolicy(1.0, 0.01)
    stale = replace(BASE, gain=0.3, gain_lower_bound=0.3, eta=0.1, score_limit=1.0)
    assert all(policy.choose([stale], []) is not None for _ in range(50))
    assert policy.choose([replace(stale, eta=0.4)], []) is None


def test_paper_policy_takes_the_best_and_discounts_layers():
    policy = PaperPolicy(0.1, 1e-3, layer_cost=2.0)
    unit, layer = (
        replace(BASE, gain_lower_bound=0.3),
        replace(BASE, kind="insert", gain_lower_bound=0.5),
    )
    assert policy.choose([unit, layer], []) is unit
    assert policy.choose([unit, replace(layer, gain_lower_bound=0.7)], []).kind == "insert"


def test_price_is_kappa_q_over_n_and_counts_held_out_gain():
    policy = PricePolicy(kappa=1.0)
    assert policy.price(10, 1000) == pytest.approx(0.01)
    assert policy.choose([replace(BASE, gain=9.0, held_out_gain=0.0199)], []) is None
    assert policy.choose([replace(BASE, gain=0.0, held_out_gain=0.0201)], []) is not None


def test_a_promise_counts_less_its_standard_errors():
    lucky = replace(BASE, held_out_gain=0.05, held_out_stderr=0.04)
    assert PricePolicy(kappa=1.0, confidence=0.0).choose([lucky], []) is lucky
    assert PricePolicy(kappa=1.0, confidence=1.0).choose([lucky], []) is None


def test_price_policy_keeps_the_additions_of_a_round_to_one_place():
    first, second = (
        replace(BASE, held_out_gain=0.5),
        replace(BASE, place="body.2", held_out_gain=0.9),
    )
    policy = PricePolicy(kappa=1.0)
    assert policy.choose([first, second], []) is second
    assert policy.choose([first, second], [first]) is first
    third = replace(BASE, place="body.4", held_out_gain=0.95)
    two = replace(policy, max_places_per_round=2)
    assert two.choose([first, second], [first]) is second
    assert two.choose([first, second, third], [first, second]) is second
    every = replace(policy, max_places_per_round=None)
    assert every.choose([first, second, third], [first, second]) is third
    assert every.reason(third, [first, second]) == ""
    assert policy.reason(first, [second]) == "one place a round"
    assert two.reason(third, [first, second]) == "2 places a round"
    assert (
        policy.reason(second, [second])
        == policy.reason(replace(first, kind="prune"), [second])
        == ""
    )
    with pytest.raises(
        SennError, match="max_places_per_round must be a whole number of at least 1 or None, not 0"
    ):
        PricePolicy(max_places_per_round=0)


def test_hysteresis_what_has_just_been_bought_is_not_sold():
    policy = PricePolicy(kappa=1.0, hysteresis=0.3)
    price = policy.price(10, 1000)
    bought = replace(BASE, held_out_gain=2.01 * price)
    assert policy.choose([bought], []) is bought
    back = replace(BASE, kind="prune", parameters=-10, gain=-2.01 * price)
    assert policy.choose([back], []) is None
    assert policy.choose([replace(back, gain=-0.5 * price)], []) is not None


@settings(max_examples=100, deadline=None)
@given(gain=st.floats(0, 1), kappa=st.floats(0.01, 10), hysteresis=st.floats(0, 0.99))
def test_no_gain_is_both_bought_and_sold(gain, kappa, hysteresis):
    policy = PricePolicy(kappa, hysteresis=hysteresis)
    buy = policy.choose([replace(BASE, held_out_gain=gain)], [])
    sell = policy.choose([replace(BASE, kind="prune", parameters=-10, gain=-gain)], [])
    assert buy is None or sell is None


def test_without_additions_what_is_worth_less_than_keep_times_its_price_is_sold():
    policy = PricePolicy(kappa=1.0, retention_factor=3.0, hysteresis=0.5)
    price = policy.price(10, 1000)
    removing = policy.for_pruning_round()
    unit = replace(BASE, kind="prune", parameters=-10)
    below, above = (replace(unit, gain=-2 * worth * price) for worth in (2.999, 3.001))
    assert removing.choose([above], []) is None
    assert removing.choose([below], []) is below
    assert policy.choose([below], []) is None
    worst = replace(unit, gain=-2 * 0.1 * price)
    assert removing.choose([below, worst, above], []) is worst
    assert removing.choose([below, above], [worst]) is below
    assert removing.price(10, 1000) == price


def test_nothing_is_added_where_nothing_can_be():
    addition = replace(BASE, held_out_gain=9.0)
    assert PricePolicy().choose([addition], []) is addition
    assert PricePolicy().for_pruning_round().choose([addition], []) is None
    assert PricePolicy().for_pruning_round().choose([], []) is None


@settings(max_examples=100, deadline=None)
@given(
    cost=st.floats(0, 1),
    nat=st.floats(0.1, 10),
    parameters=st.integers(1, 500),
    keep=st.floats(0, 4, exclude_min=True),
)
def test_a_unit_stays_exactly_when_it_is_worth_keep_times_its_price(cost, nat, parameters, keep):
    policy = PricePolicy(0.5, retention_factor=keep)
    unit = replace(BASE, kind="prune", parameters=-parameters, gain=-cost, loss_per_nat=nat)
    sold = policy.for_pruning_round().choose([unit], []) is unit
    assert sold == (cost / (2 * nat) < keep * 0.5 * parameters / 1000)


@pytest.mark.parametrize("limit", [0.5, 50.0])
@pytest.mark.parametrize("eta", [0.04, 4.0])
def test_the_papers_rule_prunes_what_costs_little_beside_eta(eta, limit):
    policy = PaperPolicy(prune_fraction=0.01)
    cheap, dear = (
        replace(BASE, kind="prune", gain=-0.01 * eta * factor, eta=eta, score_limit=limit)
        for factor in (0.99, 1.01)
    )
    assert policy.choose([dear, cheap], []) is cheap
    assert policy.choose([dear], []) is None
    assert PaperPolicy().choose([cheap], []) is None


def test_the_papers_rule_is_the_same_in_every_round():
    policy = PaperPolicy()
    assert policy.for_pruning_round() is policy


@pytest.mark.parametrize(
    "bad", [{"tau": 0.0}, {"tau": -1.0}, {"tau": math.nan}, {"alpha": 0.0}, {"alpha": 1.5}]
)
def test_paper_policy_refuses_what_is_out_of_range(bad):
    with pytest.raises(SennError, match=next(iter(bad))):
        PaperPolicy(**bad)


@pytest.mark.parametrize(
    "bad",
    [
        {"kappa": 0.0},
        {"kappa": -1.0},
        {"hysteresis": 1.0},
        {"hysteresis": -0.1},
        {"retention_factor": -1.0},
    ],
)
def test_price_policy_refuses_what_is_out_of_range(bad):
    with pytest.raises(SennError, match=next(iter(bad))):
        PricePolicy(**bad)


def test_budget():
    assert not Budget(max_params=105).allows(BASE, 100)
    assert Budget(max_params=110).allows(BASE, 100)
    assert not Budget(max_width=2).allows(BASE, 0)
    assert Budget(max_params=1).allows(replace(BASE, kind="prune", parameters=-10), 100)
    for bad in ({"max_params": 0}, {"max_width": 0}, {"round_to": 0}):
        with pytest.raises(SennError, match=next(iter(bad))):
            Budget(**bad)


def test_a_layer_has_to_promise_more_than_units_by_its_cost():
    policy = PricePolicy(kappa=1.0, layer_cost=8.0, confidence=0.0)
    price = policy.price(BASE.parameters, BASE.samples)
    # half of a gain is a decrease
    for kind, cost in (("widen", 1.0), ("insert", 8.0)):
        enough, short = (
            replace(BASE, kind=kind, held_out_gain=2 * price * cost * factor)
            for factor in (1.01, 0.99)
        )
        assert policy.choose([enough], []) is enough
        assert policy.choose([short], []) is None
        assert policy.min_decrease(kind, BASE.parameters, BASE.samples) == price * cost


def test_a_price_of_operations_is_that_of_as_large_a_share_of_the_parameters():
    by_flops, by_parameters = PricePolicy(unit="flops"), PricePolicy()
    # In a plain MLP each weight makes one product and one sum for each sample.
    plain = replace(BASE, flops=20, flops_per_parameter=2.0)
    assert by_flops.price_of(plain) == by_parameters.price_of(plain) == by_flops.price(10, 1000)
    # The network uses each parameter 50 times, and these 500 times.
    early = replace(BASE, flops=10_000, flops_per_parameter=100.0)
    assert by_flops.price_of(early) == pytest.approx(10 * by_parameters.price_of(early))
    for policy, times in ((by_flops, 10), (by_parameters, 1)):
        worth = replace(early, held_out_gain=2 * times * by_parameters.price_of(early))
        for factor, decision in ((1.01, 1), (0.99, 0)):
            one = replace(worth, held_out_gain=factor * worth.held_out_gain)
            assert (policy.choose([one], []) is one) == decision
        unit = replace(early, kind="prune", parameters=-10, flops=-10_000, gain=-1.0)
        price = -times * by_parameters.price_of(early)
        assert policy.price_of(unit) == pytest.approx(price)
        removing = policy.for_pruning_round()
        kept = removing.margin(replace(unit, gain=2 * policy.retention_factor * price * 1.01))
        assert (
            kept
            < 0
            < removing.margin(replace(unit, gain=2 * policy.retention_factor * price * 0.99))
        )
    assert Decision.from_policy(by_flops, early).price == by_flops.price_of(early)


def test_operations_are_priced_only_where_they_are_counted():
    policy = PricePolicy(unit="flops")
    with pytest.raises(SennError, match=r"operations of the candidate at 'body\.0' aren't counted"):
        policy.margin(BASE)
    assert policy.uses_flops > PricePolicy().uses_flops
    assert policy.min_decrease("insert", 10, 1000) == 0.0  # parameters don't tell
    with pytest.raises(SennError, match="unit must be one of 'parameters', 'flops'"):
        PricePolicy(unit="seconds")


def test_a_budget_of_operations_counts_what_is_there():
    one = replace(BASE, flops=20)
    assert Budget(max_flops=120).allows(one, 0, 100)
    assert not Budget(max_flops=119).allows(one, 0, 100)
    assert not Budget(max_flops=119).allows(BASE, 0, 100)  # what isn't counted fits no limit
    assert Budget(max_flops=1).allows(replace(one, kind="prune", flops=-20), 0, 100)
