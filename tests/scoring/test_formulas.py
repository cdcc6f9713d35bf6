"""The score maths against dense float64 truth, on maps where K-FAC is exact (a linear map under squared error)."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from senn.errors import SennError
from senn.kfac.factors import KroneckerFactors, cholesky, kronecker_factors
from senn.kfac.per_sample import PerSampleFactors
from senn.scoring import formulas
from senn.scoring.gains import Fold, LayerGains
from senn.scoring.pruning_costs import PruningCosts

EXACT = 1e-12


def problem(seed: int, n: int = 200, c: int = 4, p: int = 3, m: int = 2, overlap: float = 1.0):
    """Rows of existing and new columns, output gradients and the exact curvature of squared error (H = I)."""
    g = torch.Generator().manual_seed(seed)
    a = torch.randn(n, c, generator=g, dtype=torch.float64)
    new = torch.tanh(torch.randn(n, p, generator=g, dtype=torch.float64) + overlap * a[:, :1])
    dz = torch.randn(n, m, generator=g, dtype=torch.float64) + a[:, :1] + new[:, :1]
    return a, new, dz


def dense_eta(a: torch.Tensor, dz: torch.Tensor, H: torch.Tensor) -> torch.Tensor:
    """g^T F^-1 g with the whole Fisher matrix written out."""
    jacobian = torch.einsum("nc,mk->nmkc", a, torch.eye(dz.shape[1], dtype=a.dtype)).reshape(
        len(a), dz.shape[1], -1
    )
    fisher = torch.einsum("nmi,mk,nkj->ij", jacobian, H, jacobian) / len(a)
    gradient = torch.einsum("nmi,nm->i", jacobian, dz) / len(a)
    return gradient @ torch.linalg.solve(fisher, gradient)


def factors(a: torch.Tensor, dz: torch.Tensor):
    return a.mT @ a / len(a), dz.mT @ a / len(a)


def test_eta_equals_dense_truth():
    a, _, dz = problem(0)
    H = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
    A, G = factors(a, dz)
    assert formulas.expansion_score(G, A, H, damping=EXACT).item() == pytest.approx(
        dense_eta(a, dz, H).item(), rel=1e-8
    )


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), p=st.integers(1, 4), overlap=st.floats(0, 3))
def test_gain_is_the_difference_of_dense_etas(seed: int, p: int, overlap: float):
    a, new, dz = problem(seed, p=p, overlap=overlap)
    H = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
    A, G = factors(a, dz)
    _, C = factors(new, dz)
    A_cp, A_pp = a.mT @ new / len(a), new.mT @ new / len(a)
    residual = formulas.residual_cross(C, G, A, A_cp, damping=EXACT)
    gain = formulas.width_gain(residual, A_pp, A_cp, A, H, damping=EXACT)
    truth = dense_eta(torch.cat([a, new], 1), dz, H) - dense_eta(a, dz, H)
    assert gain.item() == pytest.approx(truth.item(), rel=1e-6, abs=1e-10)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6), p=st.integers(1, 5))
def test_theorem_3_2_the_bound_is_below_the_gain(seed: int, p: int):
    a, new, dz = problem(seed, p=p)
    A, G = factors(a, dz)
    A_cp, A_pp, C = a.mT @ new / len(a), new.mT @ new / len(a), dz.mT @ new / len(a)
    S = torch.eye(2, dtype=torch.float64)
    residual = formulas.residual_cross(C, G, A, A_cp)
    gain = formulas.width_gain(residual, A_pp, A_cp, A, S)
    assert 0 <= formulas.width_gain_bound(residual, A_pp, S) <= gain + 1e-12


def test_theorem_3_2_equality_when_new_and_old_are_uncorrelated():
    a, new, dz = problem(1)
    new = new - a @ torch.linalg.solve(a.mT @ a, a.mT @ new)
    A, G = factors(a, dz)
    A_cp, A_pp, C = a.mT @ new / len(a), new.mT @ new / len(a), dz.mT @ new / len(a)
    S = torch.eye(2, dtype=torch.float64)
    residual = formulas.residual_cross(C, G, A, A_cp)
    gain = formulas.width_gain(residual, A_pp, A_cp, A, S)
    assert formulas.width_gain_bound(residual, A_pp, S).item() == pytest.approx(
        gain.item(), rel=1e-10
    )


def test_scale_of_the_activations_does_not_matter():
    a, new, dz = problem(2)
    A, G = factors(a, dz)
    S = torch.eye(2, dtype=torch.float64)

    def both(new: torch.Tensor) -> tuple[float, float]:
        A_cp, A_pp, C = a.mT @ new / len(a), new.mT @ new / len(a), dz.mT @ new / len(a)
        residual = formulas.residual_cross(C, G, A, A_cp)
        return (
            formulas.width_gain(residual, A_pp, A_cp, A, S).item(),
            formulas.width_gain_bound(residual, A_pp, S).item(),
        )

    factor = torch.tensor([1e-3, 7.0, 1e4], dtype=torch.float64)
    assert both(new * factor) == pytest.approx(both(new), rel=1e-9)


def test_a_tiny_gain_survives_float32_moments():
    """A difference of two scores in float32 would be zero here."""
    a, new, dz = problem(3, p=1)
    new = a[:, :1] + 1e-3 * new
    A, G = factors(a, dz)
    A_cp, A_pp, C = a.mT @ new / len(a), new.mT @ new / len(a), dz.mT @ new / len(a)
    H = torch.eye(2, dtype=torch.float64)
    gain = formulas.width_gain(
        formulas.residual_cross(C, G, A, A_cp, damping=EXACT), A_pp, A_cp, A, H, damping=EXACT
    )
    truth = dense_eta(torch.cat([a, new], 1), dz, H) - dense_eta(a, dz, H)
    assert gain.item() == pytest.approx(truth.item(), rel=1e-3)


def test_eta_never_exceeds_the_output_gradients_length():
    for seed in range(20):
        a, new, dz = problem(seed, n=30, c=6)
        H = torch.eye(2, dtype=torch.float64)
        A, G = factors(torch.cat([a, new], 1), dz)
        bound = dz.square().sum(1).mean()
        assert formulas.expansion_score(G, A, H, damping=EXACT) <= bound * (1 + 1e-9)


def test_several_columns_per_unit_and_locations_equal_the_dense_sum_over_locations():
    """A convolution-shaped map under squared error of the sum of its outputs' own losses: every location a row."""
    a, new, dz = problem(4, n=240, p=3)
    T = 4
    rows = kronecker_factors(
        torch.cat([a, new], 1),
        dz,
        torch.randn(1, 2, dtype=torch.float64).expand(240, 2),
        locations=T,
    )
    S = torch.eye(2, dtype=torch.float64)
    jacobian = torch.einsum("nc,mk->nmkc", a, torch.eye(2, dtype=a.dtype)).reshape(60, T, 2, -1)
    gradient = torch.einsum("ntmi,ntm->i", jacobian, dz.reshape(60, T, 2)) / 60
    fisher = torch.einsum("ntmi,ntmj->ij", jacobian, jacobian) / 60
    eta = formulas.expansion_score(rows.G[:, :4], rows.A[:4, :4], S, locations=T, damping=EXACT)
    assert eta.item() == pytest.approx(
        (gradient @ torch.linalg.solve(fisher, gradient)).item(), rel=1e-8
    )


