"""What `model.json` says about a model: records, made from the file's JSON, which is checked whole."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import isfinite, prod
from typing import Any

import torch
from torch import Tensor, nn

from senn.checkpoint.model_files import DESCRIPTION, WEIGHTS
from senn.errors import SennError

Number = int | float | list[int]


@dataclass(frozen=True, eq=False, kw_only=True)
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


@dataclass(frozen=True, eq=False, kw_only=True)
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

    @property
    def entries(self) -> int:
        """Of all tensors together."""
        return sum(prod(shape) for shape in self.shapes.values())

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


def is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is an ordinary dense one: no subclass, quantised or sparse."""
    ordinary = type(tensor) in (Tensor, nn.Parameter) and tensor.layout is torch.strided
    return ordinary and not tensor.is_quantized


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
        _expect(is_public(key) and (_finite(value) or _integers(value)), place, f"{key!r} is no number")
    for key, value in json.get("settings", {}).items():
        _expect(is_public(key) and (isinstance(value, bool) or _finite(value)), place, f"{key!r} is no setting")
    for key, value in json.get("counts", {}).items():
        names = key.split(".")
        _expect(len(names) == 2 and all(map(is_public, names)) and type(value) is int, place, f"{key!r} is no count")
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


def is_public(name: str) -> bool:
    """Whether an attribute of that name is its owner's, for all to use."""
    return name.isidentifier() and not name.startswith("_")


def _integers(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int for item in value)


def _sizes(value: Any) -> bool:
    return _integers(value) and all(size >= 0 for size in value)


def _finite(value: Any) -> bool:
    return type(value) is int or (type(value) is float and isfinite(value))
