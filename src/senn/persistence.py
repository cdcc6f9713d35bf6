"""Models on disk: `model.safetensors` for the numbers, `model.json` for how to rebuild what holds them. Never pickle.

A folder of its own per model. The JSON describes the tree of modules: class, tensor shapes and integer attributes of
each. Trees of PyTorch's and senn's own plain layers are rebuilt from it alone; a model of other classes is built small
by its owner and *regrown*: its tensors and attributes are resized and the inserted layers put in again.

The JSON carries a checksum of the numbers and one of itself, so that a half-copied or altered folder is refused.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from senn.errors import SennError, UnsupportedError
from senn.nn import MLP, Rational, Residual

VERSION = 1
WEIGHTS, DESCRIPTION = "model.safetensors", "model.json"

_CONSTRUCTORS: dict[type[nn.Module], tuple[str, ...]] = {
    nn.Linear: ("in_features", "out_features", "bias"),
    nn.BatchNorm1d: ("num_features", "eps", "momentum", "affine", "track_running_stats"),
    nn.LayerNorm: ("normalized_shape", "eps", "elementwise_affine", "bias"),
    nn.Dropout: ("p", "inplace"),
    nn.Flatten: ("start_dim", "end_dim"),
    nn.PReLU: ("num_parameters",),
    Rational: ("num_parameters",),
    nn.ELU: ("alpha", "inplace"),
    nn.LeakyReLU: ("negative_slope", "inplace"),
    nn.Softplus: ("beta", "threshold"),
    nn.GELU: ("approximate",),
    nn.Softmax: ("dim",),
    nn.LogSoftmax: ("dim",),
    **dict.fromkeys((nn.ReLU, nn.ReLU6, nn.SELU, nn.SiLU, nn.Mish, nn.Hardswish), ("inplace",)),
    **dict.fromkeys((nn.Identity, nn.Tanh, nn.Sigmoid, nn.LogSigmoid, nn.Softsign), ()),
}
"""Classes that a description can be turned into, with the arguments that are read off as attributes."""

_CONTAINERS: dict[type[nn.Module], Callable[[Collection[str]], nn.Module]] = {
    nn.Sequential: lambda parts: nn.Sequential(),
    MLP: lambda parts: MLP(1, (1,), 1, shortcut="shortcut" in parts),
    Residual: lambda parts: Residual(nn.Identity()),
}
"""Classes of which all that matters is their children, made from those's names."""

_KNOWN = {f"{'senn' if cls.__module__.startswith('senn') else 'torch'}.nn.{cls.__name__}": cls
          for cls in (*_CONSTRUCTORS, *_CONTAINERS)}  # fmt: skip
_NAMES = {cls: name for name, cls in _KNOWN.items()}

Node = dict[str, Any]


def save(folder: str | Path, model: nn.Module, extra: dict[str, Any] | None = None) -> None:
    """Write a model to a folder (made if need be), replacing the one that is there.

    Both files are complete before either takes its name.

    Args:
        folder: where `model.safetensors` and `model.json` go.
        model: any module; its parameters must be finite.
        extra: JSON-able, kept in `model.json`; read back with `load_extra`.

    Raises:
        SennError: if a tensor isn't finite, `extra` isn't JSON-able, or the folder can't be written.
        UnsupportedError: if the model keeps state that isn't tensors.
    """
    tensors, tied = _tensors(model)
    data = safetensors.torch.save(tensors)
    document = {
        "format": "senn-model",
        "version": VERSION,
        "weights_sha256": hashlib.sha256(data).hexdigest(),
        "model": _describe(model),
        "tied": tied,
        "frozen": [name for name, parameter in model.named_parameters() if not parameter.requires_grad],
        "extra": extra or {},
    }
    try:
        document["checksum"] = _checksum(document)
        text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise SennError(f"extra can't be written as JSON: {error}") from error
    _write(Path(folder), {WEIGHTS: data, DESCRIPTION: text.encode()})


def load(folder: str | Path, into: nn.Module | None = None) -> nn.Module:
    """Read a model back.

    Args:
        folder: where it was saved.
        into: a freshly built model of the same classes, of any size, that is regrown in place and returned; its
            device and its mode stay. None to rebuild the model (on the CPU, in eval mode) from plain layers alone.

    Raises:
        SennError: if the folder holds no intact model of a known version, or not one like `into`, which then is
            unchanged.
    """
    folder = Path(folder)
    document = _read(folder)
    tensors = _read_weights(folder, document["weights_sha256"])
    node = document["model"]
    if into is None:
        model = _build(node, "")
        shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
        _check_shapes(shapes, tensors, document["tied"])
        _assign(model, tensors, document["tied"])
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name not in document["frozen"])
        return model.eval()
    changes: list[Callable[[], None]] = []
    into_root = _regrow(node, into, "", changes)
    if into_root is not into:
        raise SennError("a layer was inserted before the only layer of the saved model; load it without into")
    _check_shapes(_described(node, ""), tensors, document["tied"])
    for change in changes:
        change()
    _assign(into, tensors, document["tied"])
    return into


