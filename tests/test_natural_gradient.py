"""NaturalGradient: where its steps are exact, what it does in training, what it refuses."""

import copy
import functools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from senn.curvature.output import OutputMetric
from senn.errors import SennError, UnsupportedError
from senn.nn import MLP, Rational, Residual
from senn.optim import NaturalGradient
from senn.optim.blocks import Average, Kronecker, split_damping
from senn.optim.ggn import GaussNewton, best_combination, conjugate_gradients

D = torch.float64
EXACT = {"momentum": 0.0, "norm_constraint": None, "lr": 1.0}


def _problem(model, n=40, outputs=3, seed=0, loss=F.cross_entropy):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 4, generator=generator, dtype=D)
    if loss is F.cross_entropy:
        return model.to(D), x, torch.randint(0, outputs, (n,), generator=generator)
    return model.to(D), x, torch.randn(n, outputs, generator=generator, dtype=D)


def _dense(model, x, y, loss):
    """Gradient and Gauss-Newton matrix of all parameters, from torch.func alone."""
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    output = torch.func.functional_call(model, parameters, (x,))
    jacobian = torch.func.jacrev(lambda p: torch.func.functional_call(model, p, (x,)))(parameters)
    j = torch.cat([block.reshape(*output.shape, -1) for block in jacobian.values()], 2)
    hessian = torch.func.hessian(lambda out: loss(out, y))(output)
    gradient = torch.func.grad(lambda out: loss(out, y))(output)
    fisher = torch.einsum("nia,ninj,njb->ab", j, hessian, j)
    return torch.einsum("nia,ni->a", j, gradient), fisher


def _flat(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def _step(model, x, y, loss, **options):
    before = _flat(model)
    optimizer = NaturalGradient(model, loss=loss, **options)
    optimizer.step(x, y)
    return _flat(model) - before, optimizer


def _solve(fisher, gradient, damping):
    return torch.linalg.solve(fisher + damping * torch.eye(len(gradient), dtype=D), gradient)


# ---- where steps are exact ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["kfac", "cg"])
def test_a_linear_map_with_one_output_is_exact_at_any_damping(method):
    model, x, y = _problem(nn.Linear(4, 1), outputs=1, loss=F.mse_loss)
    gradient, fisher = _dense(model, x, y, F.mse_loss)
    # One output: S is the number 2, whatever the signs.
    step, optimizer = _step(model, x, y, F.mse_loss, method=method, damping=0.3, tolerance=1e-12, **EXACT)
    expected = _solve(fisher, gradient, 0.3)
    torch.testing.assert_close(step, -expected, rtol=1e-8, atol=1e-10)
    assert optimizer.eta == pytest.approx((gradient @ expected).item(), rel=1e-8)


def test_kfac_is_exact_on_one_linear_map_with_squared_error():
    model, x, y = _problem(nn.Linear(4, 2), outputs=2, loss=F.mse_loss)
    gradient, fisher = _dense(model, x, y, F.mse_loss)
    # Random signs make S a noisy multiple of I; two outputs decouple once its off-diagonal has averaged out.
    step, _ = _step(model, x, y, F.mse_loss, damping=1e-12, burn_in=4000, **EXACT)
    torch.testing.assert_close(step, -_solve(fisher, gradient, 0), rtol=0.05, atol=5e-3)
    # Newton's method on a quadratic: at the minimum after one step.
    ones = torch.cat([x, torch.ones(len(x), 1, dtype=D)], 1)
    least = F.mse_loss(ones @ torch.linalg.lstsq(ones, y).solution, y)
    assert F.mse_loss(model(x), y).item() == pytest.approx(least.item(), rel=1e-2)


def test_kfac_blocks_are_exact_on_a_deep_linear_net_with_one_datum():
    """One datum: each layer's own block of the Gauss-Newton matrix is a Kronecker product."""
    model = nn.Sequential(nn.Linear(4, 3, bias=False), nn.Linear(3, 1, bias=False))
    model, x, y = _problem(model, n=1, outputs=1, loss=F.mse_loss)
    _, fisher = _dense(model, x, y, F.mse_loss)
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
        "conv": nn.Sequential(nn.Unflatten(1, (1, 2, 2)), nn.Conv2d(1, 2, 2), nn.Flatten(), nn.Tanh(), nn.Linear(2, 3)),
    }
    model, x, y = _problem(models[net])
    gradient, fisher = _dense(model, x, y, F.cross_entropy)
    options = {"method": "cg", "damping": 0.01, "iterations": 200, "tolerance": 1e-12}
    step, optimizer = _step(model, x, y, F.cross_entropy, **options, **EXACT)
    torch.testing.assert_close(step, -_solve(fisher, gradient, 0.01), rtol=1e-7, atol=1e-9)
    assert optimizer.eta == pytest.approx((gradient @ _solve(fisher, gradient, 0.01)).item())


