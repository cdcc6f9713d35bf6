"""NaturalGradient in training: minibatches, growth, saving, and what it refuses."""

import copy
import functools
import math

import pytest
import torch
import torch.nn.functional as F
from natural_gradient_cases import EXACT, D, dense, flat, one_step, problem, solve
from torch import nn

from senn.errors import SennError, UnsupportedError
from senn.nn import MLP, Residual
from senn.optim import NaturalGradient

# ---- minibatch steps ------------------------------------------------------------------------------------------------


def test_norm_constraint_bounds_the_step_in_nats():
    model, x, y = problem(MLP(4, (3,), 3, "tanh"))
    gradient, fisher = dense(model, x, y, F.cross_entropy)
    options = {"method": "cg", "damping": 0.01, "momentum": 0.0, "lr": 1.0, "tolerance": 1e-12}
    step, optimizer = one_step(model, x, y, F.cross_entropy, norm_constraint=1e-4, **options)
    free = solve(fisher, gradient, 0.01)
    assert optimizer.eta > 1e-4
    torch.testing.assert_close(step, -free * math.sqrt(1e-4 / optimizer.eta), rtol=1e-6, atol=1e-9)
    assert step @ (fisher + 0.01 * torch.eye(len(step), dtype=D)) @ step == pytest.approx(
        1e-4, rel=1e-6
    )


def test_momentum_is_on_steps():
    model, x, y = problem(MLP(4, (3,), 3, "tanh"))
    optimizer = NaturalGradient(model, loss=F.cross_entropy, lr=0.1, momentum=0.5)
    start = flat(model)
    optimizer.step(x, y)
    first = flat(model) - start
    optimizer.param_groups[0]["lr"] = 0.0
    optimizer.step(x, y)
    torch.testing.assert_close(flat(model) - start, 1.5 * first)


def test_groups_schedulers_and_frozen_parameters():
    model, x, y = problem(MLP(4, (3, 3), 3, "tanh"))
    first, middle, last = (layer for layer in model.body if isinstance(layer, nn.Linear))
    middle.weight.requires_grad_(False)
    groups = [
        {"params": first.parameters(), "lr": 0.0},
        {"params": middle.parameters()},
        {"params": last.parameters()},
    ]
    optimizer = NaturalGradient(
        model, groups, loss=F.cross_entropy, lr=0.2, norm_constraint=None, momentum=0.0
    )
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
    model, x, y = problem(CASES[name](), n=60)
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
    model, x, y = problem(MLP(4, (5,), 3, "relu"))
    twin = copy.deepcopy(model)
    twin.body[1].inplace = True
    for net in (model, twin):
        optimizer = NaturalGradient(net, loss=F.cross_entropy)
        for _ in range(3):
            optimizer.step(x, y)
    torch.testing.assert_close(flat(model), flat(twin), rtol=0, atol=0)


def test_one_pass_for_everything_under_dropout_and_batch_norm():
    """The loss after a step is measured with the dropout mask and the buffers of the loss before it."""
    torch.manual_seed(0)
    model, x, y = problem(MLP(4, (8,), 3, "tanh", norm="batch", dropout=0.5))
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
    pads = [
        (linears[0], "weight", (0, 0, 0, k)),
        (linears[0], "bias", (0, k)),
        (linears[1], "weight", (0, k)),
    ]
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
    model, x, y = problem(MLP(4, (3, 3), 3, "tanh"), n=80)
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
        assert set(optimizer._kfac.linear) == {
            layer.weight for layer in model.body if isinstance(layer, nn.Linear)
        }
        assert len(optimizer._kfac.linear[model.body[2].weight].inputs.current) == 8


@pytest.mark.parametrize("options", [{}, {"adapt": True}, {"method": "cg", "momentum": 0.5}])
@pytest.mark.parametrize("way", ["state_dict", "deepcopy"])
def test_training_goes_on_bit_by_bit(options, way, tmp_path):
    torch.manual_seed(0)
    model, x, y = problem(MLP(4, (3,), 3, "rational"))
    optimizer = NaturalGradient(
        model, loss=F.cross_entropy, inverse_every=3, factor_every=2, **options
    )
    for _ in range(4):
        optimizer.step(x, y)
    if way == "deepcopy":
        twin, again = copy.deepcopy((model, optimizer))
    else:
        torch.save((model.state_dict(), optimizer.state_dict()), tmp_path / "state.pt")
        weights, state = torch.load(tmp_path / "state.pt", weights_only=True)
        twin = MLP(4, (3,), 3, "rational").to(D)
        twin.load_state_dict(weights)
        again = NaturalGradient(
            twin, loss=F.cross_entropy, inverse_every=3, factor_every=2, **options
        )
        again.load_state_dict(state)
    for _ in range(5):
        assert optimizer.step(x, y) == again.step(x, y)
    assert torch.equal(flat(model), flat(twin))
    assert optimizer.damping == again.damping


def test_states_that_do_not_fit_are_refused():
    model, x, y = problem(MLP(4, (3,), 3))
    optimizer = NaturalGradient(model, loss=F.cross_entropy)
    optimizer.step(x, y)
    other = NaturalGradient(MLP(4, (5,), 3).to(D), loss=F.cross_entropy)
    with pytest.raises(SennError, match=r"body\.0\.weight"):
        other.load_state_dict(optimizer.state_dict())
    adam = torch.optim.Adam(model.parameters())
    with pytest.raises(SennError, match="wasn't saved by NaturalGradient"):
        optimizer.load_state_dict(adam.state_dict())


# ---- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("adapt", [False, True])
def test_a_loss_that_is_not_finite_changes_nothing(adapt):
    model, x, y = problem(MLP(4, (3,), 3, "tanh", norm="batch"))
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

    model, x, y = problem(Twice())
    with pytest.raises(UnsupportedError, match="shared is used more than once"):
        NaturalGradient(model, loss=F.cross_entropy).step(x, y)
    gradient, fisher = dense(model, x, y, F.cross_entropy)
    step, _ = one_step(model, x, y, F.cross_entropy, method="cg", tolerance=1e-12, **EXACT)
    torch.testing.assert_close(step, -solve(fisher, gradient, 0.1), rtol=1e-6, atol=1e-8)


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
    model, x, y = problem(nn.Linear(4, 3))
    optimizer = NaturalGradient(model, loss=F.cross_entropy)
    model.requires_grad_(False)
    with pytest.raises(SennError, match="no trainable parameter"):
        optimizer.step(x, y)
