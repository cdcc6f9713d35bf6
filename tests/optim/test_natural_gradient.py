"""NaturalGradient: where its steps are exact, and the quadratic model."""

import copy

import pytest
import torch
import torch.nn.functional as F
from natural_gradient_cases import EXACT, D, dense, flat, one_step, problem, solve
from torch import nn

from senn.kfac.loss_metric import LossMetric
from senn.nn import MLP, Rational
from senn.optim import NaturalGradient
from senn.optim.gauss_newton import GaussNewton, best_combination, conjugate_gradients
from senn.optim.kfac_blocks import Average, KroneckerBlock, split_damping

# ---- where steps are exact ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["kfac", "cg"])
def test_a_linear_map_with_one_output_is_exact_at_any_damping(method):
    model, x, y = problem(nn.Linear(4, 1), outputs=1, loss=F.mse_loss)
    gradient, fisher = dense(model, x, y, F.mse_loss)
    # One output: S is the number 2, whatever the signs.
    step, optimizer = one_step(
        model, x, y, F.mse_loss, method=method, damping=0.3, tolerance=1e-12, **EXACT
    )
    expected = solve(fisher, gradient, 0.3)
    torch.testing.assert_close(step, -expected, rtol=1e-8, atol=1e-10)
    assert optimizer.eta == pytest.approx((gradient @ expected).item(), rel=1e-8)


def test_kfac_is_exact_on_one_linear_map_with_squared_error():
    model, x, y = problem(nn.Linear(4, 2), outputs=2, loss=F.mse_loss)
    gradient, fisher = dense(model, x, y, F.mse_loss)
    # Random signs make S a noisy multiple of I; two outputs decouple once its off-diagonal has averaged out.
    step, _ = one_step(model, x, y, F.mse_loss, damping=1e-12, burn_in=4000, **EXACT)
    torch.testing.assert_close(step, -solve(fisher, gradient, 0), rtol=0.05, atol=5e-3)
    # Newton's method on a quadratic: at the minimum after one step.
    ones = torch.cat([x, torch.ones(len(x), 1, dtype=D)], 1)
    least = F.mse_loss(ones @ torch.linalg.lstsq(ones, y).solution, y)
    assert F.mse_loss(model(x), y).item() == pytest.approx(least.item(), rel=1e-2)


def test_kfac_blocks_are_exact_on_a_deep_linear_net_with_one_datum():
    """One datum: each layer's own block of the Gauss-Newton matrix is a Kronecker product."""
    model = nn.Sequential(nn.Linear(4, 3, bias=False), nn.Linear(3, 1, bias=False))
    model, x, y = problem(model, n=1, outputs=1, loss=F.mse_loss)
    _, fisher = dense(model, x, y, F.mse_loss)
    optimizer = NaturalGradient(model, loss=F.mse_loss, damping=1.0, **EXACT)
    optimizer.step(x, y)
    sizes = [p.numel() for p in model.parameters()]
    for weight, block in zip(model.parameters(), range(2), strict=True):
        factors = optimizer._kfac.linear[weight]
        kron = torch.kron(factors.outputs.current, factors.inputs.current)
        start = sum(sizes[:block])
        own = slice(start, start + sizes[block])
        torch.testing.assert_close(kron, fisher[own, own])


@pytest.mark.parametrize("net", ["mlp", "rational", "conv"])
def test_conjugate_gradients_solve_the_dense_system(net):
    models = {
        "mlp": MLP(4, (3,), 3, "tanh"),
        "rational": MLP(4, (3,), 3, "rational"),
        "conv": nn.Sequential(
            nn.Unflatten(1, (1, 2, 2)), nn.Conv2d(1, 2, 2), nn.Flatten(), nn.Tanh(), nn.Linear(2, 3)
        ),
    }
    model, x, y = problem(models[net])
    gradient, fisher = dense(model, x, y, F.cross_entropy)
    options = {"method": "cg", "damping": 0.01, "iterations": 200, "tolerance": 1e-12}
    step, optimizer = one_step(model, x, y, F.cross_entropy, **options, **EXACT)
    torch.testing.assert_close(step, -solve(fisher, gradient, 0.01), rtol=1e-7, atol=1e-9)
    assert optimizer.eta == pytest.approx((gradient @ solve(fisher, gradient, 0.01)).item())


def test_weight_decay_enters_gradient_and_curvature():
    model, x, y = problem(MLP(4, (3,), 3, "tanh"))
    gradient, fisher = dense(model, x, y, F.cross_entropy)
    start = flat(model)
    options = {
        "method": "cg",
        "damping": 0.01,
        "weight_decay": 0.2,
        "iterations": 200,
        "tolerance": 1e-12,
    }
    step, _ = one_step(model, x, y, F.cross_entropy, **options, **EXACT)
    torch.testing.assert_close(
        step, -solve(fisher, gradient + 0.2 * start, 0.21), rtol=1e-7, atol=1e-9
    )


