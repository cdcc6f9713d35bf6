"""The paper's theorems and the lemmas of its appendix that can be stated, against dense float64 truth.

Dense truth is the whole Jacobian J of a linear map with the loss's Hessian H at its outputs, where K-FAC is exact, or
of a small network with all its parameters. Lemmas whose text isn't public are named by what they say.
"""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import senn
from senn.policies import Candidate, PaperPolicy
from senn.scoring import formulas

EXACT = 1e-13
"""Damping, where dense truth has none."""

ROWS, OUTPUTS = 24, 2

seeds = st.integers(0, 10**6)
examples = settings(max_examples=15, deadline=None)


def draw(seed: int, *columns: int) -> tuple[list[Tensor], Tensor, Tensor]:
    """Draw columns (24, each), correlated among each other, output gradients (24, 2), and a Hessian H (2, 2)."""
    g = torch.Generator().manual_seed(seed)
    base = torch.randn(ROWS, sum(columns), generator=g, dtype=torch.float64)
    base = base + 0.5 * base[:, -1:]
    root = torch.randn(OUTPUTS, OUTPUTS, generator=g, dtype=torch.float64)
    H = root @ root.mT + 0.1 * torch.eye(OUTPUTS, dtype=torch.float64)
    dz = torch.randn(ROWS, OUTPUTS, generator=g, dtype=torch.float64) + base[:, :1]
    return list(base.split(columns, 1)), dz, H


def moments(a: Tensor, b: Tensor) -> Tensor:
    return a.mT @ b / len(a)


def eta(a: Tensor, dz: Tensor, H: Tensor) -> float:
    """The formula under test, of a linear map that reads `a`."""
    return formulas.expansion_score(moments(dz, a), moments(a, a), H, damping=EXACT).item()


def gains(old: Tensor, new: Tensor, dz: Tensor, H: Tensor) -> tuple[float, float]:
    """Gain and bound, by the formulas under test."""
    A, A_cp, A_pp = moments(old, old), moments(old, new), moments(new, new)
    C = formulas.residual_cross(moments(dz, new), moments(dz, old), A, A_cp, damping=EXACT)
    gain = formulas.width_gain(C, A_pp, A_cp, A, H, damping=EXACT)
    return gain.item(), formulas.width_gain_bound(C, A_pp, H, damping=EXACT).item()


def projected(J: Tensor, g: Tensor, H: Tensor) -> float:
    """(1/N) |P g|^2: the squared length of g's projection on the range of J (N m, parameters), in the metric of H.

    By a singular value decomposition, whatever J's rank; g is (N, m).
    """
    root = torch.linalg.cholesky(H)
    whitened = (root.mT @ J.view(len(g), OUTPUTS, -1)).flatten(0, 1)
    along = torch.linalg.solve(root, g.mT).mT.flatten()
    U, sigma, _ = torch.linalg.svd(whitened, full_matrices=False)
    basis = U[:, sigma > 1e-9 * sigma[0]]
    return (basis.mT @ along).square().sum().item() / len(g)


def jacobian(a: Tensor) -> Tensor:
    """d z / d W of z = W a, (rows * outputs, parameters)."""
    return torch.einsum("nc,mk->nmkc", a, torch.eye(OUTPUTS, dtype=a.dtype)).reshape(
        len(a) * OUTPUTS, -1
    )


@examples
@given(seed=seeds, columns=st.integers(1, 8))
def test_eta_is_the_squared_length_of_a_projection_of_the_output_gradient(seed, columns):
    """Equation 3: eta = g^T F^-1 g = (1/N) |P_Theta g_y|^2, and so at most lambda."""
    (a,), dz, H = draw(seed, columns)
    assert eta(a, dz, H) == pytest.approx(projected(jacobian(a), dz, H), rel=1e-7)
    score_limit = (dz * torch.linalg.solve(H, dz.mT).mT).sum().item() / ROWS
    assert eta(a, dz, H) <= score_limit * (1 + 1e-9)


@examples
@given(seed=seeds)
def test_eta_reaches_lambda_where_the_columns_span_everything(seed):
    (a,), dz, H = draw(seed, ROWS)
    score_limit = (dz * torch.linalg.solve(H, dz.mT).mT).sum().item() / ROWS
    assert eta(a, dz, H) == pytest.approx(score_limit, rel=1e-4)