def test_weight_decay_enters_gradient_and_curvature():
    model, x, y = _problem(MLP(4, (3,), 3, "tanh"))
    gradient, fisher = _dense(model, x, y, F.cross_entropy)
    start = _flat(model)
    options = {"method": "cg", "damping": 0.01, "weight_decay": 0.2, "iterations": 200, "tolerance": 1e-12}
    step, _ = _step(model, x, y, F.cross_entropy, **options, **EXACT)
    torch.testing.assert_close(step, -_solve(fisher, gradient + 0.2 * start, 0.21), rtol=1e-7, atol=1e-9)


def test_kronecker_block_inverts_its_damped_factors():
    generator = torch.Generator().manual_seed(0)
    a, s = torch.randn(50, 3, dtype=D, generator=generator), torch.randn(50, 2, dtype=D, generator=generator)
    block = Kronecker(0.9)
    block.update(a, [s], None)
    block.refresh(0.1)
    for_a, for_s = split_damping(a.mT @ a / 50, s.mT @ s / 50, 0.1)
    assert for_a * for_s == pytest.approx(0.1)
    left = torch.kron(s.mT @ s / 50 + for_s * torch.eye(2), a.mT @ a / 50 + for_a * torch.eye(3))
    g = torch.randn(2, 3, dtype=D, generator=generator)
    torch.testing.assert_close(block.apply([g])[0], torch.linalg.solve(left, g.flatten()).reshape(2, 3))
    # Tokens: F sums over the locations of a sample.
    tokens = Kronecker(0.9)
    tokens.update(a.reshape(10, 5, 3), [s.reshape(10, 5, 2)], None)
    torch.testing.assert_close(tokens.inputs.current, a.mT @ a / 50)
    torch.testing.assert_close(tokens.outputs.current, s.mT @ s / 10)


def test_a_dead_map_takes_the_damping_alone():
    block = Kronecker(0.9)
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
    model, x, y = _problem(MLP(4, (3,), 3, "tanh"), n=10)
    weight = torch.tensor([2.0, 0, 1, 1, 1, 1, 1, 1, 2, 0], dtype=D)
    index = torch.repeat_interleave(torch.arange(10), weight.long())
    twin = copy.deepcopy(model)
    options = {"method": "cg", "iterations": 200, "tolerance": 1e-12, **EXACT}
    assert NaturalGradient(model, loss=F.cross_entropy, **options).step(x, y, weight) == pytest.approx(
        NaturalGradient(twin, loss=F.cross_entropy, **options).step(x[index], y[index])
    )
    torch.testing.assert_close(_flat(model), _flat(twin))


# ---- the quadratic model --------------------------------------------------------------------------------------------


def test_predicted_decrease_is_the_true_one_on_a_quadratic():
    model, x, y = _problem(nn.Linear(4, 2), outputs=2, loss=F.mse_loss)
    optimizer = NaturalGradient(model, loss=F.mse_loss, adapt=True, weight_decay=0.1)
    losses = []
    for _ in range(5):
        losses.append(optimizer.step(x, y))
        assert optimizer.reduction_ratio == pytest.approx(1, rel=1e-6)
        assert not optimizer.rejected
    assert losses[-1] < losses[0]


def test_best_combination_minimises_the_dense_model():
    model, x, y = _problem(MLP(4, (3,), 3, "tanh"))
    gradient, fisher = _dense(model, x, y, F.cross_entropy)
    parameters = list(model.parameters())
    metric = OutputMetric(F.cross_entropy)
    exact = GaussNewton(model(x), parameters, lambda u: metric.product(model(x), y, u))
    shapes = [p.shape for p in parameters]

    def split(vector):
        return [v.reshape(s) for v, s in zip(vector.split([s.numel() for s in shapes]), shapes, strict=True)]

    v = torch.randn(len(gradient), 2, dtype=D)
    found = best_combination(exact, [split(v[:, 0]), split(v[:, 1])], split(gradient), [0.1] * len(shapes), 0.5)
    regular = v.mT @ (fisher + 0.6 * torch.eye(len(gradient), dtype=D)) @ v
    w = -torch.linalg.solve(regular, v.mT @ gradient)
    assert found.coefficients == pytest.approx(w.tolist(), rel=1e-8)
    delta = v @ w
    expected = gradient @ delta + 0.5 * delta @ fisher @ delta + 0.05 * delta @ delta
    assert found.change() == pytest.approx(expected.item(), rel=1e-8)
    # A direction of zeros (no last step yet) does not disturb the other one.
    alone = best_combination(exact, [split(v[:, 0]), split(0 * v[:, 1])], split(gradient), [0.1] * len(shapes), 0.5)
    assert alone.coefficients == pytest.approx([-(gradient @ v[:, 0] / regular[0, 0]).item(), 0.0])