def test_kronecker_block_inverts_its_damped_factors():
    generator = torch.Generator().manual_seed(0)
    a, s = (
        torch.randn(50, 3, dtype=D, generator=generator),
        torch.randn(50, 2, dtype=D, generator=generator),
    )
    block = KroneckerBlock(0.9)
    block.update(a, [s], None)
    block.refresh(0.1)
    for_a, for_s = split_damping(a.mT @ a / 50, s.mT @ s / 50, 0.1)
    assert for_a * for_s == pytest.approx(0.1)
    left = torch.kron(s.mT @ s / 50 + for_s * torch.eye(2), a.mT @ a / 50 + for_a * torch.eye(3))
    g = torch.randn(2, 3, dtype=D, generator=generator)
    torch.testing.assert_close(
        block.apply([g])[0], torch.linalg.solve(left, g.flatten()).reshape(2, 3)
    )
    # Tokens: F sums over the locations of a sample.
    tokens = KroneckerBlock(0.9)
    tokens.update(a.reshape(10, 5, 3), [s.reshape(10, 5, 2)], None)
    torch.testing.assert_close(tokens.inputs.current, a.mT @ a / 50)
    torch.testing.assert_close(tokens.outputs.current, s.mT @ s / 10)


def test_a_dead_map_takes_the_damping_alone():
    block = KroneckerBlock(0.9)
    block.update(torch.ones(5, 2, dtype=D), [torch.zeros(5, 3, dtype=D)], None)
    block.refresh(0.25)
    inverse_a, inverse_s = block.inverses
    # A + sqrt(damping) I, and S = sqrt(damping) I.
    torch.testing.assert_close(inverse_s, 2 * torch.eye(3, dtype=D))
    torch.testing.assert_close(torch.linalg.inv(inverse_a), 1 + 0.5 * torch.eye(2, dtype=D))


def test_averages_are_not_biased_towards_zero():
    average = Average(0.5)
    for value in (4.0, 8.0):
        average.update(torch.tensor([value]))
    assert average.current.item() == pytest.approx((0.5 * 4 + 8) / 1.5)


def test_sample_weights_count_samples():
    """A weight of two is the sample twice, and a weight of zero is no sample."""
    model, x, y = problem(MLP(4, (3,), 3, "tanh"), n=10)
    weight = torch.tensor([2.0, 0, 1, 1, 1, 1, 1, 1, 2, 0], dtype=D)
    index = torch.repeat_interleave(torch.arange(10), weight.long())
    twin = copy.deepcopy(model)
    options = {"method": "cg", "iterations": 200, "tolerance": 1e-12, **EXACT}
    assert NaturalGradient(model, loss=F.cross_entropy, **options).step(
        x, y, weight
    ) == pytest.approx(
        NaturalGradient(twin, loss=F.cross_entropy, **options).step(x[index], y[index])
    )
    torch.testing.assert_close(flat(model), flat(twin))


# ---- the quadratic model --------------------------------------------------------------------------------------------


def test_predicted_decrease_is_the_true_one_on_a_quadratic():
    model, x, y = problem(nn.Linear(4, 2), outputs=2, loss=F.mse_loss)
    optimizer = NaturalGradient(model, loss=F.mse_loss, adapt=True, weight_decay=0.1)
    losses = []
    for _ in range(5):
        losses.append(optimizer.step(x, y))
        assert optimizer.reduction_ratio == pytest.approx(1, rel=1e-6)
        assert not optimizer.rejected
    assert losses[-1] < losses[0]


def test_best_combination_minimises_the_dense_model():
    model, x, y = problem(MLP(4, (3,), 3, "tanh"))
    gradient, fisher = dense(model, x, y, F.cross_entropy)
    parameters = list(model.parameters())
    metric = LossMetric(F.cross_entropy)
    exact = GaussNewton(model(x), parameters, lambda u: metric.product(model(x), y, u))
    shapes = [p.shape for p in parameters]

    def split(vector):
        return [
            v.reshape(s)
            for v, s in zip(vector.split([s.numel() for s in shapes]), shapes, strict=True)
        ]

    v = torch.randn(len(gradient), 2, dtype=D)
    found = best_combination(
        exact, [split(v[:, 0]), split(v[:, 1])], split(gradient), [0.1] * len(shapes), 0.5
    )
    regular = v.mT @ (fisher + 0.6 * torch.eye(len(gradient), dtype=D)) @ v
    w = -torch.linalg.solve(regular, v.mT @ gradient)
    assert found.coefficients == pytest.approx(w.tolist(), rel=1e-8)
    delta = v @ w
    expected = gradient @ delta + 0.5 * delta @ fisher @ delta + 0.05 * delta @ delta
    assert found.change() == pytest.approx(expected.item(), rel=1e-8)
    # A direction of zeros (no last step yet) does not disturb the other one.
    alone = best_combination(
        exact, [split(v[:, 0]), split(0 * v[:, 1])], split(gradient), [0.1] * len(shapes), 0.5
    )
    assert alone.coefficients == pytest.approx([-(gradient @ v[:, 0] / regular[0, 0]).item(), 0.0])


