"""What `model.json` says about a model: records, made from a model or from a file's JSON, which is checked whole."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import isfinite
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from senn.errors import SennError, UnsupportedError
from senn.persistence.files import DESCRIPTION, WEIGHTS, has_infinity, has_nan
from senn.persistence.layers import arguments_of, class_name

Number = int | float | list[int]


@dataclass(frozen=True, eq=False)
class Node:
    """One module.

    Attributes:
        cls: its class, as `class_name` has it.
        tensors: shapes of its own parameters and buffers.
        attributes: its whole numbers, lists of them, and eps: everything that growth may have rewritten.
        settings: its other numbers and switches, which are only compared.
        counts: numbers in objects that it has (`config.num_layers`), if they may count layers.
        children: its parts; a string is the path of a module that stands here too.
        arguments: what it can be constructed with, if it is a layer of the table.
    """

    cls: str
    tensors: Mapping[str, tuple[int, ...]]
    attributes: Mapping[str, Number]
    settings: Mapping[str, bool | float]
    counts: Mapping[str, int]
    children: Mapping[str, Node | str]
    arguments: Mapping[str, Any] | None

    def walk(self, path: str = "") -> Iterator[tuple[str, Node]]:
        """This module and all inside it, by path."""
        yield path, self
        for name, child in self.children.items():
            if isinstance(child, Node):
                yield from child.walk(join(path, name))


@dataclass(frozen=True, eq=False)
class Description:
    """A saved model, but for its numbers.

    Attributes:
        version: of the format.
        weights_sha256: of the file with the numbers.
        root: the model.
        shapes: of all tensors, by full name.
        tied: by full name, the first name of the same tensor.
        frozen: parameters that aren't trained.
        transient: buffers that aren't in the model's state; their numbers are saved in case growth resized them.
        extra: what was saved beside the model.
    """

    version: int
    weights_sha256: str
    root: Node
    shapes: Mapping[str, tuple[int, ...]]
    tied: Mapping[str, str]
    frozen: frozenset[str]
    transient: frozenset[str]
    extra: dict[str, Any]

    def check(self, tensors: Mapping[str, Tensor]) -> None:
        """Hold the stored tensors against what is described; tied ones are stored once.

        Raises:
            SennError: if one is missing, too much, or of another shape.
        """
        for name, shape in self.shapes.items():
            stored = tensors.get(self.tied.get(name, name))
            if stored is None:
                raise SennError(f"{WEIGHTS} lacks {name!r}")
            if tuple(stored.shape) != shape:
                raise SennError(
                    f"{WEIGHTS} holds {name!r} of shape {list(stored.shape)}, {DESCRIPTION} says {list(shape)}"
                )
        if unknown := sorted(set(tensors) - (set(self.shapes) - set(self.tied))):
            raise SennError(f"{WEIGHTS} holds {unknown[0]!r}, of which {DESCRIPTION} knows nothing")


def join(path: str, name: str) -> str:
    """Full name of what a module has under a name."""
    return f"{path}.{name}" if path else name


def own_tensors(module: nn.Module) -> dict[str, Tensor]:
    """A module's own parameters and buffers."""
    held = {**module._parameters, **module._buffers}
    return {name: tensor for name, tensor in held.items() if tensor is not None}