def test_heldout_gain_of_noise_is_negative_in_the_mean_and_the_fitted_gain_positive():
    fitted, held = [], []
    S = torch.eye(3, dtype=torch.float64)
    for seed in range(200):
        g = torch.Generator().manual_seed(seed)
        a = torch.randn(120, 2, generator=g, dtype=torch.float64)
        dz = torch.randn(120, 3, generator=g, dtype=torch.float64)
        new = torch.randn(120, 2, generator=g, dtype=torch.float64)
        x = torch.cat([a, new], 1)
        layer_gains = LayerGains(
            *(fold_of(x[part], dz[part], S) for part in (slice(0, 60), slice(60, 120))), existing=2
        )
        columns = torch.tensor([[0, 1]])
        fitted.append(layer_gains.gain(columns).item())
        held.append(layer_gains.held_out_gain(columns)[0].item())
    mean, error = torch.tensor(held).mean(), torch.tensor(held).std() / math.sqrt(200)
    assert mean + 2 * error < 0
    assert min(fitted) > 0


def test_each_fold_has_the_step_that_its_own_gradient_asks_for():
    """The folds differ in size, so that their gradients weigh differently in that of all samples."""
    g = torch.Generator().manual_seed(0)
    x, dz = (torch.randn(120, size, generator=g, dtype=torch.float64) for size in (4, 3))
    S, weight = torch.eye(3, dtype=torch.float64), torch.zeros(3, 2, dtype=torch.float64)
    folds = [fold_of(x[part], dz[part], S) for part in (slice(0, 30), slice(30, 120))]
    layer_gains = LayerGains(*folds, existing=2)
    root, A_inv = layer_gains.whitener, layer_gains.inverse.dense
    gradients = [dz.mT @ x / 120, *(fold.factors.G for fold in folds)]
    direct = [-torch.linalg.solve(root, G[:, :2]) @ A_inv for G in gradients]
    torch.testing.assert_close(layer_gains.next_weights(weight), torch.stack(direct))


