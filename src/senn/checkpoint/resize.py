"""Making a fresh model what was saved: everything is compared and planned first, then exchanged at once.

Surgery leaves three marks on a tree of modules, and these are what a description may differ by from a fresh model:

- a layer inserted before a linear map or convolution: `Sequential(new layers..., the map)` at the map's place;
- a block put after another one: `Sequential(block, copy)` at the block's place, or
- more parts in a Sequential or ModuleList than there were, some of them like the part before.

Layers of the table are built; modules of other classes that a fresh model has too few of are copies of those it has.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from senn.checkpoint.constructors import CONSTRUCTORS, HOLDERS, KNOWN, class_name, construct, is_named
from senn.checkpoint.describe import plain_attributes
from senn.checkpoint.exchange import ResizePlan, TensorPlace, exchange, filled, flat_weights
from senn.checkpoint.model_files import DESCRIPTION
from senn.checkpoint.schema import Description, Node, join, own_tensors
from senn.errors import SennError, UnsupportedError
from senn.surgery.plan import BEFORE


class ModelResizer:
    """A description, held against a given model or built from nothing.

    Args:
        description: of the saved model.
        given: the model that is to become like it, or None.
    """

    def __init__(self, description: Description, given: nn.Module | None) -> None:
        self.description, self.given, self.plan = description, given, ResizePlan()
        self._bare = description.version == 1  # classes outside the old table had no home in their names
        self._failed: dict[tuple[int, int], tuple[SennError, nn.Module]] = {}
        held = [] if given is None else [*given.parameters(), *given.buffers()]
        self._device = next((tensor.device for tensor in held if not tensor.is_meta), torch.device("cpu"))
        self._old = {id(tensor) for tensor in held}

    # ---- a module that is there

    def fit(self, node: Node, module: nn.Module, path: str) -> nn.Module:
        """Plan how a module becomes what is described.

        Returns:
            What belongs at the module's place: itself, or a Sequential around it.

        Raises:
            SennError: it can't; the plan is as it was.
        """
        key = (id(node), id(module))
        if key in self._failed:
            raise self._failed[key][0]
        sequence = node.cls == "torch.nn.Sequential" and len(node.children) > 1
        ways: list[Callable[[Node, nn.Module, str], nn.Module]] = []
        if not sequence or self._same_class(node, module):
            ways.append(self._as_it_is)
        if isinstance(module, nn.Sequential | nn.ModuleList) and len(node.children) > len(module):
            ways.append(self._with_more_parts)
        if sequence:
            ways.append(self._wrapped)
        mark, errors = self.plan.savepoint(), []
        for way in ways:
            try:
                return way(node, module, path)
            except SennError as error:
                self.plan.back_to(mark)
                errors.append(error)
        self._failed[key] = errors[0], module  # holding the module keeps its id from being used again
        raise errors[0]

    def _same_class(self, node: Node, module: nn.Module) -> bool:
        return is_named(module, node.cls, bare=self._bare)

    def _itself(self, node: Node, module: nn.Module, path: str) -> None:
        """Class and tensors of a module, without its parts."""
        place = path or "the model"
        if not self._same_class(node, module):
            raise SennError(f"{place} is a {class_name(module)}, but a {node.cls} was saved")
        self.plan.found.append((path, module))
        transient = {name for name in node.tensors if join(path, name) in self.description.transient}
        own = own_tensors(module)
        state = set(own) - module._non_persistent_buffers_set
        if differing := sorted(state ^ (set(node.tensors) - transient)):
            raise SennError(f"{place} and the saved model don't both have a tensor {differing[0]!r}")
        for name, old in own.items():
            if name in state or name in transient:  # a fresh model may still lack what is made in its first forward
                self._tensor(module, name, old, path, node.tensors[name])

    def _numbers(self, node: Node, module: nn.Module) -> None:
        """The numbers of a module that growth may have rewritten."""
        held = vars(module)
        for name, value in node.attributes.items():
            old_value = held.get(name)
            new = _row_like(old_value, value) if isinstance(value, list) else value
            # What is of another kind here is no size but a setting, and those stay as the owner chose them.
            if type(new) is type(old_value) and new != old_value:
                self.plan.slots.append((held, name, new))
        for name, value in node.counts.items():
            holder, _, key = name.partition(".")
            inner = getattr(held.get(holder), "__dict__", None)
            if type(inner) is dict and type(inner.get(key)) is int:
                self.plan.counts.append((inner, key, value))

    def _tensor(self, module: nn.Module, name: str, old: Tensor, path: str, shape: tuple[int, ...]) -> None:
        if old.dim() != len(shape):
            place = path or "the model"
            raise SennError(f"{place}: tensor {name!r} has {old.dim()} dimensions, saved were {list(shape)}")
        holder = module._parameters if name in module._parameters else module._buffers
        device = self._device if old.is_meta else old.device
        fresh = id(old) in self._old
        self.plan.places.append(
            TensorPlace(holder=holder, key=name, name=join(path, name), old=old, device=device, fresh=fresh)
        )

    def _as_it_is(self, node: Node, module: nn.Module, path: str) -> nn.Module:
        """The same parts, each of which may have changed."""
        self._itself(node, module, path)
        self._numbers(node, module)
        parts = self._parts(module)
        if differing := sorted(set(parts) ^ set(node.children)):
            raise SennError(f"{path or 'the model'} and the saved model don't both have a part {differing[0]!r}")
        for name, part in parts.items():
            child = node.children[name]
            if isinstance(child, str):
                self.plan.shared.append((join(path, name), child, part))
                continue
            fitting = self.fit(child, part, join(path, name))
            if fitting is not part:
                self.plan.slots.append((module._modules, name, fitting))
        return module

    def _parts(self, module: nn.Module) -> dict[str, nn.Module]:
        """A module's parts; formerly, one under two names was written once."""
        if self._bare:
            return dict(module.named_children())
        return {name: part for name, part in module._modules.items() if part is not None}

    def _with_more_parts(self, node: Node, module: nn.Module, path: str) -> nn.Module:
        """A container into which copies of some of its parts were put, each after the one it is like."""
        self._itself(node, module, path)
        self._numbers(node, module)
        old, parts = list(self._parts(module).values()), []
        last = -1
        for (name, child), number in zip(_blocks(node, path), self._sources(node, old, path), strict=True):
            place = join(path, name)
            parts.append((name, self._twin(child, place, old[number]) if number == last
                          else self.fit(child, old[number], place)))  # fmt: skip
            last = number
        self.plan.longer.append((len(old), len(parts)))
        self.plan.slots.append((vars(module), "_modules", dict(parts)))
        return module

    def _sources(self, node: Node, old: list[nn.Module], path: str) -> list[int]:
        """For each part of the description, the number of the old part that it is or is a copy of.

        The numbers rise by one or stay. Where several sequences fit, the one is taken in which most settings agree.
        """
        spare = len(node.children) - len(old)
        best: dict[int, tuple[int, list[int]]] = {-1: (0, [])}
        for index, (name, child) in enumerate(_blocks(node, path)):
            now: dict[int, tuple[int, list[int]]] = {}
            for number in range(max(0, index - spare), min(index + 1, len(old))):
                # Being the next part is preferred to being one more copy of the part before.
                before = [best[earlier] for earlier in (number - 1, number) if earlier in best]
                if number in best and not _is_block(child):
                    before = before[:-1]
                if before and self._fits(child, old[number], join(path, name)):
                    cost, chosen = min(before, key=lambda one: one[0])
                    now[number] = cost + _disagreement(child, old[number]), [*chosen, number]
            best = now
        if len(old) - 1 not in best:
            raise SennError(f"{path or 'the model'} has {len(old)} parts, but {len(node.children)} others were saved")
        return best[len(old) - 1][1]

    def _fits(self, node: Node, module: nn.Module, path: str) -> bool:
        mark = self.plan.savepoint()
        try:
            self.fit(node, module, path)
        except SennError:
            return False
        self.plan.back_to(mark)
        return True

    def _wrapped(self, node: Node, module: nn.Module, path: str) -> nn.Module:
        """A Sequential of the module and what was put before it (a linear map) or after it (a block)."""
        names = list(node.children)
        original = names[-1] if isinstance(module, BEFORE) else names[0]
        chain = nn.Sequential()
        if node.tensors:
            raise SennError(f"{path or 'the model'} is a {class_name(module)}, but a {node.cls} was saved")
        for name, child in node.children.items():
            place = join(path, name)
            if isinstance(child, str):
                raise SennError(f"{place} was added to the saved model and stands for another module")
            part = self.fit(child, module, place) if name == original else self.make(child, place, module)
            if name != original and isinstance(module, BEFORE):
                part.to(module.weight.dtype)  # in place: what is planned holds these tensors
            _add(chain, name, part, path)
        chain.training = module.training
        self.plan.found.append((path, chain))
        return chain

    # ---- a module that is new

    def make(self, node: Node, path: str, near: nn.Module | None = None) -> nn.Module:
        """A module as described.

        Args:
            node: the description.
            path: of the module.
            near: the part of the given model beside which it stands.

        Raises:
            UnsupportedError: it isn't made of layers of the table, nor is there one like it in the given model.
            SennError: it is described wrongly.
        """
        cls = KNOWN.get(node.cls)
        if cls is None or (cls in CONSTRUCTORS and node.arguments is None):
            return self._twin(node, path, near)
        try:
            tensors = sum(len(inner.tensors) for _, inner in node.walk())
            module = construct(node.cls, node.arguments, node.children, node.tensors, tensors)
        except SennError as error:
            raise SennError(f"{DESCRIPTION} describes {path or 'the model'} wrongly: {error}") from error
        self._check_built(node, module, path)
        self._itself(node, module, path)
        for name, child in node.children.items():
            place = join(path, name)
            if isinstance(child, str):
                part = self._made_before(child, place)
            elif cls in HOLDERS or child.cls in KNOWN:
                part = self.make(child, place, near)
            else:  # a part that only this layer has
                part = self.fit(child, module.get_submodule(name), place)
            _add(module, name, part, path)
        module.train(near is not None and near.training)
        return module

    def _check_built(self, node: Node, module: nn.Module, path: str) -> None:
        """Tensors and parts, which follow from the constructor's arguments as numbers do, must be those described."""
        wrong = f"{path or 'the model'} can't be built from {DESCRIPTION}: a {node.cls} with these arguments has"
        shapes = {name: tuple(tensor.shape) for name, tensor in own_tensors(module).items()}
        for name in sorted(set(shapes) | set(node.tensors)):
            if shapes.get(name) != node.tensors.get(name):
                raise SennError(f"{wrong} another {name!r}")
        if KNOWN[node.cls] not in HOLDERS and set(node.children) != set(self._parts(module)):
            raise SennError(f"{wrong} other parts")

    def _made_before(self, path: str, place: str) -> nn.Module:
        """The module that is said to stand at a second place."""
        if not path or place.startswith(f"{path}."):
            raise SennError(f"{DESCRIPTION} describes {place} wrongly: it would hold itself")
        for known, module in self.plan.found:
            if known == path:
                return module
        raise SennError(f"{DESCRIPTION} describes {place} wrongly: there is no module {path!r} before it")

    def _twin(self, node: Node, path: str, near: nn.Module | None) -> nn.Module:
        """A copy of a module of the given model, made what is described."""
        if self.given is None:
            raise UnsupportedError(
                f"{path or 'the model'} is a {node.cls}, which senn can't build by itself; "
                "build one and pass it as into"
            )
        for module in [*(() if near is None else near.modules()), *self.given.modules()]:
            if self._same_class(node, module) and self._fits(node, module, path):
                try:
                    twin = copy.deepcopy(module)
                except Exception as error:  # it is its owner's code that failed
                    raise UnsupportedError(f"the {node.cls} for {path} can't be copied: {error}") from error
                return self.fit(node, twin, path)
        raise UnsupportedError(
            f"{path} is a {node.cls} that was added to the saved model; senn can't build one, and the given model "
            "has none like it"
        )

    # ---- everything

    def run(self) -> nn.Module:
        """Plan it all.

        Returns:
            The given model, not yet changed, or a new one, without its numbers.

        Raises:
            SennError: it can't be done; nothing was changed.
        """
        root = self.description.root
        if self.given is None:
            return self.make(root, "")
        if self.fit(root, self.given, "") is not self.given:
            raise SennError("something was put before or after the only layer of the saved model; load it without into")
        found: dict[str, nn.Module] = {}
        places: dict[int, str] = {}
        for path, module in self.plan.found:
            found[path] = module
            if places.setdefault(id(module), path) != path and not self._bare:
                raise SennError(
                    f"{path} and {places[id(module)]} are one module in the given model, two in the saved one"
                )
        for path, same, module in self.plan.shared:
            if found.get(same) is not module:
                raise SennError(f"{path} and {same or 'the model'} are one module in the saved model, but not here")
        # A number in a configuration is rewritten if it counted the parts of something that now has more.
        self.plan.slots += [slot for slot in self.plan.counts if (slot[0][slot[1]], slot[2]) in self.plan.longer]
        return self.given