def test_a_step_that_raises_the_loss_is_taken_back():
    """A huge learning rate overshoots what the quadratic model chose."""
    model, x, y = problem(MLP(4, (5,), 3, "tanh"))
    optimizer = NaturalGradient(model, loss=F.cross_entropy, adapt=True, lr=1.0)
    for _ in range(3):
        optimizer.step(x, y)
    assert not optimizer.rejected
    assert any(bool(optimizer.state[p]["momentum_buffer"].any()) for p in model.parameters())
    before, damping = flat(model), optimizer.damping
    optimizer.param_groups[0]["lr"] = 50.0
    loss = optimizer.step(x, y)
    assert optimizer.rejected
    assert torch.equal(flat(model), before)
    assert optimizer.damping == 2 * damping
    assert not any(bool(optimizer.state[p]["momentum_buffer"].any()) for p in model.parameters())
    optimizer.param_groups[0]["lr"] = 1.0
    assert optimizer.step(x, y) == loss
    assert not optimizer.rejected
    assert optimizer.damping < 2 * damping


def test_conjugate_gradients_stop_at_their_tolerance():
    matrix = torch.diag(torch.arange(1.0, 7, dtype=D))
    right = [torch.ones(6, dtype=D)]
    solved = conjugate_gradients(lambda u: [matrix @ u[0]], right, 6, 1e-12)
    torch.testing.assert_close(solved[0], 1 / torch.arange(1.0, 7, dtype=D))
    rough = conjugate_gradients(lambda u: [matrix @ u[0]], right, 6, 0.5)
    assert 1e-3 < (matrix @ rough[0] - right[0]).norm() / right[0].norm() <= 0.5


def test_rational_parameters_have_a_diagonal_block():
    """The diagonal of the Gauss-Newton matrix, unbiased: many probes come close to the dense one."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), Rational(3), nn.Linear(3, 3))
    model, x, y = problem(model)
    names = [name for name, p in model.named_parameters() for _ in range(p.numel())]
    _, fisher = dense(model, x, y, F.cross_entropy)
    optimizer = NaturalGradient(model, loss=F.cross_entropy, burn_in=3000)
    optimizer.step(x, y)
    for key in "vcl":
        own = [i for i, name in enumerate(names) if name == f"1.{key}"]
        found = optimizer._kfac.other[getattr(model[1], key)].squares.current
        torch.testing.assert_close(found, fisher.diagonal()[own], rtol=0.1, atol=1e-4)


# ---- padding --------------------------------------------------------------------------------------------------------


class Pooled(nn.Module):
    """The mean over the tokens of a sequence that aren't padding, which is NaN."""

    def __init__(self):
        super().__init__()
        self.hidden, self.out = nn.Linear(4, 3), nn.Linear(3, 2)

    def forward(self, x):
        live = ~x.isnan().any(-1, keepdim=True)
        h = torch.relu(self.hidden(x.nan_to_num(7.0)))
        return self.out((h * live).sum(1) / live.sum(1))


@pytest.mark.parametrize("weight", [None, torch.rand(6, dtype=D) + 0.5])
def test_padding_changes_neither_factors_nor_steps(weight):
    torch.manual_seed(0)
    x = torch.randn(6, 5, 4, dtype=D)
    x[::2, 3:] = torch.nan
    y = torch.randint(2, (6,))
    start = Pooled().to(D)
    found = []
    for tokens in (x, torch.cat([x, torch.full((6, 9, 4), torch.nan, dtype=D)], 1)):
        model = copy.deepcopy(start)
        optimizer = NaturalGradient(model, loss=F.cross_entropy, **EXACT)
        optimizer.step(tokens, y, weight)
        found.append((flat(model), optimizer._kfac.linear[model.hidden.weight].inputs.current))
    torch.testing.assert_close(found[0], found[1], rtol=1e-12, atol=1e-12)
    live = x[~x.isnan().any(-1)]
    weights = torch.ones(6, dtype=D) if weight is None else weight
    weights = weights[:, None].expand(6, 5)[~x.isnan().any(-1)]
    dense = (live * weights[:, None]).T @ live / weights.sum()
    torch.testing.assert_close(found[0][1][:4, :4], dense)