@examples
@given(seed=seeds, columns=st.lists(st.integers(1, 3), min_size=2, max_size=5))
def test_eta_never_falls_when_columns_are_added(seed, columns):
    """Nested subspaces: each further set of columns projects on a space that holds the former one."""
    parts, dz, H = draw(seed, *columns)
    scores = [eta(torch.cat(parts[: k + 1], 1), dz, H) for k in range(len(parts))]
    assert all(after >= before * (1 - 1e-9) for before, after in itertools.pairwise(scores))
    # columns that lie in the span of the former ones add nothing
    within = parts[0] @ torch.ones(columns[0], 1).double()
    assert gains(parts[0], within, dz, H)[0] == pytest.approx(0, abs=1e-6)


@examples
@given(seed=seeds, old=st.integers(1, 4), first=st.integers(1, 3), second=st.integers(1, 3))
def test_gains_of_columns_that_are_added_one_after_another_add_up(seed, old, first, second):
    """Pythagoras: eta of all = eta of the old + gain of the first + gain of the second beside it, in either order."""
    (a, b, c), dz, H = draw(seed, old, first, second)
    both = eta(torch.cat([a, b, c], 1), dz, H)
    for one, other in ((b, c), (c, b)):
        total = eta(a, dz, H) + gains(a, one, dz, H)[0]
        total += gains(torch.cat([a, one], 1), other, dz, H)[0]
        assert total == pytest.approx(both, rel=1e-7)


@examples
@given(seed=seeds, old=st.integers(1, 4), new=st.integers(1, 3))
def test_eta_does_not_depend_on_the_basis_of_the_columns(seed, old, new):
    """A projection depends on the space alone, so neither eta nor a gain changes under a linear map of the columns."""
    (a, b), dz, H = draw(seed, old, new)
    g = torch.Generator().manual_seed(seed)
    M, N = (
        torch.randn(k, k, generator=g).double() + 3 * torch.eye(k, dtype=torch.float64)
        for k in (old, new)
    )
    assert eta(a @ M, dz, H) == pytest.approx(eta(a, dz, H), rel=1e-6)
    # new columns with a part of the old ones in them gain the same; their bound doesn't
    mixed = b @ N + a @ torch.randn(old, new, generator=g).double()
    assert gains(a, mixed, dz, H)[0] == pytest.approx(gains(a, b, dz, H)[0], rel=1e-6, abs=1e-12)


@examples
@given(seed=seeds, old=st.integers(1, 6), new=st.integers(1, 3))
def test_lemma_a_6_the_residual_gradient_is_orthogonal_to_the_old_columns(seed, old, new):
    """g_r = g - E[g a_c^T] A_c^-1 a_c."""
    (a, b), dz, _ = draw(seed, old, new)
    A, G = moments(a, a), moments(dz, a)
    residual = dz - a @ torch.linalg.solve(A, G.mT)
    torch.testing.assert_close(moments(residual, a), torch.zeros_like(G), rtol=0, atol=1e-9)

    def cross(columns: Tensor) -> Tensor:
        return formulas.residual_cross(
            moments(dz, columns), G, A, moments(a, columns), damping=EXACT
        )

    torch.testing.assert_close(cross(a), torch.zeros_like(G), rtol=0, atol=1e-8)
    # and with new columns it has the moment that the formula gives, which only their own new part decides
    torch.testing.assert_close(cross(b), moments(residual, b), rtol=1e-7, atol=1e-8)
    own = b - a @ torch.linalg.solve(A, moments(a, b))
    torch.testing.assert_close(cross(b), moments(dz, own), rtol=1e-7, atol=1e-8)


@examples
@given(seed=seeds, old=st.integers(1, 5), new=st.integers(1, 4))
def test_the_moment_of_what_is_new_is_below_that_of_the_columns(seed, old, new):
    """A_pp - A_pc A^-1 A_cp <= A_pp as quadratic forms: why leaving the subtraction out gives a lower bound."""
    (a, b), _, _ = draw(seed, old, new)
    A_cp, A_pp = moments(a, b), moments(b, b)
    schur = formulas.schur_complement(A_pp, A_cp, torch.linalg.solve(moments(a, a), A_cp))
    assert torch.linalg.eigvalsh(schur)[0] > -1e-9
    assert torch.linalg.eigvalsh(A_pp - schur)[0] > -1e-9


@examples
@given(seed=seeds, old=st.integers(1, 5), new=st.integers(1, 4))
def test_lemma_a_8_theorem_3_2_the_bound_is_below_the_gain(seed, old, new):
    """And equal to it exactly where new and old columns are uncorrelated; the gain is the difference of dense etas."""
    (a, b), dz, H = draw(seed, old, new)
    gain, bound = gains(a, b, dz, H)
    both, alone = (projected(jacobian(x), dz, H) for x in (torch.cat([a, b], 1), a))
    assert gain == pytest.approx(both - alone, rel=1e-6, abs=1e-9)
    assert 0 <= bound <= gain * (1 + 1e-9)
    own = b - a @ torch.linalg.solve(moments(a, a), moments(a, b))
    apart, same = gains(a, own, dz, H)
    assert same == pytest.approx(apart, rel=1e-6)


