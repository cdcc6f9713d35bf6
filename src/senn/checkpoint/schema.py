"""Schema of `model.json`: the records `Description` and `Node`, and a parser that checks every value.

The file may be damaged or forged, so nothing in it is trusted: each value has the right type and range before anything
is built from it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn

from senn.checkpoint.model_files import DESCRIPTION, WEIGHTS
from senn.errors import SennError

Number = int | float | list[int]
Shape = tuple[int, ...]


@dataclass(frozen=True, eq=False, kw_only=True)
class Node:
    """One module of a saved model.

    Attributes:
        cls: its class, by the name that `class_name` gives.
        tensors: shapes of its own parameters and buffers.
        attributes: its whole numbers, rows of them, and eps: everything that growth may have rewritten.
        settings: its other numbers and switches, which are only compared.
        counts: numbers in its configuration (`config.num_layers`) that may count layers.
        children: its children; a string is the path of a module that stands here too.
        arguments: of its constructor, if the table of constructors has its class; None otherwise.
    """

    cls: str
    tensors: Mapping[str, Shape]
    attributes: Mapping[str, Number]
    settings: Mapping[str, bool | float]
    counts: Mapping[str, int]
    children: Mapping[str, Node | str]
    arguments: Mapping[str, Any] | None

    def walk(self, path: str = "") -> Iterator[tuple[str, Node]]:
        """Yield this module and all inside it with their paths, parents first."""
        yield path, self
        for name, child in self.children.items():
            if isinstance(child, Node):
                yield from child.walk(join(path, name))


@dataclass(frozen=True, eq=False, kw_only=True)
class Description:
    """A saved model without its numbers.

    Attributes:
        version: format version.
        weights_sha256: checksum of the file with the numbers.
        root: the model.
        shapes: full name -> shape, of all tensors.
        tied: full name -> first full name of the same tensor.
        frozen: full names of parameters that aren't trained.
        transient: full names of buffers outside the state; their numbers are saved in case growth resized them.
        extra: data that were saved with the model.
    """

    version: int
    weights_sha256: str
    root: Node
    shapes: Mapping[str, Shape]
    tied: Mapping[str, str]
    frozen: frozenset[str]
    transient: frozenset[str]
    extra: dict[str, Any]

    def check(self, stored: Mapping[str, Shape]) -> None:
        """Compare the shapes of the stored tensors with those described; tied ones are stored once.

        Args:
            stored: shapes by full name.

        Raises:
            SennError: a tensor is missing, unknown, or of another shape.
        """
        # An unknown tensor is an error as well: whoever added it expected something of it.
        for name, shape in self.shapes.items():
            found = stored.get(self.tied.get(name, name))
            if found is None:
                raise SennError(f"{WEIGHTS} lacks {name!r}")
            if tuple(found) != shape:
                both = f"{list(found)}, {DESCRIPTION} says {list(shape)}"
                raise SennError(f"{WEIGHTS} holds {name!r} of shape {both}")
        unknown = sorted(set(stored) - (set(self.shapes) - set(self.tied)))
        if unknown:
            raise SennError(f"{WEIGHTS} holds {unknown[0]!r}, of which {DESCRIPTION} knows nothing")


def join(path: str, name: str) -> str:
    """Return the full name of a child or tensor of a module.

    Args:
        path: of the module; empty for the model itself.
        name: of its child or tensor.
    """
    return f"{path}.{name}" if path else name


def own_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return a module's own parameters and buffers by name, without those that are None."""
    tensors = {**module._parameters, **module._buffers}
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}


def is_plain(tensor: Tensor) -> bool:
    """Return True for an ordinary dense tensor: not a subclass, nor quantized or sparse."""
    is_ordinary = type(tensor) in (Tensor, nn.Parameter) and tensor.layout is torch.strided
    return is_ordinary and not tensor.is_quantized


