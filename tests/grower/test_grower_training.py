"""`Grower` in training loops of all kinds: every optimizer, scheduler and loss, a model with its own forward."""

import contextlib
import gc
import inspect
import weakref

import pytest
import torch
from exhaustive import some
from growth_cases import FEW, Take
from torch import nn
from torch.nn import functional as F
from torch.optim import lr_scheduler as schedules

import senn
from senn.errors import SennError
from senn.surgery.tensor_data import Data

X = torch.randn(160, 4, generator=torch.Generator().manual_seed(0))
CLASSES = (X[:, 0] * X[:, 1] > 0).long() + (X[:, 2] > 0).long()
NUMBERS = torch.stack([X[:, 0] * X[:, 1], X[:, 2].abs(), X[:, 3]], 1)
WEIGHT = torch.tensor([1.0, 2.0, 3.0])


def net(bias=True):
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 3, bias=bias), nn.ReLU(), nn.Linear(3, 3, bias=bias))


def grown_in_training(model, optimizer, loss=F.cross_entropy, targets=CLASSES, inputs=X, **options):
    """Train, grow twice without a jump of the loss and train on; the events."""
    options = {"moves": ("width",), "policy": Take("widen", 2), **options}
    grower = senn.Grower(model, optimizer, loss, candidate_config=FEW, **options)

    def closure():
        optimizer.zero_grad()
        value = loss(model(inputs), targets)
        value.backward()
        return value

    def value():
        model.eval()
        with torch.no_grad():
            out = loss(model(inputs), targets).item()
        model.train()
        return out

    for step in range(8):
        optimizer.step(closure)
        if step in (2, 5):
            before = value()
            grower.grow([(inputs, targets)])
            tolerance = 1e-2 if inputs.dtype == torch.bfloat16 else 1e-5
            assert value() == pytest.approx(before, rel=tolerance, abs=tolerance)
    assert grower.events
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert held == {id(parameter) for parameter in model.parameters()}
    for parameter, state in optimizer.state.items():
        assert id(parameter) in held
        assert all(
            v.shape in ((), parameter.shape) or v.dim()
            for v in state.values()
            if isinstance(v, torch.Tensor)
        )
    return grower.events


def optimizers():
    """Every class of torch.optim but SparseAdam, which takes sparse gradients only; a third of their variants."""
    plain, others = [], []
    for name, cls in vars(torch.optim).items():
        if (
            isinstance(cls, type)
            and issubclass(cls, torch.optim.Optimizer)
            and name not in ("Optimizer", "SparseAdam")
        ):
            known = inspect.signature(cls).parameters
            for option in (
                {},
                {"foreach": True},
                {"fused": True},
                {"amsgrad": True},
                {"momentum": 0.9},
            ):
                if not set(option) - set(known):
                    one = pytest.param(cls, option, id="-".join([name, *option]))
                    (others if option else plain).append(one)
    return [*plain, *some(others, 3)]


@pytest.mark.parametrize(("cls", "options"), optimizers())
def test_every_optimizer(cls, options):
    model = net(bias=cls is not torch.optim.Muon)  # which takes matrices only
    if cls is torch.optim.LBFGS:
        options = {"line_search_fn": "strong_wolfe"}
    grown_in_training(model, cls(model.parameters(), lr=0.02, **options))


