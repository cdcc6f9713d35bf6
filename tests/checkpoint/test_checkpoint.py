"""Saving, loading and regrowing models."""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

import senn
from senn.checkpoint import load, load_extra, save
from senn.errors import SennError, UnsupportedError
from senn.nn import MLP, Rational, Residual

X = torch.linspace(-2, 2, 12).reshape(4, 3)


class Net(nn.Module):
    """A model of one's own: sizes in attributes, a skip connection, normalisation."""

    def __init__(self, width: int = 2) -> None:
        super().__init__()
        self.width = width
        self.fc1 = nn.Linear(3, width)
        self.norm = nn.BatchNorm1d(width)
        self.act = Rational(width)
        self.fc2 = nn.Linear(width, 2)

    def forward(self, x):
        return self.fc2(self.act(self.norm(self.fc1(x))).view(-1, self.width))


def warmed(model):
    """With statistics that aren't those of a fresh model, in eval mode."""
    model.train()
    model(torch.randn(16, 3))
    return model.eval()


def plain_models():
    return {
        "linear": nn.Linear(3, 2, bias=False),
        "mlp": MLP(3, (5, 4), 2, activation="rational", norm="batch", dropout=0.1),
        "mlp with a shortcut": MLP(3, (5,), 2, shortcut=True),
        "inserted": nn.Sequential(
            nn.Sequential(
                Residual(nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 3))),
                nn.Linear(3, 4),
            ),
            nn.LayerNorm(4, eps=1e-3),
            nn.PReLU(4),
            nn.LeakyReLU(0.3),
            nn.GELU("tanh"),
            nn.Softplus(beta=2.0),
            nn.Flatten(),
            nn.Identity(),
            nn.Linear(4, 2),
        ),
        "plain norms": nn.Sequential(
            nn.BatchNorm1d(3, affine=False),
            nn.LayerNorm(3, elementwise_affine=False),
            nn.Tanh(),
            nn.ELU(0.5),
        ),
    }


@pytest.mark.parametrize("name", plain_models())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_plain_models_come_back_bit_equal(tmp_path, name, dtype):
    model = warmed(plain_models()[name]).to(dtype)
    save(tmp_path, model)
    before = torch.get_rng_state()
    back = load(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)
    assert not any(module.training for module in back.modules())
    assert [type(module) for module in back.modules()] == [
        type(module) for module in model.modules()
    ]
    state, returned = model.state_dict(), back.state_dict()
    assert list(state) == list(returned)
    assert all(
        torch.equal(state[key], returned[key]) and state[key].dtype == returned[key].dtype
        for key in state
    )
    assert torch.equal(back(X.to(dtype)), model(X.to(dtype)))


def test_the_package_offers_it(tmp_path):
    senn.save(tmp_path, nn.Linear(3, 1))
    assert senn.load(tmp_path).weight.shape == (1, 3)


def test_frozen_tied_and_extra_come_back(tmp_path):
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3))
    model[2].weight = model[0].weight
    model[2].bias.requires_grad_(False)
    save(tmp_path, model, {"columns": ["größe", 1, None]})
    back = load(tmp_path)
    assert back[2].weight is back[0].weight
    assert [parameter.requires_grad for parameter in back.parameters()] == [True, True, False]
    assert load_extra(tmp_path) == {"columns": ["größe", 1, None]}
    back(X).sum().backward()
    assert back[0].weight.grad is not None


def test_own_classes_are_regrown(tmp_path):
    grown = warmed(Net(7))
    grown.fc2 = nn.Sequential(
        Residual(nn.Sequential(nn.Linear(7, 3), nn.ReLU(), nn.Linear(3, 7))), grown.fc2
    )
    grown.fc1 = nn.Sequential(
        nn.Linear(3, 3), Rational(3), nn.Sequential(nn.Linear(3, 3), nn.Tanh(), grown.fc1)
    )
    save(tmp_path, grown)
    small = Net(2)
    inner = small.fc1
    assert load(tmp_path, into=small) is small
    assert small.training
    assert torch.equal(small.eval()(X), grown(X))
    assert small.fc1[2][2] is inner
    assert (inner.out_features, small.norm.num_features, small.act.num_parameters, small.width) == (
        7,
        7,
        7,
        7,
    )
    assert [module.training for module in small.modules()] == [False] * len(list(small.modules()))
    optimizer = torch.optim.SGD(small.parameters(), lr=0.1)
    small(X).sum().backward()
    optimizer.step()
    assert not torch.equal(small(X), grown(X))


def test_regrown_model_keeps_ties_and_frozen_parameters(tmp_path):
    def build(width):
        model = nn.ModuleDict({"a": nn.Linear(width, width), "b": nn.Linear(width, width)})
        model["b"].weight = model["a"].weight
        model["a"].bias.requires_grad_(False)
        return model

    save(tmp_path, build(5))
    back = load(tmp_path, into=build(2))
    assert back["a"].weight is back["b"].weight
    assert back["a"].weight.shape == (5, 5)
    assert not back["a"].bias.requires_grad
    assert back["b"].bias.requires_grad


