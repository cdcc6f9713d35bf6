"""New outputs and new tokens: what was there stays, to the bit where it can."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import senn
from senn import SennError
from senn.surgery import add_outputs, resize_token_embeddings
from senn.surgery.grown_outputs import RARE

X = torch.randn(16, 3, generator=torch.Generator().manual_seed(0))
IDS = torch.randint(0, 20, (4, 6), generator=torch.Generator().manual_seed(0))


def net(outputs=3, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, outputs))


class Language(nn.Module):
    """A table, a layer, and a head that may be tied."""

    def __init__(self, tied):
        super().__init__()
        torch.manual_seed(0)
        self.table, self.layer = nn.Embedding(20, 4), nn.Linear(4, 4)
        self.head = nn.Linear(4, 20, bias=False)
        self.vocab_size = 20
        if tied:
            self.head.weight = self.table.weight

    def forward(self, ids):
        out = self.head(self.layer(self.table(ids)).tanh())
        return out.view(*ids.shape, self.vocab_size)


OPTIMIZERS = {
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=0.01),
}


def train(model, optimizer, x, steps=2, new=False):
    for _ in range(steps):
        optimizer.zero_grad()
        out = model(x).flatten(0, -2)
        last = out.shape[-1] - 1 if new else 1
        F.cross_entropy(out, torch.full((len(out),), last)).backward()
        optimizer.step()


def entries(optimizer):
    return {
        (parameter, key): value.clone()
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
        if isinstance(value, torch.Tensor)
    }


def assert_kept(before, optimizer):
    """Old entries of the state are bit-equal, wherever a dimension has become longer."""
    for (parameter, key), old in before.items():
        new = optimizer.state[parameter][key]
        assert torch.equal(new[tuple(slice(0, size) for size in old.shape)], old), key
        assert new.isfinite().all()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_new_classes_keep_old_outputs_and_moments_and_are_learned(name):
    model = net()
    optimizer = OPTIMIZERS[name](model.parameters())
    train(model, optimizer, X)
    before, held, parameters = model(X), entries(optimizer), [*model.parameters()]
    receipt = add_outputs(model, 2, X, optimizer=optimizer)
    after = model(X)
    assert after.shape == (16, 5)
    assert (after[:, :3] - before).abs().max() <= 1e-6
    assert receipt.output_change <= 1e-6
    assert model[2].out_features == 5
    assert [*model.parameters()] == parameters
    assert_kept(held, optimizer)
    train(model, optimizer, X, steps=5, new=True)
    assert (model(X)[:, 4] > after[:, 4]).all()


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("tied", [True, False])
def test_new_tokens_keep_old_outputs_and_moments(name, tied):
    model = Language(tied)
    optimizer = OPTIMIZERS[name](model.parameters())
    train(model, optimizer, IDS)
    before, held = model(IDS), entries(optimizer)
    resize_token_embeddings(model, 23, IDS, optimizer=optimizer, heads=["head"])
    assert model(IDS + 3).shape == (4, 6, 23)
    assert (model(IDS)[..., :20] - before).abs().max() <= 1e-6
    assert model.table.num_embeddings == model.head.out_features == model.vocab_size == 23
    assert (model.head.weight is model.table.weight) == tied
    assert_kept(held, optimizer)
    train(model, optimizer, IDS + 3, new=True)


def test_undo_gives_back_model_and_optimizer_to_the_bit():
    model = net()
    optimizer = torch.optim.Adam(model.parameters())
    train(model, optimizer, X)
    former, held = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
    add_outputs(model, 2, X, optimizer=optimizer).undo()
    assert all(torch.equal(former[name], one) for name, one in model.state_dict().items())
    assert model[2].out_features == 3
    assert str(held) == str(optimizer.state_dict())


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 6), st.integers(2, 9), st.floats(-50, 50))
def test_new_classes_are_rare_on_any_input(new, old, shift):
    """The mean of the outputs is at most their softmax's logarithm less that of their number: Jensen's inequality."""
    model = net(old)
    with torch.no_grad():
        model[2].bias += shift
        model[2].weight *= 10
    add_outputs(model, new, X)
    far = 100 * torch.randn(64, 3, generator=torch.Generator().manual_seed(new))
    share = model(far).double().softmax(1)[:, old:].sum(1)
    assert share.max() <= RARE * (1 + 1e-4)


def test_rows_of_zeros_have_a_rare_class_each_whatever_the_input():
    model = net()
    add_outputs(model, 2, X, start="zero")
    assert torch.allclose(model(100 * X)[:, 3:].sigmoid(), torch.tensor(RARE))


def test_a_head_without_a_bias_gives_each_new_class_less_than_an_old_one_has_on_average():
    model = nn.Linear(3, 4, bias=False)
    add_outputs(model, 1, X)
    assert (model(X).softmax(1)[:, 4] <= 1 / 5 + 1e-6).all()


def test_gradients_random_state_and_averages_follow():
    model = net()
    average = torch.optim.swa_utils.AveragedModel(model)
    model(X).sum().backward()
    gradient, state = model[2].weight.grad.clone(), torch.get_rng_state()
    add_outputs(model, 1, X, averaged=[average])
    assert torch.equal(model[2].weight.grad[:3], gradient)
    assert not model[2].weight.grad[3:].any()
    assert average(X).shape == (16, 4)
    assert torch.equal(state, torch.get_rng_state())


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.other = nn.Linear(3, 2), nn.Linear(3, 2)

    def forward(self, x):
        return self.one(x), self.other(x)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell, self.head = nn.GRUCell(3, 4), nn.Linear(4, 2)

    def forward(self, x):
        h, outs = x.new_zeros(len(x), 4), []
        for _ in range(3):
            h = self.cell(x, h)
            outs.append(self.head(h))
        return torch.stack(outs, 1)


def test_of_two_outputs_the_one_that_is_named_grows():
    model = TwoHeads()
    with pytest.raises(SennError, match=r"2 tensors, and the loss takes one: say which by output"):
        add_outputs(model, 1, X)
    add_outputs(model, 1, X, output=lambda result: result[1])
    assert (model.one.out_features, model.other.out_features) == (2, 3)


@pytest.mark.parametrize(
    ("model", "x", "shape"),
    [
        (Recurrent(), X, (16, 3, 3)),
        (senn.nn.MLP(3, (4,), 2, shortcut=True), X, (16, 3)),
        (nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Conv2d(3, 2, 1)), torch.randn(2, 1, 5, 5), (2, 3, 3, 3)),
        (nn.Sequential(nn.Linear(3, 2), nn.Sigmoid()), X, (16, 3)),
    ],
)  # fmt: skip
def test_every_map_that_makes_the_outputs_grows(model, x, shape):
    before = model(x)
    add_outputs(model, 1, x)
    after = model(x)
    assert after.shape == shape
    dim = next(d for d in range(after.dim()) if after.shape[d] != before.shape[d])
    assert torch.allclose(after.narrow(dim, 0, 2), before, atol=1e-6)


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (nn.Sequential(nn.Linear(3, 2), nn.LogSoftmax(1)), "mixes its units"),
        (nn.Sequential(nn.Linear(3, 4), nn.Unflatten(1, (2, 2))), "can't grow: its size is fixed by unflatten"),
        (nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 2))), "computed from other tensors"),
        (nn.Sequential(nn.Linear(3, 2).requires_grad_(False)), "frozen"),
    ],
)  # fmt: skip
def test_outputs_that_cant_be_told_or_grown_are_refused_by_name(model, why):
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(SennError, match=why):
        add_outputs(model, 1, X)
    assert all(torch.equal(before[name], one) for name, one in model.state_dict().items())


def test_a_tied_head_sends_to_the_tokens():
    with pytest.raises(SennError, match=r"table 'table', .* call resize_token_embeddings"):
        add_outputs(Language(tied=True), 1, IDS)


def test_an_untied_head_of_the_same_size_has_to_be_named():
    model = Language(tied=False)
    with pytest.raises(SennError, match=r"say heads=\['head'\] if they are, heads=\[\] if they"):
        resize_token_embeddings(model, 21, IDS)
    resize_token_embeddings(model, 21, IDS, heads=[])
    assert (model.table.num_embeddings, model.head.out_features) == (21, 20)


def test_arguments_out_of_range_are_refused():
    for wrong in ({"count": 0}, {"start": "random"}, {"names": ["a"]}, {"names": ["a", "a"]}):
        with pytest.raises(SennError):
            add_outputs(net(), **{"count": 2, "inputs": X, **wrong})
    table = nn.Sequential(nn.Embedding(20, 2), nn.Flatten(), nn.Linear(12, 2))
    with pytest.raises(SennError, match="more than the 20 rows that '0' has"):
        resize_token_embeddings(table, 20, IDS)
    with pytest.raises(SennError, match="no table of tokens"):
        resize_token_embeddings(net(), 30, X)


def test_a_fault_in_the_middle_leaves_everything_as_it_was():
    model = net()
    optimizer = torch.optim.Adam(model.parameters())
    train(model, optimizer, X)
    before, state = model(X), copy.deepcopy(optimizer.state_dict())

    class Stubborn(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, x):
            return self.inner(x).reshape(-1, 3)

    with pytest.raises(SennError, match=r"was rolled back"):
        add_outputs(Stubborn(), 1, X, optimizer=optimizer)
    assert torch.equal(model(X), before)
    assert str(state) == str(optimizer.state_dict())


def test_grown_models_are_saved_and_loaded(tmp_path):
    for number, (model, x, grow) in enumerate(
        [
            (net(), X, lambda m: add_outputs(m, 2, X)),
            (Language(tied=True), IDS, lambda m: resize_token_embeddings(m, 25, IDS)),
        ]
    ):
        fresh = copy.deepcopy(model)
        grow(model)
        senn.save(tmp_path / str(number), model)
        assert torch.equal(senn.load(tmp_path / str(number), into=fresh)(x), model(x))


transformers = pytest.importorskip("transformers")
SMALL = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}


def gpt2():
    sizes = {"vocab_size": 20, "n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 8}
    config = transformers.GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)
    return transformers.GPT2LMHeadModel(config)


def llama(tied):
    sizes = {"vocab_size": 20, "num_key_value_heads": 2, **SMALL}
    config = transformers.LlamaConfig(**sizes, tie_word_embeddings=tied)
    return transformers.LlamaForCausalLM(config)


def bert():
    return transformers.BertForMaskedLM(transformers.BertConfig(vocab_size=20, **SMALL))


@pytest.mark.parametrize(
    "make",
    [gpt2, lambda: llama(True), lambda: llama(False), bert],
    ids=["gpt2", "llama tied", "llama", "bert"],
)
def test_a_language_model_of_transformers_gets_new_tokens_while_it_trains(make):
    torch.manual_seed(0)
    model = make()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def step(ids):
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()

    step(IDS)
    model.eval()
    before, held = model(input_ids=IDS).logits, entries(optimizer)
    batch = {"input_ids": IDS, "labels": IDS}  # as a Trainer calls it
    resize_token_embeddings(model, 23, batch, optimizer=optimizer)
    assert (model(input_ids=IDS).logits[..., :20] - before).abs().max() <= 1e-6
    assert_kept(held, optimizer)
    assert model.config.vocab_size == 23
    fresh = type(model)(model.config)
    fresh.load_state_dict(model.state_dict())
    fresh.eval()
    new = IDS.clone()
    new[:, 0] = 22
    assert torch.equal(fresh(input_ids=new).logits, model(input_ids=new).logits)
    model.train()
    step(new)


def test_a_classifier_of_transformers_knows_the_names_of_new_classes():
    config = transformers.BertConfig(vocab_size=20, num_labels=3, **SMALL)
    model = transformers.BertForSequenceClassification(config)
    former = dict(model.config.id2label)
    batch = {"input_ids": IDS, "labels": torch.tensor([0, 1, 2, 0])}
    receipt = add_outputs(model, 2, batch, names=["fish", "bird"])
    assert model.num_labels == model.config.num_labels == 5
    assert (model.config.id2label[4], model.config.label2id["fish"]) == ("bird", 3)
    assert model(input_ids=IDS, labels=torch.tensor([4, 4, 4, 4])).loss.isfinite()
    receipt.undo()
    assert model.config.id2label == former
    assert math.isclose(model.num_labels, 3)