def test_a_step_that_raises_the_loss_is_taken_back():
    """A huge learning rate overshoots what the quadratic model chose."""
    model, x, y = _problem(MLP(4, (5,), 3, "tanh"))
    optimizer = NaturalGradient(model, loss=F.cross_entropy, adapt=True, lr=1.0)
    for _ in range(3):
        optimizer.step(x, y)
    assert not optimizer.rejected
    assert any(bool(optimizer.state[p]["momentum_buffer"].any()) for p in model.parameters())
    before, damping = _flat(model), optimizer.damping
    optimizer.param_groups[0]["lr"] = 50.0
    loss = optimizer.step(x, y)
    assert optimizer.rejected
    assert torch.equal(_flat(model), before)
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


# ---- minibatch steps ------------------------------------------------------------------------------------------------


def test_norm_constraint_bounds_the_step_in_nats():
    model, x, y = _problem(MLP(4, (3,), 3, "tanh"))
    gradient, fisher = _dense(model, x, y, F.cross_entropy)
    options = {"method": "cg", "damping": 0.01, "momentum": 0.0, "lr": 1.0, "tolerance": 1e-12}
    step, optimizer = _step(model, x, y, F.cross_entropy, norm_constraint=1e-4, **options)
    free = _solve(fisher, gradient, 0.01)
    assert optimizer.eta > 1e-4
    torch.testing.assert_close(step, -free * math.sqrt(1e-4 / optimizer.eta), rtol=1e-6, atol=1e-9)
    assert step @ (fisher + 0.01 * torch.eye(len(step), dtype=D)) @ step == pytest.approx(1e-4, rel=1e-6)


def test_momentum_is_on_steps():
    model, x, y = _problem(MLP(4, (3,), 3, "tanh"))
    optimizer = NaturalGradient(model, loss=F.cross_entropy, lr=0.1, momentum=0.5)
    start = _flat(model)
    optimizer.step(x, y)
    first = _flat(model) - start
    optimizer.param_groups[0]["lr"] = 0.0
    optimizer.step(x, y)
    torch.testing.assert_close(_flat(model) - start, 1.5 * first)


def test_groups_schedulers_and_frozen_parameters():
    model, x, y = _problem(MLP(4, (3, 3), 3, "tanh"))
    first, middle, last = (layer for layer in model.body if isinstance(layer, nn.Linear))
    middle.weight.requires_grad_(False)
    groups = [{"params": first.parameters(), "lr": 0.0}, {"params": middle.parameters()}, {"params": last.parameters()}]
    optimizer = NaturalGradient(model, groups, loss=F.cross_entropy, lr=0.2, norm_constraint=None, momentum=0.0)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    before = copy.deepcopy(model.state_dict())
    optimizer.step(x, y)
    scheduler.step()
    after = model.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"body.2.bias", "body.4.weight", "body.4.bias"}
    assert [group["lr"] for group in optimizer.param_groups] == [0.0, 0.1, 0.1]
    optimizer.zero_grad()
    assert all(p.grad is None for p in model.parameters())
    left_out = NaturalGradient(model, last.parameters(), loss=F.cross_entropy, lr=0.2)
    bias = middle.bias.clone()
    left_out.step(x, y)
    assert torch.equal(middle.bias, bias)


CASES = {
    "rational": lambda: MLP(4, (5, 5), 3, "rational"),
    "prelu and batch norm": lambda: MLP(4, (5, 5), 3, "prelu", norm="batch"),
    "dropout": lambda: MLP(4, (8,), 3, "relu", dropout=0.3),
    "in-place relu": lambda: MLP(4, (5,), 3, functools.partial(nn.ReLU, inplace=True)),
    "residual": lambda: nn.Sequential(nn.Linear(4, 5), Residual(nn.Sequential(nn.LayerNorm(5), nn.Linear(5, 5))),
                                      nn.ReLU(), nn.Linear(5, 3)),
    "conv": lambda: nn.Sequential(nn.Unflatten(1, (1, 2, 2)), nn.Conv2d(1, 6, 2), nn.Flatten(), nn.ReLU(),
                                  nn.Linear(6, 3)),
    "attention": lambda: nn.Sequential(nn.Unflatten(1, (2, 2)), nn.TransformerEncoderLayer(2, 1, 4, batch_first=True),
                                       nn.Flatten(), nn.Linear(4, 3)),
    "logistic regression": lambda: MLP(4, (), 3),
}  # fmt: skip