SCHEDULES = {
    "one cycle": lambda o: schedules.OneCycleLR(o, max_lr=0.1, total_steps=9),
    "cosine": lambda o: schedules.CosineAnnealingLR(o, 9),
    "plateau": lambda o: schedules.ReduceLROnPlateau(o, patience=1),
    "lambda": lambda o: schedules.LambdaLR(o, lambda epoch: 0.9**epoch),
    "sequential": lambda o: schedules.SequentialLR(
        o, [schedules.ConstantLR(o), schedules.ExponentialLR(o, 0.9)], [4]
    ),
    "chained": lambda o: schedules.ChainedScheduler(
        [schedules.ConstantLR(o), schedules.StepLR(o, 2)]
    ),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedulers_go_on(name):
    def rates(grow):
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        schedule = SCHEDULES[name](optimizer)
        grower = senn.Grower(
            model, optimizer, policy=Take("widen", 2), candidate_config=FEW, moves=("width",)
        )
        out = []
        for step in range(8):
            optimizer.zero_grad()
            F.cross_entropy(model(X), CLASSES).backward()
            optimizer.step()
            schedule.step(*((1.0,) if name == "plateau" else ()))
            out.append((optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["momentum"]))
            if grow and step == 3:
                assert grower.grow([(X, CLASSES)])
        return out

    assert rates(grow=True) == rates(grow=False)


LOSSES = {
    "cross-entropy": (F.cross_entropy, CLASSES),
    "weights and smoothing": (nn.CrossEntropyLoss(weight=WEIGHT, label_smoothing=0.1), CLASSES),
    "binary": (nn.BCEWithLogitsLoss(pos_weight=WEIGHT), (NUMBERS > 0).float()),
    "squared error": (F.mse_loss, NUMBERS),
    "huber": (nn.HuberLoss(), NUMBERS),
    "poisson": (nn.PoissonNLLLoss(), NUMBERS.abs().round()),
    "own": (lambda outputs, targets: ((outputs - targets).abs() ** 3).mean(), NUMBERS),
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses(name):
    model = net()
    grown_in_training(model, torch.optim.Adam(model.parameters(), lr=0.02), *LOSSES[name])


class Own(nn.Module):
    """A skip connection, a norm, dropout and a gate in a forward of its own."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.gate = nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(4, 3)
        self.drop, self.last, self.skip = nn.Dropout(0.2), nn.Linear(3, 3), nn.Linear(4, 3)

    def forward(self, x):
        hidden = torch.tanh(self.norm(self.first(x))) * torch.sigmoid(self.gate(x))
        return self.last(self.drop(hidden)) + self.skip(x)


def test_a_forward_of_its_own():
    torch.manual_seed(0)
    model = Own()
    events = grown_in_training(model, torch.optim.Adam(model.parameters(), lr=0.02))
    assert (
        model.first.out_features
        == model.gate.out_features
        == model.norm.num_features
        == events[-1].width_after
        > 3
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions(dtype):
    model = net().to(dtype)
    grown_in_training(model, torch.optim.Adam(model.parameters(), lr=0.02), inputs=X.to(dtype))
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}


OPEN = {
    "nothing": contextlib.nullcontext,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "inference mode": torch.inference_mode,
    "no gradients": torch.no_grad,
}


@pytest.mark.parametrize("name", OPEN)
def test_what_a_caller_has_open_changes_nothing(name):
    figures, states = [], []
    for context in (contextlib.nullcontext, OPEN[name]):
        model = net()
        grower = senn.Grower(
            model,
            torch.optim.Adam(model.parameters()),
            policy=senn.PricePolicy(layer_cost=1.0),
            samples=10_000,
            seed=2,
        )
        with context():
            inputs = X.clone()
            grower.observe(inputs, CLASSES)
            offered = grower.score_candidates([(inputs, CLASSES)])
            assert grower.grow()
            assert torch.is_autocast_enabled("cpu") == (context is OPEN["autocast"])
            assert torch.is_inference_mode_enabled() == (context is OPEN["inference mode"])
        figures.append([offered, grower.last_round])
        states.append(model.state_dict())
        F.cross_entropy(
            model(X), CLASSES
        ).backward()  # what has come is no tensor of inference mode
    assert figures[0] == figures[1]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_former_data_are_let_go():
    """The last round can be undone, so it holds what it exchanged; rounds before it must not."""
    model = net()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    grower = senn.Grower(
        model, optimizer, policy=Take("widen"), candidate_config=FEW, moves=("width",)
    )
    others = {id(found) for found in gc.get_objects() if type(found) is Data}
    assert grower.grow([(X, CLASSES)])
    first = [
        weakref.ref(found)
        for found in gc.get_objects()
        if type(found) is Data and id(found) not in others
    ]
    second = model[0].weight.data
    assert grower.grow([(X, CLASSES)])
    gc.collect()
    assert first
    assert not any(held() for held in first)
    grower.events[-1].undo()
    assert model[0].weight.is_set_to(second)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 0}, "samples must be a whole number of at least 1 or None, not 0"),
        ({"policy": "paper"}, "policy must be a policy such as PricePolicy"),
        ({"model": F.relu}, "the model must be a torch.nn.Module, not a function"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(SennError, match=message):
        senn.Grower(**{"model": net(), **options})


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_compiled_by_torchscript():
    with pytest.raises(SennError, match="compiled by TorchScript"):
        senn.Grower(torch.jit.trace(net(), X))


@pytest.mark.parametrize("batch", [X, (X,), (X, CLASSES, None, None), (None, CLASSES), (X, None)])
def test_what_is_no_batch_is_refused(batch):
    with pytest.raises(SennError, match="batch"):
        senn.Grower(net()).grow([batch])