def test_noise_adds_nothing_to_what_both_halves_agree_on():
    """Neither to a gain nor to a cost of removal, while it makes the squares larger than they are."""
    S, weight = (
        torch.eye(3, dtype=torch.float64),
        torch.tensor([[0.3, 0.2]] * 3, dtype=torch.float64),
    )
    agreed, squares = [], []
    for seed in range(300):
        g = torch.Generator().manual_seed(seed)
        x, dz = (torch.randn(120, size, generator=g, dtype=torch.float64) for size in (4, 3))
        layer_gains = LayerGains(
            *(fold_of(x[part], dz[part], S) for part in (slice(0, 60), slice(60, 120))), existing=2
        )
        gain = torch.tensor([[0, 1]])
        pruning, unit = (
            PruningCosts(layer_gains.inverse, layer_gains.next_weights(weight), 1),
            torch.tensor([[0]]),
        )
        squares.append([layer_gains.gain(gain).item(), pruning.costs(unit).item()])
        agreed.append(
            [layer_gains.cross_fold_gain(gain).item(), pruning.cross_fold_costs(unit).item()]
        )
    mean, error = torch.tensor(agreed).mean(0), torch.tensor(agreed).std(0) / math.sqrt(300)
    truth = torch.tensor([0.0, 3 * 0.3**2])
    assert ((mean - truth).abs() < 3 * error).all()
    noise = torch.tensor(squares).mean(0) - truth
    torch.testing.assert_close(noise, torch.tensor([6 / 120, 3 / 120]), rtol=0.25, atol=0)


def test_heldout_gain_of_a_real_unit_is_near_the_exact_gain():
    a, new, dz = problem(5, n=20000, p=2)
    x, S = torch.cat([a, new], 1), torch.eye(2, dtype=torch.float64)
    layer_gains = LayerGains(fold_of(x[::2], dz[::2], S), fold_of(x[1::2], dz[1::2], S), existing=4)
    columns = torch.tensor([[0, 1]])
    assert layer_gains.held_out_gain(columns)[0].item() == pytest.approx(
        layer_gains.gain(columns).item(), rel=0.05
    )
    assert layer_gains.cross_fold_gain(columns).item() == pytest.approx(
        layer_gains.gain(columns).item(), rel=0.05
    )


def fold_of(x: torch.Tensor, dz: torch.Tensor, S: torch.Tensor) -> Fold:
    """A fold of rows with a given output metric."""
    signs = torch.randint(0, 2, dz.shape, generator=torch.Generator().manual_seed(0)).to(dz) * 2 - 1
    s = signs @ torch.linalg.cholesky(S).mT
    return Fold(
        factors=KroneckerFactors(
            rows=len(x),
            samples=len(x),
            input_cov=x.mT @ x,
            cross_cov=dz.mT @ x,
            grad_cov=S * len(x),
            n_rows_read=len(x),
        ),
        samples=PerSampleFactors(a=x, pseudo_grad=s, output_grad=dz),
    )


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_layer_gains_after_acceptance_equals_a_layer_gains_that_had_the_columns(seed: int):
    """Accepting is elimination: the figures of the others are those of a larger map, in every fold."""
    a, new, dz = problem(seed, n=300, p=5)
    S = torch.eye(2, dtype=torch.float64)
    x = torch.cat([a, new], 1)
    parts = [slice(0, 150), slice(150, 300)]
    accepted, left = [1, 3], [0, 2, 4]
    one = LayerGains(*(fold_of(x[p], dz[p], S) for p in parts), existing=4)
    eta = one.eta
    gains = []
    for column in accepted:
        gains.append(one.gain(torch.tensor([[column]])).item())
        one.eliminate(torch.tensor([column]))
    order = [0, 1, 2, 3, *(4 + u for u in accepted), *(4 + u for u in left)]
    two = LayerGains(*(fold_of(x[p][:, order], dz[p], S) for p in parts), existing=6)
    assert one.eta == pytest.approx(eta + sum(gains))
    assert one.eta == pytest.approx(two.eta, rel=1e-2)
    mine, theirs = torch.tensor([[u] for u in left]), torch.tensor([[u] for u in range(3)])
    torch.testing.assert_close(one.gain(mine), two.gain(theirs), rtol=2e-2, atol=2e-3)
    one.fit, one.held_out = (
        replace(account, accepted=None) for account in (one.fit, one.held_out)
    )  # the steps are not in `two`
    torch.testing.assert_close(
        one.held_out_gain(mine)[0], two.held_out_gain(theirs)[0], rtol=2e-2, atol=2e-3
    )