@pytest.mark.parametrize("adapt", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_every_parameter_of_every_net_trains(name, adapt):
    torch.manual_seed(0)
    model, x, y = _problem(CASES[name](), n=60)
    before = {key: p.detach().clone() for key, p in model.named_parameters()}
    optimizer = NaturalGradient(model, loss=F.cross_entropy, adapt=adapt)
    losses = [optimizer.step(x, y) for _ in range(15)]
    assert min(losses[-3:]) < 0.97 * losses[0]
    still = [key for key, p in model.named_parameters() if torch.equal(p, before[key])]
    # A bias before batch norm and the keys' bias of attention do not reach the output.
    assert [key for key in still if not key.endswith("bias")] == []
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())


def test_in_place_activations_give_the_same_steps():
    torch.manual_seed(0)
    model, x, y = _problem(MLP(4, (5,), 3, "relu"))
    twin = copy.deepcopy(model)
    twin.body[1].inplace = True
    for net in (model, twin):
        optimizer = NaturalGradient(net, loss=F.cross_entropy)
        for _ in range(3):
            optimizer.step(x, y)
    torch.testing.assert_close(_flat(model), _flat(twin), rtol=0, atol=0)


def test_one_pass_for_everything_under_dropout_and_batch_norm():
    """The loss after a step is measured with the dropout mask and the buffers of the loss before it."""
    torch.manual_seed(0)
    model, x, y = _problem(MLP(4, (8,), 3, "tanh", norm="batch", dropout=0.5))
    optimizer = NaturalGradient(model, loss=F.cross_entropy, adapt=True, lr=1e-6)
    torch.manual_seed(1)
    optimizer.step(x, y)
    # A tiny step changes the loss as its slope says: only so if nothing else differs.
    assert optimizer.reduction_ratio == pytest.approx(1, abs=1e-3)
    assert model.body[1].num_batches_tracked == 1
    state = torch.get_rng_state()
    torch.manual_seed(1)
    model(x)
    assert torch.equal(torch.get_rng_state(), state)


# ---- growth, saving -------------------------------------------------------------------------------------------------


def _grow(model, optimizer, k):
    """Widen the first hidden layer of an MLP by hand, with zero outgoing weights, as surgery does."""
    linears = [layer for layer in model.body if isinstance(layer, nn.Linear)]
    pads = [(linears[0], "weight", (0, 0, 0, k)), (linears[0], "bias", (0, k)), (linears[1], "weight", (0, k))]
    for layer, name, pad in pads:
        old = getattr(layer, name)
        value = F.pad(old.detach(), pad)
        if layer is linears[0]:
            value[-k:] = torch.randn_like(value[-k:])
        new = nn.Parameter(value)
        setattr(layer, name, new)
        for group in optimizer.param_groups:
            group["params"][:] = [new if p is old else p for p in group["params"]]
        state = optimizer.state.pop(old)
        optimizer.state[new] = {key: F.pad(tensor, pad) for key, tensor in state.items()}


@pytest.mark.parametrize("options", [{}, {"adapt": True}, {"method": "cg"}])
def test_growth_in_mid_training(options):
    torch.manual_seed(0)
    model, x, y = _problem(MLP(4, (3, 3), 3, "tanh"), n=80)
    optimizer = NaturalGradient(model, loss=F.cross_entropy, **options)
    for _ in range(5):
        loss = optimizer.step(x, y)
    untouched = model.body[4].weight
    kept = optimizer._kfac.linear.get(untouched)
    damping = optimizer.damping
    _grow(model, optimizer, 4)
    assert optimizer.damping == damping
    losses = [optimizer.step(x, y) for _ in range(10)]
    assert losses[0] < loss * 1.05
    assert losses[-1] < losses[0]
    assert bool(model.body[2].weight[:, -4:].any(1).all())
    if "method" not in options:
        assert optimizer._kfac.linear[untouched] is kept
        assert set(optimizer._kfac.linear) == {layer.weight for layer in model.body if isinstance(layer, nn.Linear)}
        assert len(optimizer._kfac.linear[model.body[2].weight].inputs.current) == 8


