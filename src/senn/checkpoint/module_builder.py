"""Building the modules that a description has and a fresh model hasn't: by the table of constructors, or by copying."""

from __future__ import annotations

import copy
from collections.abc import Callable

from torch import nn

from senn.checkpoint.construct import construct
from senn.checkpoint.constructors import CONSTRUCTORS, HOLDERS, KNOWN
from senn.checkpoint.match import ModuleMatcher
from senn.checkpoint.model_files import DESCRIPTION
from senn.checkpoint.schema import Node, join, own_tensors
from senn.errors import SennError, UnsupportedError

Fit = Callable[[Node, nn.Module, str], nn.Module]


class ModuleBuilder:
    """Makes modules as they are described.

    Args:
        matcher: notes what is made in its plan.
        given: the model that is to become like the saved one; None if all is built.
        fit: plans how a module becomes what a node describes; raises a SennError and forgets its plans if it can't.
    """

    def __init__(
        self,
        matcher: ModuleMatcher,
        given: nn.Module | None,
        fit: Fit,
    ) -> None:
        self.matcher, self.given, self._fit = matcher, given, fit

    def make(
        self,
        node: Node,
        path: str,
        near: nn.Module | None = None,
    ) -> nn.Module:
        """Make a module as described; its tensors are without memory until the plan is carried out.

        Args:
            node: the description.
            path: of the module.
            near: the module of the given model next to which it stands; None if all is built.

        Returns:
            The module, in the mode of the one next to it, else in eval mode.

        Raises:
            UnsupportedError: it isn't made of layers of the table, nor is there one like it in the given model.
            SennError: it is described wrongly.
        """
        cls = KNOWN.get(node.cls)
        if cls is None or (cls in CONSTRUCTORS and node.arguments is None):
            return self.copy_like(node, path, near)
        tensors = sum(len(inner.tensors) for _, inner in node.walk())
        try:
            module = construct(
                node.cls, node.arguments, parts=node.children, shapes=node.tensors, tensors=tensors
            )
        except SennError as error:
            raise SennError(
                f"{DESCRIPTION} describes {path or 'the model'} wrongly: {error}"
            ) from error
        self._check_built(node, module, path)
        self.matcher.match(node, module, path)
        for name, child in node.children.items():
            place = join(path, name)
            # The first place was made before: parents and earlier siblings come first.
            if isinstance(child, str):
                part = self._made_before(child, place)
            elif cls in HOLDERS or child.cls in KNOWN:
                part = self.make(child, place, near)
            else:
                # A class that only this layer's constructor makes, such as the output map of nn.MultiheadAttention.
                part = self._fit(child, module.get_submodule(name), place)
            add_child(module, name, part, path)
        # A model built from nothing is for predictions; what is inserted into a given one follows its mode.
        module.train(near is not None and near.training)
        return module

    def _check_built(
        self,
        node: Node,
        module: nn.Module,
        path: str,
    ) -> None:
        """Compare what a constructor made with what is described: tensors and children follow from its arguments."""
        wrong = f"{path or 'the model'} can't be built from {DESCRIPTION}: a {node.cls} with these arguments has"
        shapes = {name: tuple(tensor.shape) for name, tensor in own_tensors(module).items()}
        # A forged or outdated file may describe a layer that no constructor makes: it must not come out half right.
        for name in sorted(set(shapes) | set(node.tensors)):
            if shapes.get(name) != node.tensors.get(name):
                raise SennError(f"{wrong} another {name!r}")
        made = set(self.matcher.children(module))
        if KNOWN[node.cls] not in HOLDERS and set(node.children) != made:
            raise SennError(f"{wrong} other parts")

    def _made_before(self, path: str, place: str) -> nn.Module:
        """Find the module that is said to stand at a second place."""
        if not path or place.startswith(f"{path}."):
            raise SennError(f"{DESCRIPTION} describes {place} wrongly: it would hold itself")
        for known, module in self.matcher.plan.found:
            if known == path:
                return module
        raise SennError(
            f"{DESCRIPTION} describes {place} wrongly: there is no module {path!r} before it"
        )

    def copy_like(
        self,
        node: Node,
        path: str,
        near: nn.Module | None,
    ) -> nn.Module:
        """Copy a module of the given model, and plan how the copy becomes what is described.

        Args:
            node: the description.
            path: of the new module.
            near: the module next to which it stands, whose parts are tried first; None if all is built.

        Returns:
            The copy, or a Sequential around it.

        Raises:
            UnsupportedError: nothing in the given model is like it.
        """
        if self.given is None:
            raise UnsupportedError(
                f"{path or 'the model'} is a {node.cls}, which senn can't build by itself; "
                "build one and pass it as into"
            )
        # A block is most like the one next to it, and what is in its settings isn't in the description.
        neighbors = () if near is None else near.modules()
        for module in [*neighbors, *self.given.modules()]:
            if self.matcher.is_same_class(node, module) and self.fits(node, module, path):
                try:
                    # Everything comes along that a description doesn't have: settings, hooks, an owner's attributes.
                    twin = copy.deepcopy(module)
                except Exception as error:  # it is its owner's code that failed
                    raise UnsupportedError(
                        f"the {node.cls} for {path} can't be copied: {error}"
                    ) from error
                return self._fit(node, twin, path)
        raise UnsupportedError(
            f"{path} is a {node.cls} that was added to the saved model; senn can't build one, and the given model "
            "has none like it"
        )

    def fits(
        self,
        node: Node,
        module: nn.Module,
        path: str,
    ) -> bool:
        """Return True if a module can become what is described; the plan stays as it is.

        Args:
            node: the description.
            module: the module.
            path: of the module in the description.
        """
        plan = self.matcher.plan
        savepoint = plan.savepoint()
        try:
            self._fit(node, module, path)
        except SennError:
            return False
        plan.roll_back(savepoint)
        return True


def add_child(
    parent: nn.Module,
    name: str,
    child: nn.Module,
    path: str,
) -> None:
    """Add a child under the name that a description gives it.

    Args:
        parent: a module that is being made.
        name: of the child.
        child: the module.
        path: of the parent.

    Raises:
        SennError: it is no name that a child can have.
    """
    try:
        parent.add_module(name, child)
    except (KeyError, TypeError) as error:
        raise SennError(
            f"{DESCRIPTION} describes {path or 'the model'} wrongly: {name!r} is no part's name"
        ) from error
