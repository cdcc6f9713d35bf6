"""Folders that were damaged, or made by somebody who knows the format: one clear sentence, and nothing happens."""

import hashlib
import json
import os
import random
import sys

import pytest
import safetensors.torch
import torch
import torch.utils._device  # torch imports it late, by itself
from exhaustive import EVERYTHING
from surgery_cases import everything
from torch import nn

from senn.checkpoint import load, load_extra, save
from senn.errors import SennError
from senn.nn import Residual

HUGE = 10**15


class Config:
    def __init__(self):
        self.depth = 2


class Net(nn.Module):
    def __init__(self, width=2):
        super().__init__()
        self.width, self.shape, self.config = width, (width, 3), Config()
        self.fc, self.norm, self.out = (
            nn.Linear(3, width),
            nn.BatchNorm1d(width),
            nn.Linear(width, 1),
        )
        self.rnn = nn.LSTM(width, width)
        self.register_buffer("scale", torch.ones(width), persistent=False)


def saved(folder, own):
    """A folder to be damaged, and a way to load it."""
    if own:
        model = Net(4)
        model.fc = nn.Sequential(Residual(nn.Linear(3, 3)), model.fc)
        model.out.weight.requires_grad_(False)
    else:
        model = nn.Sequential(
            nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1), nn.LSTM(1, 2), nn.Linear(2, 2)
        )
        model[4].weight = nn.Parameter(torch.ones(2, 2))
        model.append(nn.Linear(2, 2))
        model[5].weight = model[4].weight
    save(folder, model, {"a": 1})


def load_and_check(folder, own):
    """Load; if it fails it must be in one sentence, with nothing touched and nothing imported."""
    into = Net() if own else None
    before, modules = (
        None if into is None else (everything(into), into.config.depth, into.shape),
        set(sys.modules),
    )
    error = None
    try:
        return load(folder, into=into)
    except SennError as caught:
        error = str(caught)
        raise
    finally:
        assert set(sys.modules) == modules
        if error is not None:
            assert len(error.splitlines()) == 1
            assert before is None or before == (everything(into), into.config.depth, into.shape)


def seal(document):
    document.pop("checksum", None)
    document["checksum"] = hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def rewrite(folder, change, sealed=True):
    """Alter the description; with `sealed`, as one who knows about the checksum."""
    path = folder / "model.json"
    document = json.loads(path.read_text())
    document = change(document) or document
    if sealed and isinstance(document, dict):
        seal(document)
    path.write_text(json.dumps(document))


def reweigh(folder, change):
    """Alter the numbers, and the description's checksum of them."""
    path = folder / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    tensors = change(tensors) or tensors
    path.write_bytes(data := safetensors.torch.save(tensors))
    rewrite(
        folder, lambda document: document.update(weights_sha256=hashlib.sha256(data).hexdigest())
    )


def on_bytes(name, change):
    return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes()))


def sealed_bytes(data):
    """Other bytes in place of the numbers, with the right checksum."""

    def change(folder):
        (folder / "model.safetensors").write_bytes(data)
        rewrite(
            folder,
            lambda document: document.update(weights_sha256=hashlib.sha256(data).hexdigest()),
        )

    return change


def on_node(change, *path):
    """Alter the description of one module."""

    def on_document(document):
        node = document["model"]
        for name in path:
            node = node["children"][name]
        change(node)

    return lambda folder: rewrite(folder, on_document)


def set_node(*path, **entries):
    return on_node(
        lambda node: node.update({key.rstrip("_"): value for key, value in entries.items()}), *path
    )


def put(key, name, value, *path):
    return on_node(lambda node: node[key].update({name: value}), *path)


def swap(folder):
    (folder / "model.json").rename(folder / "aside")
    (folder / "model.safetensors").rename(folder / "model.json")
    (folder / "aside").rename(folder / "model.safetensors")


def another_models_numbers(folder):
    save(folder / "other", nn.Linear(2, 2))
    (folder / "other" / "model.safetensors").replace(folder / "model.safetensors")


def pipe(folder):
    (folder / "model.json").unlink()
    os.mkfifo(folder / "model.json")


def nested(folder):
    node = {
        "class": "torch.nn.Sequential",
        "tensors": {},
        "attributes": {},
        "settings": {},
        "counts": {},
    }
    text = (json.dumps({**node, "children": {}})[:-2] + '"0": ') * 5000
    (folder / "model.json").write_text('{"model": ' + text)