def other_class():
    model = Net(2)
    model.act = nn.ReLU()
    return model


def other_part():
    model = Net(2)
    model.more = nn.Linear(2, 2)
    return model


def other_tensor():
    model = Net(2)
    model.fc1 = nn.Linear(3, 2, bias=False)
    return model


@pytest.mark.parametrize(
    ("into", "message"),
    [
        (other_class, "act is a torch.nn.ReLU"),
        (other_part, "'more'"),
        (other_tensor, "fc1 .* tensor 'bias'"),
    ],
)
def test_a_model_that_does_not_fit_is_refused_and_unchanged(tmp_path, into, message):
    save(tmp_path, Net(6))
    model = into()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(SennError, match=message):
        load(tmp_path, into=model)
    after = model.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert model.width == 2


def test_an_insertion_at_the_root_is_refused(tmp_path):
    save(tmp_path, nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 1)))
    with pytest.raises(SennError, match="without into"):
        load(tmp_path, into=nn.Linear(3, 1))


def test_own_classes_need_into(tmp_path):
    save(tmp_path, nn.Sequential(Net(3)))
    with pytest.raises(UnsupportedError, match=r"0 is a Net, .* pass it as into"):
        load(tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_models_that_are_not_finite_are_not_saved(tmp_path, value):
    model = nn.Linear(2, 2)
    with torch.no_grad():
        model.bias[1] = value
    with pytest.raises(SennError, match="'bias' holds NaN or infinity"):
        save(tmp_path, model)
    assert list(tmp_path.iterdir()) == []


def test_extra_must_be_json(tmp_path):
    for extra in ({"a": object()}, {"a": float("nan")}):
        with pytest.raises(SennError, match="extra can't be written as JSON"):
            save(tmp_path, nn.Linear(1, 1), extra)
    assert list(tmp_path.iterdir()) == []
    extra = {"a": "\ud800"}  # as in names of files that aren't text
    save(tmp_path, nn.Linear(1, 1), extra)
    assert load_extra(tmp_path) == extra


def test_state_that_is_not_tensors_is_refused(tmp_path):
    class Odd(nn.Linear):
        def get_extra_state(self):
            return {"a": 1}

    with pytest.raises(UnsupportedError, match="_extra_state"):
        save(tmp_path, Odd(1, 1))


def test_unwritable_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SennError, match="can't be written"):
        save(tmp_path / "file", nn.Linear(1, 1))


def test_saving_again_replaces_and_leaves_nothing_else(tmp_path):
    for width in (2, 3):
        save(tmp_path, nn.Linear(width, 1))
    assert load(tmp_path).in_features == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.json", "model.safetensors"]


def test_extra_comes_back_as_json_has_it(tmp_path):
    save(tmp_path, nn.Linear(1, 1), {9: (1, 2), 10: "é"})
    assert load_extra(tmp_path) == {"9": [1, 2], "10": "é"}


class Old(nn.Module):
    """As in the folder that the former version wrote: sizes, a tie, something inserted, a buffer that isn't saved."""

    def __init__(self, width=2):
        super().__init__()
        self.width = width
        self.conv = nn.Conv1d(1, width, 3)
        self.norm = nn.BatchNorm1d(width)
        self.act = Rational(width)
        self.fc = nn.Linear(width, 2)
        self.register_buffer("scale", torch.ones(1), persistent=False)
        self.tied = nn.Linear(width, 2)
        self.tied.weight = self.fc.weight

    def forward(self, x):
        x = self.act(self.norm(self.conv(x[:, None])).view(len(x), self.width))
        return self.fc(x) + self.tied(x) * self.scale


SAVED = Path(__file__).parents[1] / "saved"


def test_the_former_version_is_read():
    folder = SAVED / "version_1"
    model = load(folder, into=Old().eval())
    assert model.width == 4
    assert model.fc[1].weight is model.tied.weight
    torch.testing.assert_close(model(X), torch.tensor(load_extra(folder)["outputs"]))
    with pytest.raises(UnsupportedError, match="the model is a Old"):
        load(folder)
    folder = SAVED / "version_1_plain"
    expected = torch.tensor(load_extra(folder)["outputs"])
    torch.testing.assert_close(load(folder)(X), expected)
    small = MLP(3, (2,), 2, activation="rational", norm="batch", shortcut=True).eval()
    torch.testing.assert_close(load(folder, into=small)(X), expected)


class Keeps(nn.Module):
    """Buffers that aren't in the state: one of the model's width, one of its owner's, one made in the first forward."""

    def __init__(self, width=2, owned=1.0):
        super().__init__()
        self.fc = nn.Linear(3, width)
        self.register_buffer("scale", torch.linspace(1, 2, width), persistent=False)
        self.register_buffer("owned", torch.tensor([owned]), persistent=False)
        self.register_buffer("seen", None, persistent=False)

    def forward(self, x):
        self.seen = x.mean(0)
        return self.fc(x) * self.scale + self.owned