def load_extra(folder: str | Path) -> dict[str, Any]:
    """What was saved beside a model.

    Raises:
        SennError: if the folder's description isn't intact.
    """
    extra: dict[str, Any] = _read(Path(folder))["extra"]
    return extra


# ---- describing


def _describe(module: nn.Module) -> Node:
    """The tree of a module: classes, shapes, attributes."""
    cls = type(module)
    own = {**module._parameters, **{k: v for k, v in module._buffers.items() if k in _persistent(module)}}
    node: Node = {
        "class": _NAMES.get(cls, cls.__qualname__),
        "tensors": {name: list(tensor.shape) for name, tensor in own.items() if tensor is not None},
        "attributes": _attributes(module),
        "children": {name: _describe(child) for name, child in module.named_children()},
    }
    if cls in _CONSTRUCTORS:
        node["arguments"] = {name: _argument(module, name) for name in _CONSTRUCTORS[cls]}
    return node


def _persistent(module: nn.Module) -> set[str]:
    return set(module._buffers) - module._non_persistent_buffers_set


def _attributes(module: nn.Module) -> dict[str, int | float | list[int]]:
    """The module's whole numbers and tuples of them, among which are all sizes."""
    found: dict[str, int | float | list[int]] = {}
    for name, value in vars(module).items():
        if name.startswith("_") or isinstance(value, bool):
            continue
        if isinstance(value, int) or (isinstance(value, float) and "eps" in name):  # growth changes these too
            found[name] = value
        elif isinstance(value, tuple | list) and value and all(type(item) is int for item in value):
            found[name] = list(value)
    return found


def _argument(module: nn.Module, name: str) -> Any:
    value = getattr(module, name)
    if name == "bias":
        return value is not None
    return list(value) if isinstance(value, tuple) else value