@pytest.mark.parametrize("options", [{}, {"adapt": True}, {"method": "cg", "momentum": 0.5}])
@pytest.mark.parametrize("way", ["state_dict", "deepcopy"])
def test_training_goes_on_bit_by_bit(options, way, tmp_path):
    torch.manual_seed(0)
    model, x, y = _problem(MLP(4, (3,), 3, "rational"))
    optimizer = NaturalGradient(model, loss=F.cross_entropy, inverse_every=3, factor_every=2, **options)
    for _ in range(4):
        optimizer.step(x, y)
    if way == "deepcopy":
        twin, again = copy.deepcopy((model, optimizer))
    else:
        torch.save((model.state_dict(), optimizer.state_dict()), tmp_path / "state.pt")
        weights, state = torch.load(tmp_path / "state.pt", weights_only=True)
        twin = MLP(4, (3,), 3, "rational").to(D)
        twin.load_state_dict(weights)
        again = NaturalGradient(twin, loss=F.cross_entropy, inverse_every=3, factor_every=2, **options)
        again.load_state_dict(state)
    for _ in range(5):
        assert optimizer.step(x, y) == again.step(x, y)
    assert torch.equal(_flat(model), _flat(twin))
    assert optimizer.damping == again.damping


def test_states_that_do_not_fit_are_refused():
    model, x, y = _problem(MLP(4, (3,), 3))
    optimizer = NaturalGradient(model, loss=F.cross_entropy)
    optimizer.step(x, y)
    other = NaturalGradient(MLP(4, (5,), 3).to(D), loss=F.cross_entropy)
    with pytest.raises(SennError, match=r"body\.0\.weight"):
        other.load_state_dict(optimizer.state_dict())
    adam = torch.optim.Adam(model.parameters())
    with pytest.raises(SennError, match="not saved by NaturalGradient"):
        optimizer.load_state_dict(adam.state_dict())


# ---- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("adapt", [False, True])
def test_a_loss_that_is_not_finite_changes_nothing(adapt):
    model, x, y = _problem(MLP(4, (3,), 3, "tanh", norm="batch"))
    optimizer = NaturalGradient(model, loss=F.cross_entropy, adapt=adapt)
    optimizer.step(x, y)
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    with pytest.raises(SennError, match="not finite"):
        optimizer.step(x * float("nan"), y)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[0][name])
    for key, state in optimizer.state_dict()["state"].items():
        assert torch.equal(state["momentum_buffer"], before[1]["state"][key]["momentum_buffer"])
    optimizer.step(x, y)


def test_a_map_used_twice_is_refused_by_name_and_left_to_conjugate_gradients():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.shared = nn.Linear(4, 4)
            self.out = nn.Linear(4, 3)

        def forward(self, x):
            return self.out(self.shared(torch.tanh(self.shared(x))))

    model, x, y = _problem(Twice())
    with pytest.raises(UnsupportedError, match="shared is used more than once"):
        NaturalGradient(model, loss=F.cross_entropy).step(x, y)
    gradient, fisher = _dense(model, x, y, F.cross_entropy)
    step, _ = _step(model, x, y, F.cross_entropy, method="cg", tolerance=1e-12, **EXACT)
    torch.testing.assert_close(step, -_solve(fisher, gradient, 0.1), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "newton"}, "newton"),
        ({"lr": -1.0}, "lr"),
        ({"momentum": 1.0}, "momentum"),
        ({"damping": float("nan")}, "damping"),
        ({"metric": "riemann"}, "riemann"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(SennError, match=message):
        NaturalGradient(nn.Linear(2, 2), loss=F.cross_entropy, **options)


def test_a_model_without_trainable_parameters_is_refused():
    model, x, y = _problem(nn.Linear(4, 3))
    optimizer = NaturalGradient(model, loss=F.cross_entropy)
    model.requires_grad_(False)
    with pytest.raises(SennError, match="no trainable parameter"):
        optimizer.step(x, y)


def test_rational_parameters_have_a_diagonal_block():
    """The diagonal of the Gauss-Newton matrix, unbiased: many probes come close to the dense one."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), Rational(3), nn.Linear(3, 3))
    model, x, y = _problem(model)
    names = [name for name, p in model.named_parameters() for _ in range(p.numel())]
    _, fisher = _dense(model, x, y, F.cross_entropy)
    optimizer = NaturalGradient(model, loss=F.cross_entropy, burn_in=3000)
    optimizer.step(x, y)
    for key in "vcl":
        own = [i for i, name in enumerate(names) if name == f"1.{key}"]
        found = optimizer._kfac.other[getattr(model[1], key)].squares.current
        torch.testing.assert_close(found, fisher.diagonal()[own], rtol=0.1, atol=1e-4)