@settings(max_examples=10, deadline=None)
@given(seed=seeds, tau=st.floats(0.02, 2), alpha=st.floats(1e-4, 0.3))
def test_theorem_3_1_bounds_the_additions_of_a_round(seed, tau, alpha):
    """Columns are added by the paper's rule, with eta brought up to date after each, until none passes."""
    parts, dz, H = draw(seed, *([1] * 14))
    score_limit = (dz * torch.linalg.solve(H, dz.mT).mT).sum().item() / ROWS
    policy, chosen, left = PaperPolicy(tau=tau, alpha=alpha), parts[0], parts[1:]
    accepted = 0
    while left:
        offered = [
            Candidate(
                kind="widen", place=str(i), detail="", units=1, width=1, parameters=1, gain=gain,
                gain_lower_bound=bound, held_out_gain=gain, held_out_stderr=0.0,
                eta=eta(chosen, dz, H) if accepted else 0.0, score_limit=score_limit, samples=ROWS,
            )
            for i, (gain, bound) in enumerate(gains(chosen, one, dz, H) for one in left)
        ]  # fmt: skip
        best = policy.choose(offered, [])
        if best is None:
            break
        chosen = torch.cat([chosen, left.pop(int(best.place))], 1)
        accepted += 1
    assert accepted < formulas.max_additions(tau, alpha)


# -- a whole network


def small_net(seed: int) -> tuple[nn.Sequential, Tensor, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, OUTPUTS)).double()
        return model, torch.randn(20, 2).double(), torch.randn(20, OUTPUTS).double()


def dense(model: nn.Module, x: Tensor, y: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Jacobians by parameter, (rows * outputs, entries), and gradients of half the squared error, (rows, outputs)."""
    parameters = dict(model.named_parameters())
    outputs = model(x)
    rows = [
        torch.autograd.grad(one, [*parameters.values()], retain_graph=True)
        for one in outputs.flatten()
    ]
    jacobians = (
        torch.stack([one.flatten() for one in column]) for column in zip(*rows, strict=True)
    )
    return dict(zip(parameters, jacobians, strict=True)), (outputs - y).detach()


@pytest.mark.parametrize("seed", range(3))
def test_a_dormant_unit_never_lowers_eta_of_a_whole_network(seed):
    """Its outgoing weights are further parameters of the same function, so its tangent space holds the former one."""
    model, x, y = small_net(seed)
    wider = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, OUTPUTS)).double()
    with torch.no_grad():
        for i in (0, 2):
            wider[i].weight.zero_(), wider[i].bias.zero_()
        wider[0].weight[:3], wider[0].bias[:3] = model[0].weight, model[0].bias
        wider[0].weight[3], wider[0].bias[3] = x[0], 0.1
        wider[2].weight[:, :3], wider[2].bias[:] = model[2].weight, model[2].bias
    scores = []
    for net in (model, wider):
        found, gradient = dense(net, x, y)
        scores.append(
            projected(torch.cat([*found.values()], 1), gradient, torch.eye(OUTPUTS).double())
        )
    torch.testing.assert_close(wider(x), model(x))
    assert scores[1] >= scores[0] * (1 - 1e-9)
    # each map by itself is a part of the whole, so its own eta can't be more
    found, gradient = dense(model, x, y)
    maps = [torch.cat([found[f"{i}.weight"], found[f"{i}.bias"]], 1) for i in (0, 2)]
    alone = [projected(J, gradient, torch.eye(OUTPUTS).double()) for J in maps]
    assert max(alone) <= scores[0] * (1 + 1e-9)


def test_with_one_datum_each_of_three_maps_promises_all_of_lambda():
    """The sum over the maps counts one decrease three times; the paper's policy compares with eta of the whole."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    x, y = torch.randn(1, 3).repeat(400, 1), torch.randn(1, 2).repeat(400, 1)
    for policy, times in ((senn.PricePolicy(), 3.0), (PaperPolicy(), 1.0)):
        grower = senn.Grower(model, None, F.mse_loss, policy, moves=("width",))
        (candidate, *_) = grower.score_candidates([(x, y)])
        # eta of the whole is a lower bound from sampled rows
        assert grower.eta == pytest.approx(times * candidate.score_limit, rel=3e-2)
        assert times > 1 or grower.eta <= candidate.score_limit