def _tensors(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The state as separate contiguous CPU tensors, and the names that are tied to an earlier one."""
    tensors: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    first: dict[int, str] = {}
    state = model.state_dict(keep_vars=True)
    parameters = {id(parameter) for parameter in model.parameters()}
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor):
            raise UnsupportedError(f"{name!r} of {type(model).__name__} is a {type(tensor).__name__}, not a tensor")
        # A buffer may well hold infinities (a mask), a parameter can't have any use for them.
        if tensor.isnan().any() or (id(tensor) in parameters and tensor.isinf().any()):
            raise SennError(f"{name!r} holds NaN or infinity; the model is not saved")
        if id(tensor) in first:
            tied[name] = first[id(tensor)]
        else:
            first[id(tensor)] = name
            tensors[name] = tensor.detach().cpu().contiguous().clone()
    return tensors, tied


# ---- files


def _checksum(document: dict[str, Any]) -> str:
    rest = {key: value for key, value in document.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, allow_nan=False).encode()).hexdigest()


def _write(folder: Path, files: dict[str, bytes]) -> None:
    """Write all files under temporary names, then give them their own."""
    temporary = {folder / f".{name}.{os.getpid()}.tmp": folder / name for name in files}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, data in zip(temporary, files.values(), strict=True):
            path.write_bytes(data)
        for path, final in temporary.items():
            path.replace(final)
    except OSError as error:
        raise SennError(f"the model can't be written to {str(folder)!r}: {error.strerror or error}") from error
    finally:
        for path in temporary:
            with suppress(OSError):
                path.unlink(missing_ok=True)


def _read(folder: Path) -> dict[str, Any]:
    """The description, checked."""
    path = folder / DESCRIPTION
    try:
        document = json.loads(path.read_bytes())
    except OSError as error:
        raise SennError(f"{str(folder)!r} holds no saved model ({DESCRIPTION}: {error.strerror or error})") from error
    except (ValueError, RecursionError) as error:
        raise SennError(f"{str(path)!r} is damaged: it isn't JSON") from error
    if not isinstance(document, dict) or document.get("format") != "senn-model":
        raise SennError(f"{str(path)!r} doesn't describe a model that senn saved")
    if document.get("version") != VERSION:
        raise SennError(f"{str(path)!r} has format version {document.get('version')!r}; this senn reads {VERSION}")
    keys = {"format", "version", "weights_sha256", "model", "tied", "frozen", "extra", "checksum"}
    if set(document) != keys or document["checksum"] != _checksum(document):
        raise SennError(f"{str(path)!r} is damaged: its content doesn't match its checksum")
    return document


def _read_weights(folder: Path, sha256: str) -> dict[str, Tensor]:
    path = folder / WEIGHTS
    try:
        data = path.read_bytes()
    except OSError as error:
        raise SennError(f"{str(folder)!r} holds no saved model ({WEIGHTS}: {error.strerror or error})") from error
    if hashlib.sha256(data).hexdigest() != sha256:
        raise SennError(f"{str(path)!r} is damaged: it isn't the file that was saved with {DESCRIPTION}")
    try:
        tensors = safetensors.torch.load(data)
    except safetensors.SafetensorError as error:
        raise SennError(f"{str(path)!r} is damaged: {error}") from error
    for name, tensor in tensors.items():
        if tensor.isnan().any():
            raise SennError(f"{name!r} in {str(path)!r} holds NaN")
    return tensors


# ---- rebuilding


def _build(node: Node, path: str) -> nn.Module:
    """The module of a description, without memory for its tensors."""
    place = path or "the model"
    cls = _KNOWN.get(node["class"])
    if cls is None:
        raise UnsupportedError(
            f"{place} is a {node['class']}, which senn can't build by itself; build one and pass it as into"
        )
    try:
        with torch.device("meta"):
            module = _CONTAINERS[cls](node["children"]) if cls in _CONTAINERS else cls(**node["arguments"])
    except (TypeError, ValueError, RuntimeError) as error:
        raise SennError(f"{DESCRIPTION} describes {place} wrongly: {error}") from error
    if cls is not nn.Sequential and set(node["children"]) != {name for name, _ in module.named_children()}:
        raise SennError(f"{DESCRIPTION} describes {place} wrongly: a {node['class']} has other parts")
    for name, child in node["children"].items():
        module.add_module(name, _build(child, f"{path}.{name}".lstrip(".")))
    return module


def _regrow(node: Node, module: nn.Module, path: str, changes: list[Callable[[], None]]) -> nn.Module:
    """Compare a description with a module; the changes to make it fit are collected, not yet carried out.

    Returns:
        What belongs at the module's place: itself, or a Sequential that ends in it where layers were inserted.
    """
    place = path or "the model"
    expected = _NAMES.get(type(module), type(module).__qualname__)
    if node["class"] != expected:
        if node["class"] == "torch.nn.Sequential" and node["children"] and not list(module.children()):
            return _reinsert(node, module, path, changes)
        raise SennError(f"{place} is a {expected}, but a {node['class']} was saved")
    own = {**module._parameters, **{k: v for k, v in module._buffers.items() if k in _persistent(module)}}
    shapes = {name: tensor.shape for name, tensor in own.items() if tensor is not None}
    if set(shapes) != set(node["tensors"]):
        differing = sorted(set(shapes) ^ set(node["tensors"]))[0]
        raise SennError(f"{place} and the saved model don't both have a tensor {differing!r}")
    for name, shape in shapes.items():
        if len(shape) != len(node["tensors"][name]):
            raise SennError(f"{place}: tensor {name!r} has {len(shape)} dimensions, saved were {node['tensors'][name]}")
    for name, value in node["attributes"].items():
        old = getattr(module, name, None)
        new = type(old)(value) if isinstance(old, tuple | list) and isinstance(value, list) else value
        if old != new:
            changes.append(lambda name=name, new=new: setattr(module, name, new))  # type: ignore[misc]
    children = dict(module.named_children())
    if set(children) != set(node["children"]):
        differing = sorted(set(children) ^ set(node["children"]))[0]
        raise SennError(f"{place} and the saved model don't both have a part {differing!r}")
    for name, child in children.items():
        fitting = _regrow(node["children"][name], child, f"{path}.{name}".lstrip("."), changes)
        if fitting is not child:
            changes.append(lambda name=name, new=fitting: setattr(module, name, new))  # type: ignore[misc]
    return module


def _reinsert(node: Node, module: nn.Module, path: str, changes: list[Callable[[], None]]) -> nn.Module:
    """A Sequential of inserted layers that ends in the module they were inserted before."""
    *inserted, last = node["children"]
    chain = nn.Sequential()
    for name in inserted:
        chain.add_module(name, _build(node["children"][name], f"{path}.{name}".lstrip(".")))
    chain.add_module(last, _regrow(node["children"][last], module, f"{path}.{last}".lstrip("."), changes))
    return chain.train(module.training)


def _described(node: Node, path: str) -> dict[str, list[int]]:
    """Shapes by full tensor name."""
    found = {f"{path}{name}": shape for name, shape in node["tensors"].items()}
    for name, child in node["children"].items():
        found |= _described(child, f"{path}{name}.")
    return found


def _check_shapes(shapes: dict[str, list[int]], tensors: dict[str, Tensor], tied: dict[str, str]) -> None:
    """Hold the stored tensors against what is described (tied tensors are stored once)."""
    for name, shape in shapes.items():
        stored = tensors.get(tied.get(name, name))
        if stored is None:
            raise SennError(f"{WEIGHTS} lacks {name!r}")
        if list(stored.shape) != shape:
            raise SennError(f"{WEIGHTS} holds {name!r} of shape {list(stored.shape)}, {DESCRIPTION} says {shape}")


def _assign(model: nn.Module, tensors: dict[str, Tensor], tied: dict[str, str]) -> None:
    """Put new Parameters and buffers in place of those the model has; tied names get the same one."""
    state = model.state_dict(keep_vars=True)
    device = next((old.device for old in state.values() if not old.is_meta), torch.device("cpu"))
    made: dict[str, Tensor] = {}
    for name, old in state.items():
        first = tied.get(name, name)
        module_name, _, attribute = name.rpartition(".")
        module = model.get_submodule(module_name)
        if first not in made:
            new = tensors[first].to(device if old.is_meta else old.device)
            is_parameter = attribute in module._parameters
            made[first] = nn.Parameter(new, requires_grad=old.requires_grad) if is_parameter else new
        setattr(module, attribute, made[first])