def deep(folder):
    leaf = {
        "class": "torch.nn.Sequential",
        "tensors": {},
        "attributes": {},
        "settings": {},
        "counts": {},
    }

    def change(document):
        node = {**leaf, "children": {}}
        for _ in range(450):
            node = {**leaf, "children": {"0": node}}
        document.update(model=node, tied={}, frozen=[], transient=[])

    sys.setrecursionlimit(sys.getrecursionlimit() + 500)
    try:
        rewrite(folder, change)
    finally:
        sys.setrecursionlimit(sys.getrecursionlimit() - 500)


HEADER = json.dumps(
    {"a": {"dtype": "F32", "shape": [HUGE], "data_offsets": [0, 4 * HUGE]}}
).encode()

BOTH = {
    "no description": (lambda f: (f / "model.json").unlink(), "holds no saved model"),
    "no numbers": (lambda f: (f / "model.safetensors").unlink(), "holds no saved model"),
    "description is a pipe": (pipe, "holds no saved model .*not a file"),
    "description empty": (on_bytes("model.json", lambda data: b""), "isn't JSON"),
    "description cut": (on_bytes("model.json", lambda data: data[:99]), "isn't JSON"),
    "description twice": (on_bytes("model.json", lambda data: data * 2), "isn't JSON"),
    "description binary": (on_bytes("model.json", lambda data: b"\xff\xfe" + data), "isn't JSON"),
    "nested without end": (nested, "isn't JSON"),
    "nested deeply": (deep, "nested too deeply|isn't JSON|knows nothing"),
    "numbers empty": (on_bytes("model.safetensors", lambda data: b""), "isn't the file that was saved"),
    "numbers cut": (on_bytes("model.safetensors", lambda data: data[:-1]), "isn't the file that was saved"),
    "numbers longer": (on_bytes("model.safetensors", lambda data: data + b"0"), "isn't the file that was saved"),
    "numbers not safetensors": (sealed_bytes(b"no numbers"), "model.safetensors' is damaged"),
    "numbers with a huge header": (sealed_bytes((2**63).to_bytes(8, "little")), "is damaged"),
    "numbers with a huge tensor": (sealed_bytes(len(HEADER).to_bytes(8, "little") + HEADER), "is damaged"),
    "files swapped": (swap, "isn't JSON"),
    "another model's numbers": (another_models_numbers, "isn't the file that was saved"),
    "other JSON": (lambda f: (f / "model.json").write_text("[1]"), "doesn't describe a model"),
    "a number": (lambda f: (f / "model.json").write_text("1"), "doesn't describe a model"),
    "other format": (lambda f: rewrite(f, lambda d: d.update(format="other")), "doesn't describe a model"),
    "future": (lambda f: rewrite(f, lambda d: d.update(version=99)), "format version 99; this senn reads 1 and 2"),
    "version true": (lambda f: rewrite(f, lambda d: d.update(version=True)), "format version True"),
    "version of text": (lambda f: rewrite(f, lambda d: d.update(version="2")), "format version '2'"),
    "version a list": (lambda f: rewrite(f, lambda d: d.update(version=[2])), r"format version \[2\]"),
    "former version": (lambda f: rewrite(f, lambda d: d.update(version=1)), "doesn't match its checksum"),
    "altered": (lambda f: rewrite(f, lambda d: d["extra"].update(a=2), sealed=False), "doesn't match its checksum"),
    "key gone": (lambda f: rewrite(f, lambda d: d.pop("tied") and None), "doesn't match its checksum"),
    "key too many": (lambda f: rewrite(f, lambda d: d.update(more=1)), "doesn't match its checksum"),
    "NaN": (lambda f: rewrite(f, lambda d: d["extra"].update(a=float("nan"))), "isn't JSON"),
    "infinity": (lambda f: rewrite(f, lambda d: d["model"]["attributes"].update(a=float("inf"))), "isn't JSON"),
    "a number too large": (
        on_bytes("model.json", lambda data: data.replace(b'"a": 1', b'"a": 1e999')), "isn't JSON|isn't match|damaged"
    ),
    "no model": (lambda f: rewrite(f, lambda d: d.update(model=None)), "describes the model wrongly"),
    "model elsewhere": (lambda f: rewrite(f, lambda d: d.update(model={"same": ""})), "describes the model wrongly"),
    "tied to nothing": (lambda f: rewrite(f, lambda d: d["tied"].update({"x": "y"})), "'x' isn't tied to a tensor"),
    "tied no table": (lambda f: rewrite(f, lambda d: d.update(tied=[1])), "'tied' is no table"),
    "frozen no list": (lambda f: rewrite(f, lambda d: d.update(frozen="a")), "'frozen' is no list"),
    "frozen unknown": (lambda f: rewrite(f, lambda d: d.update(frozen=["a.b"])), "'frozen' is no list"),
    "transient unknown": (lambda f: rewrite(f, lambda d: d.update(transient=[["a"]])), "'transient' is no list"),
    "extra no table": (lambda f: rewrite(f, lambda d: d.update(extra=[1])), "'extra' is no table"),
    "node entry gone": (on_node(lambda node: node.pop("settings")), "its entries aren't"),
    "node entry too many": (set_node(more=1), "its entries aren't"),
    "class a list": (set_node(class_=["torch.nn.Linear"]), "its class is no name"),
    "class with lines": (set_node(class_="a\nb"), "its class is no name"),
    "class to import": (set_node(class_="antigravity.Module"), "antigravity.Module"),
    "class os.system": (set_node(class_="os.system"), "os.system"),
    "class of torch": (set_node(class_="torch.nn.modules.linear.Linear"), "torch.nn.modules.linear.Linear"),
    "children a list": (set_node(children=[]), "'children' is no table"),
    "child with a dot": (put("children", "a.b", {}), "'a.b' is no part's name"),
    "child ..": (put("children", "..", {}), "'..' is no part's name"),
    "child without a name": (put("children", "", {}), "'children' is no table"),
    "child with lines": (put("children", "a\n", {}), "'children' is no table"),
    "child a number": (put("children", "a", 1), "describes a wrongly: it is no table"),
    "child __class__": (put("children", "__class__", {"same": ""}), "__class__"),
    "child the model itself": (put("children", "loop", {"same": ""}), "'loop'|hold itself"),
    "attribute __class__": (put("attributes", "__class__", 1), "'__class__' is no number"),
    "attribute _modules": (put("attributes", "_modules", 1), "'_modules' is no number"),
    "attribute a path": (put("attributes", "a.b", 1), "'a.b' is no number"),
    "attribute text": (put("attributes", "a", "1"), "'a' is no number"),
    "attribute mixed": (put("attributes", "a", [1, "1"]), "'a' is no number"),
    "setting a list": (put("settings", "a", [1]), "'a' is no setting"),
    "count of a dunder": (put("counts", "config.__class__", 1), "'config.__class__' is no count"),
    "count of a path": (put("counts", "a.b.c", 1), "'a.b.c' is no count"),
    "tensor with a dot": (put("tensors", "a.b", [1]), "'a.b' has no shape"),
    "tensor negative": (put("tensors", "a", [-1]), "'a' has no shape"),
    "tensor more": (put("tensors", "a", [1]), "lacks 'a'"),
    "tensor __class__": (put("tensors", "__class__", [1]), "lacks '__class__'"),
    "numbers too many": (lambda f: reweigh(f, lambda t: t.update(a=torch.ones(1))), "holds 'a', of which"),
    "numbers all gone": (lambda f: reweigh(f, lambda t: t.clear()), "lacks"),
}  # fmt: skip
PLAIN = {
    "other argument": (put("arguments", "in_features", "3", "0"), "describes 0 wrongly"),
    "argument too many": (put("arguments", "device", "cuda", "0"), "describes 0 wrongly"),
    "argument a table": (put("arguments", "in_features", {}, "0"), "describes 0 wrongly"),
    "argument gone": (on_node(lambda node: node["arguments"].pop("in_features"), "0"), "describes 0 wrongly"),
    "no arguments": (on_node(lambda node: node.pop("arguments"), "0"), "can't build by itself"),
    "huge argument": (put("arguments", "in_features", HUGE, "0"), "0 can't be built .* another 'weight'"),
    "huger argument": (put("arguments", "in_features", HUGE**9, "0"), "describes 0 wrongly"),
    "endless layers": (put("arguments", "num_layers", HUGE, "3"), "no arguments of a torch.nn.LSTM"),
    "huge shape": (put("tensors", "weight", [HUGE, 3], "0"), "'0.weight' of shape"),
    "other class": (set_node("1", class_="torch.nn.Tanh"), "describes 1 wrongly"),
    "tensor gone": (lambda f: reweigh(f, lambda t: t.pop("2.bias") and None), "lacks '2.bias'"),
    "tensor resized": (lambda f: reweigh(f, lambda t: t.update({"2.bias": torch.ones(9)})), "'2.bias' of shape"),
    "numbers NaN": (lambda f: reweigh(f, lambda t: t["2.bias"].fill_(float("nan")) and None), "'2.bias' .* holds NaN"),
    "numbers of another kind": (
        lambda f: reweigh(f, lambda t: t.update({"2.bias": torch.ones(1, dtype=torch.int64)})),
        "'2.bias' as torch.int64",
    ),
    "tied in a ring": (
        lambda f: rewrite(f, lambda d: d["tied"].update({"4.weight": "5.weight"})), "isn't tied to a tensor like it"
    ),
    "a part twice": (put("children", "9", {"same": "1.0"}), "describes 9 wrongly: there is no module"),
    "a method's name": (put("children", "forward", {"same": "0"}), "'forward' is no part's name"),
}  # fmt: skip
OWN = {
    "huge attribute of another kind": (put("attributes", "shape", HUGE), None),
    "part gone": (on_node(lambda node: node["children"].pop("norm")), "holds 'norm.bias'"),
    "class of a part": (set_node("norm", class_="torch.nn.Tanh"), "norm is a torch.nn.BatchNorm1d"),
    "inserted class": (set_node("fc", "0", class_="os.system"), "fc.0 is a os.system that was added"),
    "inserted argument": (put("arguments", "in_features", HUGE, "fc", "0", "branch"), "another 'weight'"),
    "more dimensions": (
        lambda f: (
            put("tensors", "bias", [1, 1], "out")(f),
            reweigh(f, lambda t: t.update({"out.bias": torch.ones(1, 1)})),
        ),
        "out: tensor 'bias' has 1 dimensions",
    ),
    "numbers of another kind": (
        lambda f: reweigh(f, lambda t: t.update({"norm.num_batches_tracked": torch.ones(())})),
        "'norm.num_batches_tracked' as torch.float32",
    ),
    "buffer of another kind": (
        lambda f: reweigh(f, lambda t: t.update(scale=torch.ones(4, dtype=torch.bool))), "'scale' as torch.bool"
    ),
    "added without parts": (put("children", "2", {"same": "out"}, "fc"), "fc"),
}  # fmt: skip
CASES = [
    (own, name, *case)
    for own, some in ((0, BOTH), (1, BOTH), (0, PLAIN), (1, OWN))
    for name, case in some.items()
]