def parse(document: Mapping[str, Any]) -> Description:
    """Turn the JSON of `model.json` into records, and check every value.

    Args:
        document: the JSON, with the right keys and a version that can be read.

    Returns:
        The description.

    Raises:
        SennError: a value is of the wrong type, or the parts contradict each other.
    """
    # The recursion ends: a file nested too deeply fails as JSON, or by a RecursionError that `load` turns into words.
    root = _parse_node(document["model"], document["version"], "")
    if not isinstance(root, Node):
        raise _described_wrongly("the model", "it stands for another module")
    shapes: dict[str, Shape] = {}
    # By full name, as the file with the numbers has them.
    for path, node in root.walk():
        shapes |= {join(path, name): shape for name, shape in node.tensors.items()}
    transient = document.get("transient", [])
    if document["version"] == 1:  # which had no such entry: one that is there was put in by hand
        transient = []
    _check_tied(document["tied"], shapes)
    for key, names in (("frozen", document["frozen"]), ("transient", transient)):
        is_list = isinstance(names, list) and all(isinstance(name, str) for name in names)
        _expect(
            is_list and set(names) <= set(shapes), "the model", f"{key!r} is no list of its tensors"
        )
    _expect(isinstance(document["extra"], dict), "the model", "'extra' is no table")
    return Description(
        version=document["version"],
        # unchecked: whatever it is, it either equals the file's checksum or doesn't
        weights_sha256=document["weights_sha256"],
        root=root,
        shapes=shapes,
        tied=document["tied"],
        frozen=frozenset(document["frozen"]),
        transient=frozenset(transient),
        extra=document["extra"],
    )


def _check_tied(tied: Any, shapes: Mapping[str, Shape]) -> None:
    """Check that each further name leads to a first one, in one step, and that both have one shape."""
    _expect(isinstance(tied, dict), "the model", "'tied' is no table of names")
    for name, first in tied.items():
        is_known = (
            name in shapes and isinstance(first, str) and first in shapes and first not in tied
        )
        _expect(
            is_known and shapes[name] == shapes[first],
            "the model",
            f"{name!r} isn't tied to a tensor like it",
        )


def _described_wrongly(place: str, why: str) -> SennError:
    return SennError(f"{DESCRIPTION} describes {place} wrongly: {why}")


def _expect(condition: bool, place: str, why: str) -> None:
    if not condition:
        raise _described_wrongly(place, why)


def _parse_node(json: Any, version: int, path: str) -> Node | str:
    """Check the JSON of one module and of all inside it.

    Returns:
        The module, or the path of another one that stands here too.
    """
    place = path or "the model"
    _expect(isinstance(json, dict), place, "it is no table")
    if set(json) == {"same"} and version > 1:
        _expect(isinstance(json["same"], str), place, "'same' is no name")
        return str(json["same"])
    _check_entries(json, version, place)
    children: dict[str, Node | str] = {}
    for key, child in json["children"].items():
        # A dot would make the path of this child that of another module.
        _expect("." not in key, place, f"{key!r} is no part's name")
        children[key] = _parse_node(child, version, join(path, key))
    return Node(
        cls=json["class"],
        tensors={key: tuple(shape) for key, shape in json["tensors"].items()},
        attributes=json["attributes"],
        settings=json.get("settings", {}),
        counts=json.get("counts", {}),
        children=children,
        arguments=json.get("arguments"),
    )


def _check_entries(json: dict[str, Any], version: int, place: str) -> None:
    """Check the entries of one module, but for what is inside its children and its constructor's arguments."""
    needed = {"class", "tensors", "attributes", "children"}
    if version > 1:
        needed |= {"settings", "counts"}
    names = ", ".join(sorted(needed))
    _expect(set(json) - {"arguments"} == needed, place, f"its entries aren't {names}")
    # Names are shown in errors, so they must not hold control characters that a terminal would obey.
    _expect(_is_printable(json["class"]), place, "its class is no name")
    for key in sorted(set(json) - {"class"}):
        is_table = isinstance(json[key], dict) and all(map(_is_printable, json[key]))
        _expect(is_table, place, f"{key!r} is no table of names")
    for key, shape in json["tensors"].items():
        _expect("." not in key and _is_shape(shape), place, f"{key!r} has no shape")
    # Attributes are written back into modules: a private one could reach what a module is made of.
    for key, value in json["attributes"].items():
        is_number = _is_finite(value) or _is_row(value)
        _expect(is_public(key) and is_number, place, f"{key!r} is no number")
    for key, value in json.get("settings", {}).items():
        is_setting = isinstance(value, bool) or _is_finite(value)
        _expect(is_public(key) and is_setting, place, f"{key!r} is no setting")
    for key, value in json.get("counts", {}).items():
        holder, _, name = key.partition(".")
        is_count = is_public(holder) and is_public(name) and type(value) is int
        _expect(is_count, place, f"{key!r} is no count")


def _is_printable(name: Any) -> bool:
    return isinstance(name, str) and bool(name) and name.isprintable()


def is_public(name: str) -> bool:
    """Return True for an attribute's name that doesn't begin with an underscore."""
    return name.isidentifier() and not name.startswith("_")


def _is_row(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int for item in value)


def _is_shape(value: Any) -> bool:
    return _is_row(value) and all(size >= 0 for size in value)


def _is_finite(value: Any) -> bool:
    # not isinstance: True is an int
    return type(value) is int or (type(value) is float and isfinite(value))
