"""Looking must not touch: whatever a forward pass writes is as it was afterwards."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import senn
from senn.preserve import preserve_model_state
from senn.surgery import Widen, transaction

X = torch.randn(24, 6, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] * X[:, 1] > 0).long()


class Never(senn.Policy):
    """Looks at every candidate and accepts none."""

    def choose(self, candidates, accepted):
        return None


class Net(nn.Module):
    """A network whose forward writes nothing; what others write is in `note`."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(6, 5), nn.Linear(5, 2)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("center", torch.zeros(6), persistent=False)

    def note(self, x):
        return x

    def forward(self, x):
        return self.last(torch.relu(self.first(self.note(x))))


class WrittenInPlace(Net):
    def note(self, x):
        self.calls += 1
        self.center.mul_(0.9).add_(0.1 * x.detach().mean(0))
        return x


class WrittenThroughData(Net):
    """Autograd counts no version of these writes."""

    def note(self, x):
        self.calls.data.add_(1)
        return x


class ReadByTheBackwardPass(Net):
    """The product keeps the buffer for its gradient, which is computed after the write."""

    def note(self, x):
        self.center += 1
        return x * self.center


class Replaced(Net):
    def note(self, x):
        self.calls = self.calls + 1
        self.center = x.detach().mean(0)
        return x


class RegisteredInForward(Net):
    def note(self, x):
        self.register_buffer("seen", x.detach().clone(), persistent=False)
        self.register_buffer("kept", x.detach().mean(0))
        return x


class Removed(Net):
    def note(self, x):
        if hasattr(self, "calls"):
            del self.calls
        return x


class TableThatGrows(Net):
    """Like a rotary table: made anew when an attribute says that it is too short."""

    def __init__(self):
        super().__init__()
        self.longest = 4
        self.register_buffer("table", torch.ones(4), persistent=False)

    def note(self, x):
        if len(x) > self.longest:
            self.longest = len(x)
            self.register_buffer("table", torch.ones(len(x)), persistent=False)
        return x * self.table[: len(x), None]


class HooksItself(Net):
    def note(self, x):
        self.first.register_forward_hook(lambda *_: None)
        return x


class NotANumber(Net):
    def note(self, x):
        self.center.fill_(float("nan"))
        return x


NETS = [
    WrittenInPlace, WrittenThroughData, ReadByTheBackwardPass, Replaced, RegisteredInForward, Removed, TableThatGrows,
    HooksItself, NotANumber,
]  # fmt: skip


def state_of(model):
    """All that a forward pass may change: identities and values."""
    return [
        (
            name,
            module.training,
            {key: (id(buffer), buffer.tolist()) for key, buffer in module._buffers.items()},
            sorted(module._non_persistent_buffers_set),
            [*module._forward_hooks.values(), *module._forward_pre_hooks.values()],
            {key: value for key, value in vars(module).items() if isinstance(value, int)},
        )
        for name, module in model.named_modules()
    ]


@pytest.mark.parametrize("kind", NETS)
@pytest.mark.parametrize("metric", ["fisher", "euclidean"])
def test_looking_leaves_what_the_forward_pass_writes(kind, metric):
    model = kind()
    model.last.eval()
    before, random = state_of(model), torch.get_rng_state()
    senn.analyze(model, X[:8])
    assert state_of(model) == before
    grower = senn.Grower(model, loss=F.cross_entropy, policy=Never(), metric=metric)
    for _ in range(2):
        grower.observe(X, Y)
        assert state_of(model) == before
    grower.score_candidates([(X, Y)])
    assert grower.grow([(X, Y)]) == []
    assert state_of(model) == before
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize("kind", NETS)
def test_a_change_leaves_what_its_verification_writes(kind):
    model = kind()
    graph = senn.analyze(model, X[:8])
    before = [(name, buffer.clone()) for name, buffer in model.named_buffers()]
    longest = getattr(model, "longest", None)
    values = {"first.weight": torch.zeros(1, 6), "first.bias": torch.zeros(1)}
    transaction(
        model,
        [Widen("first", 1, values)],
        graph,
        probe=X,
        loss=lambda: float(model(X).sum().detach()),
    )
    after = dict(model.named_buffers())
    assert [*after] == [name for name, _ in before]
    assert all(torch.equal(after[name], value) for name, value in before)
    assert getattr(model, "longest", None) == longest


def test_the_ascent_leaves_the_model_and_climbs_the_same_hill_at_every_step():
    moved = []
    for kind in (Net, WrittenInPlace):
        model = kind()
        before = state_of(model)
        candidate_config = senn.CandidateConfig(ascent_steps=3)
        grower = senn.Grower(
            model, loss=F.cross_entropy, moves=("width",), candidate_config=candidate_config
        )
        moved.append([one.held_out_gain for one in grower.score_candidates([(X, Y)])])
        assert state_of(model) == before
    assert moved[0] == moved[1]


class Fails(WrittenInPlace):
    def forward(self, x):
        super().forward(x)
        raise ValueError("no")


def test_a_forward_pass_that_raises_leaves_nothing_behind():
    model = Fails()
    before = state_of(model)
    with pytest.raises(senn.SennError, match="no"):
        senn.analyze(model, X[:8])
    with pytest.raises(ValueError, match="no"), preserve_model_state(model):
        model(X)
    assert state_of(model) == before


def test_the_number_of_batches_that_a_norm_has_seen_stays_under_a_forward_that_trains():
    class Trains(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 2))

        def forward(self, x):
            self.net[1].train()  # keeps its statistics running, in eval mode too
            return self.net(x)

    model = Trains()
    before = copy.deepcopy(model.state_dict())
    senn.Grower(model, loss=F.cross_entropy, policy=Never()).grow([(X, Y)])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.net[1].training


def test_fused_layers_and_their_settings_come_back():
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    with preserve_model_state(model, fused=False):
        assert not torch.backends.mha.get_fastpath_enabled()
        assert not model.training
    assert torch.backends.mha.get_fastpath_enabled()
    assert model.training
    with preserve_model_state(model):
        assert torch.backends.mha.get_fastpath_enabled()