def test_buffers_outside_the_state_are_kept_if_they_grew(tmp_path):
    model = Keeps(5)
    outputs = model(X)
    save(tmp_path, model)
    for device in ("cpu", "meta"):
        with torch.device(device):
            small = Keeps(2, owned=3.0)
        back = load(tmp_path, into=small)
        assert torch.equal(back.scale, model.scale)
        assert (back.owned.item(), back.seen) == (3.0 if device == "cpu" else 1.0, None)
        assert back._non_persistent_buffers_set == {"scale", "owned", "seen"}
        torch.testing.assert_close(back(X) - back.owned, outputs - 1.0)


@pytest.mark.filterwarnings("ignore:Complex modules")
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16, torch.complex64])
def test_a_fresh_model_takes_the_saved_type_of_numbers(tmp_path, dtype):
    model = nn.Sequential(nn.Linear(3, 5), nn.Flatten(), nn.Linear(5, 1)).to(dtype)
    if not dtype.is_complex:
        model.append(nn.BatchNorm1d(1)).to(dtype).eval()
    save(tmp_path, model)
    into = copy.deepcopy(model)
    into[0], into[2] = nn.Linear(3, 2).to(dtype), nn.Linear(2, 1).to(dtype)
    into = into if dtype.is_complex else into.float()
    for back in (load(tmp_path, into=into), load(tmp_path)):
        assert [t.dtype for t in back.state_dict().values()] == [
            t.dtype for t in model.state_dict().values()
        ]
        assert torch.equal(back(X.to(dtype)), model(X.to(dtype)))
        assert all(parameter.requires_grad for parameter in back.parameters())


@pytest.mark.filterwarnings("ignore:Complex modules")
def test_the_kind_of_numbers_must_be_the_same(tmp_path):
    save(tmp_path, nn.Linear(3, 2).to(torch.complex64))
    with pytest.raises(SennError, match=r"'weight' as torch.complex64, but it is torch.float32"):
        load(tmp_path, into=nn.Linear(3, 1))


def test_buffers_outside_the_state_need_no_numbers(tmp_path):
    model = Keeps()
    model.seen = torch.full((3,), float("nan"))
    save(tmp_path, model)
    into = Keeps()
    into.seen = torch.ones(1)
    assert load(tmp_path, into=into).seen.tolist() == [1]


def odd_models():
    lazy, sparse = nn.Sequential(nn.LazyLinear(2)), nn.Linear(2, 2)
    sparse.register_buffer("mask", torch.eye(2).to_sparse())
    return {
        "UninitializedParameter": lazy,
        "meta device": nn.Linear(2, 2, device="meta"),
        "'mask' is no plain tensor": sparse,
    }


@pytest.mark.parametrize("message", odd_models())
def test_what_has_no_plain_numbers_is_refused(tmp_path, message):
    with pytest.raises(UnsupportedError, match=message):
        save(tmp_path, odd_models()[message])
    assert list(tmp_path.iterdir()) == []


def test_attributes_of_other_kinds_are_the_owners(tmp_path):
    def build(width, rate, widths, note):
        model = nn.Sequential(nn.Linear(2, width))
        model.rate, model.widths, model.note, model.eps = rate, widths, note, 1e-3 / width
        return model

    save(tmp_path, build(4, 1, [4, 5], 3))
    back = load(tmp_path, into=build(2, 0.5, [2, 3], "a"))
    assert (back.rate, back.widths, back.note, back.eps) == (0.5, [4, 5], "a", 1e-3 / 4)
    other = build(2, None, (2, 3), None)
    del other.note
    load(tmp_path, into=other)
    assert (other.rate, other.widths, hasattr(other, "note")) == (None, (4, 5), False)


def test_what_hangs_on_a_parameter_stays(tmp_path):
    save(tmp_path, nn.Linear(3, 4))
    into = nn.Linear(3, 2)
    into.weight.no_decay = True
    assert load(tmp_path, into=into).weight.no_decay


def test_what_is_no_module_is_refused(tmp_path):
    with pytest.raises(SennError, match=r"save needs an nn.Module, not a dict"):
        save(tmp_path, {})
    save(tmp_path, nn.Linear(1, 1))
    with pytest.raises(SennError, match=r"load needs an nn.Module, not a type"):
        load(tmp_path, into=nn.Linear)


def test_parametrised_layers_come_back(tmp_path):
    """PyTorch gives them a class of their own, with the tensors they are made from inside."""

    def build(width):
        model = nn.Sequential(nn.Linear(3, width), nn.Linear(width, 2)).eval()
        nn.utils.parametrizations.weight_norm(model[0])
        return model

    model = build(5)
    save(tmp_path, model)
    assert torch.equal(load(tmp_path, into=build(2))(X), model(X))
