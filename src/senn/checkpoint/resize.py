"""Resizing a fresh model to match a saved one: plan every change, then apply them together.

Surgery leaves three marks on a tree of modules, and a description may differ from a fresh model by these alone:

- a layer inserted before a linear map or convolution: `Sequential(new layers..., the map)` at the map's place;
- a block put after another one: `Sequential(block, copy)` at the block's place, or
- more children in a Sequential or ModuleList than before, each of the new ones like the child in front of it.

Layers of the table of constructors are built. Modules of other classes, of which the saved model has more than the
fresh one, are copies of those that this has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor, nn

from senn.checkpoint.align import align_children, without_shared
from senn.checkpoint.constructors import class_name
from senn.checkpoint.exchange import apply_exchange, fill_places, flat_weights
from senn.checkpoint.match import ModuleMatcher
from senn.checkpoint.module_builder import ModuleBuilder, add_child
from senn.checkpoint.schema import Description, Node, join
from senn.errors import SennError
from senn.surgery.plan_types import BEFORE

Way = Callable[[Node, nn.Module, str], nn.Module]
Failure = tuple[SennError, nn.Module]


class ModelResizer:
    """Plans how a given model becomes what is described, or how that is built from nothing.

    Args:
        description: of the saved model.
        given: the model that is to become like it; None to build one.

    Attributes:
        plan: what will be replaced.
    """

    def __init__(self, description: Description, given: nn.Module | None) -> None:
        self.description, self.given = description, given
        self._matcher = ModuleMatcher(description, given)
        self._builder = ModuleBuilder(self._matcher, given, self.fit)
        self.plan = self._matcher.plan
        # Pairs that were compared in vain. Without this memory, nested Sequentials are compared in exponentially many
        # ways. It holds the module too, which keeps its id from being used again.
        self._failed: dict[tuple[int, int], Failure] = {}

    def run(self) -> nn.Module:
        """Plan everything that has to change.

        Returns:
            The given model, not yet changed, or a new one without numbers.

        Raises:
            SennError: it can't be done; nothing was changed.
            UnsupportedError: a class that only its owner can build is missing.
        """
        # Nothing of the given model is touched while this runs: it only fills the plan.
        root = self.description.root
        if self.given is None:
            return self._builder.make(root, "")
        if self.fit(root, self.given, "") is not self.given:
            raise SennError(
                "something was put before or after the only layer of the saved model; load it without into"
            )
        self._check_shared()
        # A number in a configuration is rewritten if it equaled the length of a list that gets longer, and equals the
        # new length in the saved model.
        for holder, key, saved in self.plan.counts:
            if (holder[key], saved) in self.plan.longer:
                self.plan.slots.append((holder, key, saved))
        return self.given

    def _check_shared(self) -> None:
        """Check that the same places hold one module in both models."""
        found: dict[str, nn.Module] = {}
        paths: dict[int, str] = {}
        for path, module in self.plan.found:
            found[path] = module
            first = paths.setdefault(id(module), path)
            # Without numbers one is as good as two: an Identity that is a default argument, say.
            if first != path and not self._matcher.is_version_1 and module.state_dict():
                raise SennError(
                    f"{path} and {first} are one module in the given model, two in the saved one"
                )
        for path, same, module in self.plan.shared:
            if found.get(same) is not module and module.state_dict():
                raise SennError(
                    f"{path} and {same or 'the model'} are one module in the saved model, but not here"
                )

    def fit(
        self,
        node: Node,
        module: nn.Module,
        path: str,
    ) -> nn.Module:
        """Plan how a module becomes what is described.

        Args:
            node: the description.
            module: the module.
            path: of the module in the description.

        Returns:
            What belongs at the module's place: itself, or a Sequential around it.

        Raises:
            SennError: it can't become that; the plan is as it was.
        """
        key = (id(node), id(module))
        if key in self._failed:
            raise self._failed[key][0]
        savepoint, errors = self.plan.savepoint(), []
        for way in self._ways(node, module):
            try:
                return way(node, module, path)
            except SennError as error:
                self.plan.roll_back(savepoint)
                errors.append(error)
        # The first way is the plainest one, and so is its complaint.
        self._failed[key] = errors[0], module
        raise errors[0]

    def _ways(self, node: Node, module: nn.Module) -> list[Way]:
        """List the ways in which surgery may have made a module what is described, the plainest first."""
        is_sequence = node.cls == "torch.nn.Sequential" and len(node.children) > 1
        is_list = isinstance(module, nn.Sequential | nn.ModuleList)
        ways: list[Way] = []
        if not is_sequence or self._matcher.is_same_class(node, module):
            ways.append(self._with_same_children)
        if is_list and len(node.children) > len(module._modules):
            ways.append(self._with_more_children)
        if is_sequence:
            ways.append(self._wrapped)
        return ways

    def _with_same_children(
        self,
        node: Node,
        module: nn.Module,
        path: str,
    ) -> nn.Module:
        """Plan for a module with the same children, each of which may have changed."""
        self._matcher.match(node, module, path)
        self._matcher.match_numbers(node, module)
        children = self._matcher.children(module)
        differing = sorted(set(children) ^ set(node.children))
        if differing:
            raise SennError(
                f"{path or 'the model'} and the saved model don't both have a part {differing[0]!r}"
            )
        for name, part in children.items():
            child = node.children[name]
            # Compared in the end, when all modules were found.
            if isinstance(child, str):
                self.plan.shared.append((join(path, name), child, part))
                continue
            fitted = self.fit(child, part, join(path, name))
            if fitted is not part:
                self.plan.slots.append((module._modules, name, fitted))
        return module

    def _with_more_children(
        self,
        node: Node,
        module: nn.Module,
        path: str,
    ) -> nn.Module:
        """Plan for a container into which copies of its children were put, each after the one that it is like."""
        self._matcher.match(node, module, path)
        self._matcher.match_numbers(node, module)
        old = list(self._matcher.children(module).values())
        described = without_shared(node, path)
        numbers = align_children(described, old, fits=self._builder.fits, path=path)
        parts: dict[str, nn.Module] = {}
        last = -1
        for (name, child), number in zip(described, numbers, strict=True):
            place = join(path, name)
            is_copy = number == last
            if is_copy:
                parts[name] = self._builder.copy_like(child, place, old[number])
            else:
                parts[name] = self.fit(child, old[number], place)
            last = number
        # Replaced as a whole, so that the children keep their order.
        self.plan.longer.append((len(old), len(parts)))
        self.plan.slots.append((vars(module), "_modules", parts))
        return module

    def _wrapped(
        self,
        node: Node,
        module: nn.Module,
        path: str,
    ) -> nn.Module:
        """Plan a Sequential of a module and what was put before it (a linear map) or after it (a block)."""
        names = list(node.children)
        is_map = isinstance(module, BEFORE)
        original = names[-1] if is_map else names[0]
        chain = nn.Sequential()
        # The chains that surgery makes hold nothing themselves.
        if node.tensors:
            raise SennError(
                f"{path or 'the model'} is a {class_name(module)}, but a {node.cls} was saved"
            )
        for name, child in node.children.items():
            place = join(path, name)
            if isinstance(child, str):
                raise SennError(
                    f"{place} was added to the saved model and stands for another module"
                )
            if name == original:
                part = self.fit(child, module, place)
            else:
                part = self._builder.make(child, place, module)
                if isinstance(module, BEFORE):
                    # in place: the plan refers to these tensors
                    part.to(module.weight.dtype)
            add_child(chain, name, part, path)
        chain.training = module.training
        self.plan.found.append((path, chain))
        return chain


def resize_model(
    description: Description, tensors: Mapping[str, Tensor], into: nn.Module | None
) -> nn.Module:
    """Make a model what was saved.

    Args:
        description: of the saved model.
        tensors: its numbers, by full name.
        into: the model to resize in place; None to build one.

    Returns:
        `into`, or a new model.

    Raises:
        SennError: it can't become that; `into` is unchanged.
        UnsupportedError: a class that only its owner can build is missing.
    """
    resizer = ModelResizer(description, into)
    model = resizer.run()
    exchange = fill_places(resizer.plan.places, description, tensors)
    exchange.slots[:0] = resizer.plan.slots
    exchange.slots += flat_weights([module for _, module in resizer.plan.found], exchange.slots)
    apply_exchange(exchange)
    return model