def describe(model: nn.Module) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A model as JSON-able parts of a description, and its numbers: separate contiguous tensors on the CPU.

    Raises:
        SennError: a tensor holds NaN, or a parameter infinity.
        UnsupportedError: the model keeps state that isn't plain tensors.
    """
    tensors: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    transient: list[str] = []
    first: dict[int, str] = {}
    for path, module in model.named_modules():
        if type(module).get_extra_state is not nn.Module.get_extra_state:
            raise UnsupportedError(f"{join(path, '_extra_state')!r} of {class_name(model)} isn't a plain tensor")
        for key, tensor in own_tensors(module).items():
            name = join(path, key)
            if key in module._non_persistent_buffers_set:
                transient.append(name)
            if id(tensor) in first:
                tied[name] = first[id(tensor)]
                continue
            first[id(tensor)] = name
            _check_tensor(name, tensor)
            tensors[name] = tensor.detach().cpu().contiguous().clone()
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    lengths = {len(module) for module in model.modules() if isinstance(module, nn.Sequential | nn.ModuleList)}
    return {"model": _tree(model, "", {}, lengths), "tied": tied, "frozen": frozen, "transient": transient}, tensors


def _check_tensor(name: str, tensor: Tensor) -> None:
    if not is_plain(tensor):
        raise UnsupportedError(f"{name!r} is no plain tensor but a {type(tensor).__name__} and can't be saved")
    if tensor.is_meta:
        raise UnsupportedError(f"{name!r} is on the meta device: it has no numbers to save")
    # A buffer may well hold infinities (a mask), a parameter can't have any use for them.
    if has_nan(tensor) or (isinstance(tensor, nn.Parameter) and has_infinity(tensor)):
        raise SennError(f"{name!r} holds NaN or infinity; the model is not saved")


def is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is an ordinary dense one: no subclass, quantised or sparse."""
    ordinary = type(tensor) in (Tensor, nn.Parameter) and tensor.layout is torch.strided
    return ordinary and not tensor.is_quantized


def _tree(module: nn.Module, path: str, seen: dict[int, str], lengths: set[int]) -> dict[str, Any]:
    """The JSON of a module and what is inside it.

    Args:
        module: the module.
        path: its full name.
        seen: full names by id of modules and of objects with numbers that were described before.
        lengths: of all lists of layers in the model.
    """
    seen[id(module)] = path
    attributes, settings = plain_attributes(module)
    counts = _counts(module, seen, lengths)
    children: dict[str, Any] = {}
    for name, child in module._modules.items():
        if child is not None:
            same = seen.get(id(child))
            children[name] = _tree(child, join(path, name), seen, lengths) if same is None else {"same": same}
    node = {
        "class": class_name(module),
        "tensors": {name: list(tensor.shape) for name, tensor in own_tensors(module).items()},
        "attributes": attributes,
        "settings": settings,
        "counts": counts,
        "children": children,
    }
    arguments = arguments_of(module)
    return node if arguments is None else {**node, "arguments": arguments}


def _counts(module: nn.Module, seen: dict[int, str], lengths: set[int]) -> dict[str, int]:
    """Numbers in a module's configuration that may count layers; each configuration is read once."""
    found: dict[str, int] = {}
    for holder, value in vars(module).items():
        inner = getattr(value, "__dict__", None)
        foreign = isinstance(value, Tensor | nn.Module | ModuleType | type) or not _public(holder)
        if foreign or not isinstance(inner, dict) or id(value) in seen:
            continue
        seen[id(value)] = holder
        for name, number in inner.items():
            if _public(name) and type(number) is int and number in lengths:
                found[f"{holder}.{name}"] = number
    return found


def plain_attributes(module: nn.Module) -> tuple[dict[str, Number], dict[str, bool | float]]:
    """A module's numbers: those that growth may rewrite, and the others."""
    attributes: dict[str, Number] = {}
    settings: dict[str, bool | float] = {}
    for name, value in vars(module).items():
        if not _public(name) or name == "training":
            continue
        if isinstance(value, tuple | list):
            if value and all(type(item) is int for item in value):
                attributes[name] = list(value)
        elif isinstance(value, bool) or (isinstance(value, float) and "eps" not in name):
            if isfinite(value):
                settings[name] = value
        elif isinstance(value, int) or (isinstance(value, float) and isfinite(value)):  # growth rewrites eps too
            attributes[name] = value
    return attributes, settings


# ---- from a file