def test_a_duplicate_of_an_accepted_unit_is_worth_nothing():
    a, new, dz = problem(6, p=1)
    x, S = torch.cat([a, new, new], 1), torch.eye(2, dtype=torch.float64)
    layer_gains = LayerGains(
        fold_of(x[:100], dz[:100], S), fold_of(x[100:], dz[100:], S), existing=4
    )
    before = layer_gains.gain(torch.tensor([[1]])).item()
    layer_gains.eliminate(torch.tensor([0]))
    assert layer_gains.gain(torch.tensor([[1]])).item() < 1e-2 * before


@pytest.mark.parametrize("S", [torch.eye(2), torch.tensor([[2.0, 0.7], [0.7, 1.0]])])
def test_pruning_cost_is_the_loss_after_exact_reoptimisation(S):
    """Linear consumer, squared error r^T S r / 2: the optimum without a column is worse by half the cost."""
    a, _, t = problem(7, c=5)
    A, best = a.mT @ a / len(a), torch.linalg.lstsq(a, t).solution.mT  # whatever S is
    S = S.double()

    def loss(w: torch.Tensor, x: torch.Tensor) -> float:
        residual = x @ w.mT - t
        return (0.5 * (residual * (residual @ S)).sum(1)).mean().item()

    inverse = torch.linalg.inv(A)
    for gone in ([2], [0, 4]):
        kept = [i for i in range(5) if i not in gone]
        cost = formulas.pruning_cost(
            best[:, gone], torch.zeros(2, len(gone)), inverse[gone][:, gone], S
        ).item()
        again = torch.linalg.lstsq(a[:, kept], t).solution.mT
        assert cost / 2 == pytest.approx(loss(again, a[:, kept]) - loss(best, a), rel=1e-9)
        taken = best[:, kept] + best[:, gone] @ formulas.compensation(inverse, torch.tensor(gone))
        torch.testing.assert_close(taken, again)


