"""Saving, loading and regrowing models; damaged folders."""

import copy
import hashlib
import json

import pytest
import safetensors.torch
import torch
from torch import nn

import senn
from senn.errors import SennError, UnsupportedError
from senn.nn import MLP, Rational, Residual
from senn.persistence import load, load_extra, save

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
            nn.Sequential(Residual(nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 3))), nn.Linear(3, 4)),
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
            nn.BatchNorm1d(3, affine=False), nn.LayerNorm(3, elementwise_affine=False), nn.Tanh(), nn.ELU(0.5)
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
    assert [type(module) for module in back.modules()] == [type(module) for module in model.modules()]
    state, returned = model.state_dict(), back.state_dict()
    assert list(state) == list(returned)
    assert all(torch.equal(state[key], returned[key]) and state[key].dtype == returned[key].dtype for key in state)
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
    grown.fc2 = nn.Sequential(Residual(nn.Sequential(nn.Linear(7, 3), nn.ReLU(), nn.Linear(3, 7))), grown.fc2)
    grown.fc1 = nn.Sequential(nn.Linear(3, 3), Rational(3), nn.Sequential(nn.Linear(3, 3), nn.Tanh(), grown.fc1))
    save(tmp_path, grown)
    small = Net(2)
    inner = small.fc1
    assert load(tmp_path, into=small) is small
    assert small.training
    assert torch.equal(small.eval()(X), grown(X))
    assert small.fc1[2][2] is inner
    assert (inner.out_features, small.norm.num_features, small.act.num_parameters, small.width) == (7, 7, 7, 7)
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
    [(other_class, "act is a torch.nn.ReLU"), (other_part, "'more'"), (other_tensor, "fc1 .* tensor 'bias'")],
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


def rewrite(folder, change, seal=True):
    """Alter the description; with `seal`, as one who knows about the checksum."""
    path = folder / "model.json"
    document = json.loads(path.read_text())
    change(document)
    if seal:
        document.pop("checksum")
        document["checksum"] = hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps(document))


def reweigh(folder, change):
    """Alter the numbers, and the description's checksum of them."""
    path = folder / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    change(tensors)
    path.write_bytes(data := safetensors.torch.save(tensors))
    rewrite(folder, lambda document: document.update(weights_sha256=hashlib.sha256(data).hexdigest()))


DAMAGES = {
    "no description": (lambda f: (f / "model.json").unlink(), "holds no saved model"),
    "no numbers": (lambda f: (f / "model.safetensors").unlink(), "holds no saved model"),
    "description cut": (lambda f: (f / "model.json").write_text((f / "model.json").read_text()[:99]), "isn't JSON"),
    "numbers cut": (
        lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-1]),
        "isn't the file that was saved",
    ),
    "other JSON": (lambda f: (f / "model.json").write_text("[1]"), "doesn't describe a model"),
    "future": (lambda f: rewrite(f, lambda d: d.update(version=99)), "format version 99; this senn reads 1 and 2"),
    "altered": (lambda f: rewrite(f, lambda d: d["extra"].update(a=2), seal=False), "doesn't match its checksum"),
    "key gone": (lambda f: rewrite(f, lambda d: d.pop("tied")), "doesn't match its checksum"),
    "other class": (lambda f: rewrite(f, lambda d: d["model"].update({"class": "os.system"})), "os.system"),
    "other argument": (
        lambda f: rewrite(f, lambda d: d["model"]["children"]["0"]["arguments"].update(in_features="3")),
        "describes 0 wrongly",
    ),
    "other size": (
        lambda f: rewrite(f, lambda d: d["model"]["children"]["0"]["arguments"].update(in_features=10**12)),
        "0 can't be built .* another 'weight'",
    ),
    "tensor gone": (lambda f: reweigh(f, lambda t: t.pop("2.bias")), "lacks '2.bias'"),
    "tensor resized": (lambda f: reweigh(f, lambda t: t.update({"2.bias": torch.ones(9)})), "'2.bias' of shape"),
    "NaN": (lambda f: reweigh(f, lambda t: t["2.bias"].fill_(float("nan"))), "'2.bias' .* holds NaN"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_one_clear_sentence(tmp_path, damage):
    save(tmp_path, nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1)), {"a": 1})
    change, message = DAMAGES[damage]
    change(tmp_path)
    with pytest.raises(SennError, match=message) as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)