@pytest.mark.parametrize(
    ("own", "change", "message"),
    [(own, change, message) for own, _, change, message in CASES],
    ids=[f"{name}-{'into' if own else 'alone'}" for own, name, *_ in CASES],
)
def test_damage_is_one_clear_sentence(tmp_path, own, change, message):
    saved(tmp_path, own)
    load_and_check(tmp_path, own)
    change(tmp_path)
    if message is None:
        load_and_check(tmp_path, own)
        return
    with pytest.raises(SennError, match=message):
        load_and_check(tmp_path, own)


HOSTILE = [None, True, -1, HUGE, 1.5, "x", "__class__", [], [0], {}, {"same": ""}]


def tensor_leaves(json, path=()):
    """Paths to all values in a document."""
    if isinstance(json, dict | list):
        for key, value in json.items() if isinstance(json, dict) else enumerate(json):
            yield (*path, key)
            yield from tensor_leaves(value, (*path, key))


@pytest.mark.parametrize("own", [0, 1])
def test_whatever_stands_in_a_description_only_our_errors_come(tmp_path, own):
    """Every value replaced by a hostile one, by somebody who repairs the checksum: an error of ours, or a model."""
    saved(tmp_path, own)
    text = (tmp_path / "model.json").read_text()
    generator, refused, places = random.Random(0), 0, list(tensor_leaves(json.loads(text)))
    for *parents, key in places:
        for value in generator.sample(HOSTILE, len(HOSTILE) if EVERYTHING else 1):
            document = json.loads(text)
            holder = document
            for parent in parents:
                holder = holder[parent]
            holder[key] = value
            seal(document)
            (tmp_path / "model.json").write_text(json.dumps(document))
            try:
                load_and_check(tmp_path, own)
            except SennError:
                refused += 1
    assert refused > len(places) / 2


@pytest.mark.parametrize("own", [0, 1])
@pytest.mark.parametrize("name", ["model.json", "model.safetensors"])
def test_a_flipped_bit_is_found(tmp_path, own, name):
    saved(tmp_path, own)
    data, generator = (tmp_path / name).read_bytes(), random.Random(own)
    description = json.loads((tmp_path / "model.json").read_text())
    for _ in range(60):
        flipped = bytearray(data)
        flipped[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
        (tmp_path / name).write_bytes(flipped)
        try:
            load_and_check(tmp_path, own)
        except SennError:
            continue
        assert name == "model.json"  # a blank became another blank
        assert json.loads(flipped) == description


def test_extra_of_a_damaged_folder(tmp_path):
    saved(tmp_path, 0)
    assert load_extra(tmp_path) == {"a": 1}
    rewrite(tmp_path, lambda document: document["extra"].update(a=2), sealed=False)
    with pytest.raises(SennError, match="doesn't match its checksum"):
        load_extra(tmp_path)
