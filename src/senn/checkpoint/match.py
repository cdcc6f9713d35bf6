"""Comparing one module with its description, without its children, and planning what to replace in it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from senn.checkpoint.constructors import class_name, is_named
from senn.checkpoint.describe import plain_attributes
from senn.checkpoint.exchange import ResizePlan, TensorPlace
from senn.checkpoint.schema import Description, Node, Shape, join, own_tensors
from senn.errors import SennError


class ModuleMatcher:
    """Compares modules with nodes of a description, and notes in a plan what differs.

    Args:
        description: of the saved model.
        given: the model that is to become like it; None if all is built.

    Attributes:
        plan: what will be replaced.
    """

    def __init__(self, description: Description, given: nn.Module | None) -> None:
        self.description = description
        self.plan = ResizePlan()
        # Version 1 named classes outside its table by their bare names, and wrote a shared module once for each place.
        self.is_version_1 = description.version == 1
        tensors = [] if given is None else [*given.parameters(), *given.buffers()]
        self._own_ids = {id(tensor) for tensor in tensors}
        # Where inserted layers go; a model on the meta device has no device that would do.
        self._device = next(
            (tensor.device for tensor in tensors if not tensor.is_meta), torch.device("cpu")
        )

    def is_same_class(self, node: Node, module: nn.Module) -> bool:
        """Return True if a node describes a module of this class.

        Args:
            node: the description.
            module: any module.
        """
        return is_named(module, node.cls, bare=self.is_version_1)

    def children(self, module: nn.Module) -> dict[str, nn.Module]:
        """Return a module's children by name, as the description's version counts them.

        Version 1 wrote a child with two names once.
        """
        if self.is_version_1:
            return dict(module.named_children())
        return {name: child for name, child in module._modules.items() if child is not None}

    def match(
        self,
        node: Node,
        module: nn.Module,
        path: str,
    ) -> None:
        """Compare a module's class and the names of its tensors, and plan to replace these.

        Args:
            node: the description.
            module: the module.
            path: of the module in the description.

        Raises:
            SennError: they differ.
        """
        place = path or "the model"
        if not self.is_same_class(node, module):
            raise SennError(f"{place} is a {class_name(module)}, but a {node.cls} was saved")
        # Noted before the tensors, so that parents come before their children.
        self.plan.found.append((path, module))
        transient = {
            name for name in node.tensors if join(path, name) in self.description.transient
        }
        own = own_tensors(module)
        state = set(own) - module._non_persistent_buffers_set
        differing = sorted(state ^ (set(node.tensors) - transient))
        if differing:
            raise SennError(
                f"{place} and the saved model don't both have a tensor {differing[0]!r}"
            )
        for name, old in own.items():
            # A fresh model may lack a transient buffer: its owner's code often makes it in the first forward.
            if name in state or name in transient:
                self._match_tensor(module, name, old, path, node.tensors[name])

    def _match_tensor(
        self,
        module: nn.Module,
        name: str,
        old: Tensor,
        path: str,
        shape: Shape,
    ) -> None:
        """Plan to replace a tensor by one of another size, but of as many dimensions."""
        if old.dim() != len(shape):
            place = path or "the model"
            dims = old.dim()
            raise SennError(
                f"{place}: tensor {name!r} has {dims} dimensions, saved were {list(shape)}"
            )
        is_parameter = name in module._parameters
        self.plan.places.append(
            TensorPlace(
                holder=module._parameters if is_parameter else module._buffers,
                key=name,
                name=join(path, name),
                old=old,
                device=self._device if old.is_meta else old.device,
                fresh=id(old) in self._own_ids,
            )
        )

    def match_numbers(self, node: Node, module: nn.Module) -> None:
        """Plan to rewrite a module's numbers that growth may have rewritten.

        Args:
            node: the description.
            module: a module of the caller's model.
        """
        attributes = vars(module)
        for name, value in node.attributes.items():
            old = attributes.get(name)
            new = _row_like(old, value) if isinstance(value, list) else value
            # A value of another type here is a setting that the owner chose, no size.
            if type(new) is type(old) and new != old:
                self.plan.slots.append((attributes, name, new))
        # Whether these are rewritten is known once all lists were compared.
        for name, value in node.counts.items():
            holder, _, key = name.partition(".")
            inner = getattr(attributes.get(holder), "__dict__", None)
            if type(inner) is dict and type(inner.get(key)) is int:
                self.plan.counts.append((inner, key, value))


def _row_like(old: Any, new: list[int]) -> Any:
    """Return a row of whole numbers as the same type of row as the old one; None if the old one is none."""
    is_row = type(old) in (tuple, list, torch.Size)
    if is_row and all(type(item) is int for item in old):
        return type(old)(new)
    return None


def count_disagreements(node: Node, module: nn.Module) -> int:
    """Count the settings in which a module, and the modules in it by name, differ from a description.

    Args:
        node: the description.
        module: a module that fits it.

    Returns:
        How many switches and floats differ.
    """
    settings = plain_attributes(module)[1]
    count = sum(node.settings.get(name, value) != value for name, value in settings.items())
    for name, child in node.children.items():
        part = module._modules.get(name)
        if isinstance(child, Node) and part is not None:
            count += count_disagreements(child, part)
    return count