def resize_model(description: Description, tensors: Mapping[str, Tensor], into: nn.Module | None) -> nn.Module:
    """The model that was described, with its numbers: the given one, or a new one.

    Raises:
        SennError: it can't be; the given one is unchanged.
    """
    fitting = ModelResizer(description, into)
    model = fitting.run()
    slots = [*fitting.plan.slots, *filled(fitting.plan.places, description, tensors)]
    exchange([*slots, *flat_weights([module for _, module in fitting.plan.found], slots)])
    return model


def _row_like(old: Any, new: list[int]) -> Any:
    """The numbers as a row of the old one's kind."""
    if type(old) in (tuple, list, torch.Size) and all(type(item) is int for item in old):
        return type(old)(new)
    return None


def _add(parent: nn.Module, name: str, part: nn.Module, path: str) -> None:
    try:
        parent.add_module(name, part)
    except (KeyError, TypeError) as error:
        raise SennError(f"{DESCRIPTION} describes {path or 'the model'} wrongly: {name!r} is no part's name") from error


def _blocks(node: Node, path: str) -> list[tuple[str, Node]]:
    """A container's parts, none of which stands for another module."""
    parts = [(name, child) for name, child in node.children.items() if isinstance(child, Node)]
    if len(parts) < len(node.children):
        raise SennError(f"{path or 'the model'} shares some of its parts, so that none can be added")
    return parts


def _is_block(node: Node) -> bool:
    """Whether it can be a copy of another part: blocks have parts themselves."""
    return bool(node.children)


def _disagreement(node: Node, module: nn.Module) -> int:
    """In how many settings a module and those in it, by name, differ from what was saved."""
    settings = plain_attributes(module)[1]
    count = sum(node.settings.get(name, value) != value for name, value in settings.items())
    for name, child in node.children.items():
        part = module._modules.get(name)
        if isinstance(child, Node) and part is not None:
            count += _disagreement(child, part)
    return count