def test_pruning_is_the_mirror_of_growth_away_from_the_optimum():
    """w - step: the cost does not depend on where the weights are, only on what the units are worth."""
    a, _, t = problem(8, c=4)
    A, S = a.mT @ a / len(a), torch.eye(2, dtype=torch.float64)
    costs = []
    for seed in range(3):
        w = torch.randn(2, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        dz = a @ w.mT - t
        step = formulas.natural_step(dz.mT @ a / len(a), A, S, damping=EXACT)
        costs.append(
            formulas.pruning_cost(
                w[:, [1]], step[:, [1]], torch.linalg.inv(A)[[1]][:, [1]], S
            ).item()
        )
    assert costs == pytest.approx([costs[0]] * 3, rel=1e-6)


def test_functions_take_batches():
    a, _, dz = problem(9)
    A, G = factors(a, dz)
    S = torch.eye(2, dtype=torch.float64)
    batched = formulas.expansion_score(
        torch.stack([G, 2 * G]), torch.stack([A, A]), torch.stack([S, S])
    )
    assert batched[1].item() == pytest.approx(4 * batched[0].item())


def test_moments_merge_and_weights_of_zero_are_missing_rows():
    a, _, dz = problem(10)
    whole = kronecker_factors(a, dz, dz)
    merged = kronecker_factors(a[:50], dz[:50], dz[:50]) + kronecker_factors(
        a[50:], dz[50:], dz[50:]
    )
    torch.testing.assert_close(merged.A, whole.A)
    weights = torch.ones(200, dtype=torch.float64)
    weights[100:] = 0
    zero = dz * weights[:, None]
    torch.testing.assert_close(
        kronecker_factors(a, zero, zero, weights=weights).G,
        kronecker_factors(a[:100], dz[:100], dz[:100]).G,
    )
    with pytest.raises(SennError, match="can't be merged"):
        _ = whole + kronecker_factors(a[:, :2], dz, dz)


def test_cholesky_of_a_diverged_factor_is_refused():
    with pytest.raises(SennError, match="NaN"):
        cholesky(torch.full((2, 2), float("nan")))


def test_cholesky_of_dead_and_duplicate_units():
    x = torch.randn(50, 3, dtype=torch.float64)
    x = torch.cat([x, x[:, :1], torch.zeros(50, 1)], 1)
    factor = cholesky((x.mT @ x).float() / 50)
    assert torch.isfinite(factor).all()


def test_addition_limit_is_theorem_3_1():
    assert formulas.max_additions(1.0, 2.5e-3) == pytest.approx(1 + math.log(400) / math.log(2))


def test_promises_of_units_accepted_one_after_another_add_up_to_no_more_than_lambda():
    """Two units that K-FAC takes to be independent, but that do the same on the only samples where the loss curves."""
    g = torch.Generator().manual_seed(0)
    n = 400
    sign, curved = (
        torch.randint(0, 2, (n, 1), generator=g).double() * 2 - 1,
        torch.arange(n)[:, None] % 2 == 0,
    )
    x = torch.cat(
        [torch.ones(n, 1, dtype=torch.float64), sign, torch.where(curved, sign, -sign)], 1
    )
    dz, s = torch.where(curved, sign, 0.0), torch.where(curved, 1.0, 1e-3)
    parts = slice(0, n // 2), slice(n // 2, n)
    folds = [
        Fold.of(
            kronecker_factors(x[p], dz[p], s[p]),
            PerSampleFactors(a=x[p], pseudo_grad=s[p], output_grad=dz[p]),
        )
        for p in parts
    ]
    layer_gains = LayerGains(*folds, existing=1)
    first = layer_gains.held_out_gain(torch.tensor([[0]]))[0].item()
    assert first == pytest.approx(0.5, rel=0.02)  # all of lambda, the mean of dz^2 / s^2
    assert layer_gains.held_out_gain(torch.tensor([[1]]))[0].item() == pytest.approx(
        first, rel=0.02
    )
    layer_gains.eliminate(torch.tensor([0]))
    assert abs(layer_gains.held_out_gain(torch.tensor([[1]]))[0].item()) < 0.01


def test_few_rows_say_the_same_through_their_products():
    """The moment of a map with more columns than rows is never formed; every figure is as if it were."""
    g = torch.Generator().manual_seed(0)
    n, c, m, p = 30, 80, 2, 6
    x = torch.randn(2 * n, c + p, generator=g, dtype=torch.float64)
    dz, s = (torch.randn(2 * n, m, generator=g, dtype=torch.float64) for _ in range(2))

    def fold(part: slice, few: bool) -> Fold:
        found = kronecker_factors(x[part], dz[part], s[part])
        if few:
            found = replace(found, input_cov=x.new_empty(0), n_rows_read=0.0)
        return Fold.of(
            found, PerSampleFactors(a=x[part], pseudo_grad=s[part], output_grad=dz[part])
        )

    parts = slice(0, n), slice(n, 2 * n)
    few, whole = (
        LayerGains(*(fold(part, kind) for part in parts), existing=c) for kind in (True, False)
    )
    assert type(few.inverse).__name__ == "WoodburyInverse"
    assert type(whole.inverse).__name__ == "FactorInverse"
    columns = torch.tensor([[0, 1], [2, 3], [4, 5]])
    for accepted in (None, torch.tensor([2, 3])):
        if accepted is not None:
            few.eliminate(accepted), whole.eliminate(accepted)
        assert few.eta == pytest.approx(whole.eta, rel=1e-6)
        left = columns if accepted is None else columns[::2]
        for figure in ("gain", "gain_lower_bound"):
            torch.testing.assert_close(
                getattr(few, figure)(left), getattr(whole, figure)(left), rtol=1e-5, atol=0
            )
        for ours, theirs in zip(few.held_out_gain(left), whole.held_out_gain(left), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-9)
    weight = torch.randn(m, c, generator=g, dtype=torch.float64)
    ours, theirs = (PruningCosts(one.inverse, one.next_weights(weight), 1) for one in (few, whole))
    groups = torch.arange(c).view(-1, 4)
    torch.testing.assert_close(ours.costs(groups), theirs.costs(groups), rtol=1e-5, atol=0)
    ours.remove(groups[3]), theirs.remove(groups[3])
    torch.testing.assert_close(ours.costs(groups[:3]), theirs.costs(groups[:3]), rtol=1e-5, atol=0)
    # two batches, each few: more rows than half the columns are summed up
    both = fold(parts[0], True) + fold(parts[1], True)
    assert both.rows is None
    torch.testing.assert_close(both.complete.A, x.mT @ x / (2 * n))


def test_held_out_gain_is_the_decrease_of_the_quadratic():
    g = torch.Generator().manual_seed(0)
    step, G = (torch.randn(3, 2, generator=g, dtype=torch.float64) for _ in range(2))
    rows, root = (torch.randn(size, generator=g, dtype=torch.float64) for size in ((50, 2), (3, 3)))
    A, S = rows.mT @ rows / 50, root @ root.mT
    fisher = torch.kron(S, A)
    dense = 2 * G.flatten() @ step.flatten() - step.flatten() @ fisher @ step.flatten()
    assert formulas.held_out_gain(step, G, A, S, locations=4).item() == pytest.approx(
        4 * dense.item(), rel=1e-12
    )


def test_units_that_are_accepted_together_do_not_promise_the_same_decrease_twice():
    """The held-out value of each step is that of it and all before it less that of those, on the held-out rows."""
    n, c, m, new = 400, 2, 2, 3
    g = torch.Generator().manual_seed(1)
    x = torch.randn(2 * n, c + new, generator=g, dtype=torch.float64)
    x[:, c:] = x[:, c:].sign()
    dz = torch.randn(2 * n, m, generator=g, dtype=torch.float64) + x[:, c:].sum(1, keepdim=True)
    # the loss curves where the new columns agree, so K-FAC's independence is wrong, and each step changes the others
    agree = (x[:, c:].sum(1, keepdim=True).abs() == new).double()
    s = torch.randn(2 * n, m, generator=g, dtype=torch.float64) * (0.5 + 1.5 * agree)
    folds = [
        Fold.of(
            kronecker_factors(x[p], dz[p], s[p]),
            PerSampleFactors(a=x[p], pseudo_grad=s[p], output_grad=dz[p]),
        )
        for p in (slice(0, n), slice(n, 2 * n))
    ]
    S = s.mT @ s / (2 * n)
    layer_gains, found = LayerGains(*folds, existing=c), []
    for unit in range(new):
        found.append(layer_gains.held_out_gain(torch.tensor([[unit]]))[0].item())
        layer_gains.eliminate(torch.tensor([unit]))

    (fit, fit_s), (held, held_s) = ((fold.samples.a, fold.samples.pseudo_grad) for fold in folds)

    def residual(rows: torch.Tensor, unit: int) -> torch.Tensor:
        before, own = rows[:, : c + unit], rows[:, c + unit : c + unit + 1]
        return own - before @ torch.linalg.lstsq(before, own).solution

    effects, fit_effects = (torch.zeros(n, dtype=torch.float64) for _ in range(2))
    linear, totals = 0.0, [0.0]
    for unit in range(new):
        on_fit, on_held = residual(fit, unit), residual(held, unit)
        cross = dz[:n].mT @ on_fit / n
        step = torch.linalg.solve(S, cross) / on_fit.square().mean()
        along = (fit_s @ step)[:, 0] * on_fit[:, 0]
        slope = (cross * step).sum() - (along * fit_effects).mean()
        length = slope / torch.maximum(along.square().mean(), slope)
        fit_effects = fit_effects + length * along
        effects = effects + length * (held_s @ step)[:, 0] * on_held[:, 0]
        linear += 2 * length * (dz[n:].mT @ on_held / n * step).sum()
        totals.append((linear - effects.square().mean()).item())
    expected = [after - before for before, after in itertools.pairwise(totals)]
    assert found == pytest.approx(expected, rel=0.02)