def parse(document: Mapping[str, Any]) -> Description:
    """The description in a file's JSON.

    Raises:
        SennError: something in it isn't what it must be.
    """
    root = _node(document["model"], document["version"], "")
    if not isinstance(root, Node):
        raise _wrong("the model", "it stands for another module")
    shapes = {join(path, name): shape for path, node in root.walk() for name, shape in node.tensors.items()}
    tied, transient = document["tied"], document.get("transient", [])
    if document["version"] == 1:  # shared modules were written once for each place
        transient = []
    _expect(isinstance(tied, dict), "the model", "'tied' is no table of names")
    for name, first in tied.items():
        known = name in shapes and isinstance(first, str) and first in shapes and first not in tied
        _expect(known and shapes[name] == shapes[first], "the model", f"{name!r} isn't tied to a tensor like it")
    for key, names in (("frozen", document["frozen"]), ("transient", transient)):
        listed = isinstance(names, list) and all(isinstance(name, str) and name in shapes for name in names)
        _expect(listed, "the model", f"{key!r} is no list of its tensors")
    _expect(isinstance(document["extra"], dict), "the model", "'extra' is no table")
    return Description(
        version=document["version"],
        weights_sha256=document["weights_sha256"],
        root=root,
        shapes=shapes,
        tied=tied,
        frozen=frozenset(document["frozen"]),
        transient=frozenset(transient),
        extra=document["extra"],
    )


def _wrong(place: str, why: str) -> SennError:
    return SennError(f"{DESCRIPTION} describes {place} wrongly: {why}")


def _expect(condition: bool, place: str, why: str) -> None:
    if not condition:
        raise _wrong(place, why)


def _node(json: Any, version: int, path: str) -> Node | str:
    """One module, checked."""
    place = path or "the model"
    _expect(isinstance(json, dict), place, "it is no table")
    if set(json) == {"same"} and version > 1:
        _expect(isinstance(json["same"], str), place, "'same' is no name")
        return str(json["same"])
    needed = {"class", "tensors", "attributes", "children"} | ({"settings", "counts"} if version > 1 else set())
    _expect(set(json) - {"arguments"} == needed, place, f"its entries aren't {', '.join(sorted(needed))}")
    _expect(_printable(json["class"]), place, "its class is no name")
    tables = {key: json[key] for key in sorted(set(json) - {"class"})}
    for key, table in tables.items():
        _expect(isinstance(table, dict) and all(map(_printable, table)), place, f"{key!r} is no table of names")
    for key, shape in json["tensors"].items():
        _expect("." not in key and _sizes(shape), place, f"{key!r} has no shape")
    for key, value in json["attributes"].items():
        _expect(_public(key) and (_finite(value) or _integers(value)), place, f"{key!r} is no number")
    for key, value in json.get("settings", {}).items():
        _expect(_public(key) and (isinstance(value, bool) or _finite(value)), place, f"{key!r} is no setting")
    for key, value in json.get("counts", {}).items():
        names = key.split(".")
        _expect(len(names) == 2 and all(map(_public, names)) and type(value) is int, place, f"{key!r} is no count")
    children = {}
    for key, child in json["children"].items():
        _expect("." not in key, place, f"{key!r} is no part's name")
        children[key] = _node(child, version, join(path, key))
    return Node(
        cls=json["class"],
        tensors={key: tuple(shape) for key, shape in json["tensors"].items()},
        attributes=json["attributes"],
        settings=json.get("settings", {}),
        counts=json.get("counts", {}),
        children=children,
        arguments=json.get("arguments"),
    )


def _printable(name: Any) -> bool:
    return isinstance(name, str) and bool(name) and name.isprintable()


def _public(name: str) -> bool:
    return name.isidentifier() and not name.startswith("_")


def _integers(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int for item in value)


def _sizes(value: Any) -> bool:
    return _integers(value) and all(size >= 0 for size in value)


def _finite(value: Any) -> bool:
    return type(value) is int or (type(value) is float and isfinite(value))
