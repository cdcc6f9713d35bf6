"""Optimizer state in any nesting, carried to the new sizes of its parameters.

Every optimizer's own state belongs to the parameters that are its keys. What else an optimizer or its wrapper holds
belongs to a parameter if that is its key (the object, its `id`, its name), or its number in a list as long as a group.
A tensor of a former shape that belongs to nobody is refused: it would be wrong in the next step or, worse, in a later.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import LBFGS

from senn.errors import UnsupportedError
from senn.surgery.contents_log import ContentsLog
from senn.surgery.optimizer_layers import (
    OptimizerLayers,
    contents,
    made_anew,
    memory_of,
    reachable,
    tensors_in,
)
from senn.surgery.starts import MISSING, Starts, Views
from senn.surgery.state_layout import Dims, Uncarried, carried, dims_by_size, dims_by_trial
from senn.surgery.undo import Resized

_HINT = "; on_uncarried_state='restart' starts the state of such parameters anew"
_MUCH_ALIKE = 0.5
"""Cosine with its parameter above which a tensor is taken for a copy or an average of it: moments have one near 0."""


class NestedState:
    """Carries all state of optimizers over one change of a model.

    Args:
        layers: the optimizers.
        changes: of the resized parameters, which have their new values.
        names: full names of the parameters.
        starts: trials of the optimizers.
        log: records what is changed.
        restart: True to start a parameter's state anew where it can't be carried.

    Attributes:
        restarted: names of parameters whose state was started anew.
    """

    def __init__(
        self,
        layers: OptimizerLayers,
        changes: Mapping[nn.Parameter, Resized],
        names: Mapping[nn.Parameter, str],
        *,
        starts: Starts,
        log: ContentsLog,
        restart: bool,
    ) -> None:
        self._layers, self.changes, self.names = layers, changes, names
        self._starts, self.log, self._restart = starts, log, restart
        self.held = layers.parameters
        self._by_id = {id(one): one for one in self.held}
        self._by_name = {name: one for one, name in names.items()}
        self._lists: list[list[nn.Parameter]] = [group["params"] for group in layers.groups]
        self._lists.append([*self.held])
        self.done: dict[int, tuple[Any, Any]] = {}
        self.restarted: list[str] = []

    def carry(self) -> None:
        """Carry everything.

        Raises:
            UnsupportedError: something can't be carried; the caller restores the log.
        """
        for number, (optimizer, state) in enumerate(self._layers.states):
            if isinstance(optimizer, LBFGS):
                continue
            for parameter in [one for one in state if one in self.changes]:
                what = f"the state of {type(optimizer).__name__}"
                self._carry_own(number, state, parameter, what)
        for given in self._layers.given:
            _Walk(self, what=type(given).__name__).visit(given)

    def _carry_own(
        self, number: int, state: dict[Any, Any], parameter: nn.Parameter, what: str
    ) -> None:
        """Carry one entry of an optimizer's own state."""
        at = self._starts.views(number, parameter)
        peers = [(one, entry) for one, entry in state.items() if isinstance(one, nn.Parameter)]
        if getattr(type(self._layers.states[number][0]), "step_takes_data", False):
            peers = []  # without a trial, a momentum that leads from zero would be taken for an average
        rescaled = self._starts.depends_on_gradients(number)
        walk = _Walk(self, what=what, owner=parameter, peers=peers, rescaled=rescaled)
        try:
            new = walk.visit(state[parameter], at)
        except Uncarried as error:
            starts_itself = isinstance(at[0], Mapping) and bool(at[0])
            if not (self._restart and starts_itself):
                raise UnsupportedError(
                    f"{walk.where} {error}{_HINT if starts_itself else ''}"
                ) from None
            self.log.keep(state)
            del state[parameter]  # the next step starts it, as it starts any parameter's
            self.restarted.append(self.names.get(parameter, "?"))
            return
        if new is not state[parameter]:
            self.log.keep(state)
            state[parameter] = new

    def drop(self, cache: Any) -> None:
        """Drop what an optimizer holds of changed parameters and makes anew by itself."""
        for held in reachable(cache):
            for key in [*held] if isinstance(held, MutableMapping) else ():
                if isinstance(key, nn.Parameter) and key in self.changes:
                    self.log.keep(held)
                    del held[key]

    # -- whose something is

    def owners(self, value: Any, items: Mapping[Any, Any], place: Any) -> dict[Any, nn.Parameter]:
        """Return the parameters that entries of a container belong to, by key; empty if to none.

        Args:
            value: the container.
            items: its entries.
            place: key under which the container itself is held.
        """
        numbered = isinstance(value, list | tuple) or hasattr(value, "maxlen")
        if isinstance(value, Mapping):
            found = {key: self._owner(key, items[key]) for key in items}
            if any(one is not None for one in found.values()):
                return {key: one for key, one in found.items() if one is not None}
            numbered = [*items] == [*range(len(items))]
        if not numbered or not items:
            return {}
        fitting = [one for one in self._lists if self._is_parallel([*items.values()], one)]
        # Groups may be alike: then the container's own place among others tells.
        here = self._lists[place] if type(place) is int and place < len(self._lists) else None
        own = next((one for one in fitting if one is here), fitting[0] if fitting else [])
        return dict(zip(items, own, strict=False))

    def _owner(self, key: Any, item: Any) -> nn.Parameter | None:
        if isinstance(key, tuple):
            found = [self._owner(one, item) for one in key if isinstance(one, Tensor)]
            return found[0] if found else None
        if isinstance(key, nn.Parameter):
            return key if key in self.held else None
        if type(key) is int:
            return self._by_id.get(key)
        named = self._by_name.get(key) if isinstance(key, str) else None
        return named if named is not None and self._is_parallel([item], [named]) else None

    def _is_parallel(self, items: Sequence[Any], parameters: Sequence[nn.Parameter]) -> bool:
        """Tell whether all tensors in a list of entries have the former shapes of parameters."""
        if len(items) != len(parameters):
            return False
        found = False
        for item, parameter in zip(items, parameters, strict=True):
            if item is parameter:
                continue
            shapes = {one.shape for one in tensors_in(item) if one.dim()}
            if shapes - {self.former(parameter).shape}:
                return False
            found = found or bool(shapes)
        return found

    def former(self, parameter: nn.Parameter) -> Tensor:
        """Return a parameter's values before the change."""
        change = self.changes.get(parameter)
        return parameter.detach() if change is None else change.old.values

    def check_loose(self, tensor: Tensor, where: str) -> None:
        """Check that a tensor that belongs to no parameter has nothing to do with the former shapes.

        Raises:
            UnsupportedError: it looks like one of a resized parameter.
        """
        if not tensor.dim():
            return
        for parameter, change in self.changes.items():
            old = change.old.values
            # One number has the shape of one unit's bias, and is a step size or a count much more often.
            is_alike = tensor.shape == old.shape and tensor.numel() > 1
            if is_alike or _share_memory(tensor, old):
                raise UnsupportedError(
                    f"{where} has the former shape of '{self.names.get(parameter, '?')}', and nothing tells to which "
                    "parameter it belongs"
                )
        for parameters in self._lists:
            total = sum(self.former(one).numel() for one in parameters)
            if (
                total > 1
                and tensor.shape == (total,)
                and any(one in self.changes for one in parameters)
            ):
                raise UnsupportedError(
                    f"{where} has an entry for each of the {total} numbers of all parameters in one row, which can't "
                    "be carried by position"
                )


class _Walk:
    """One way through nested state, which carries its tensors.

    Args:
        nested: what knows the change.
        what: what is walked, to continue an error message.
        owner: the parameter that everything inside belongs to; None if that isn't known yet.
        peers: entries like the one walked, with their owners.
        rescaled: True if a trial shows what new entries start with at the scale of gradients that were made up.
    """

    def __init__(
        self,
        nested: NestedState,
        *,
        what: str,
        owner: nn.Parameter | None = None,
        peers: Sequence[tuple[nn.Parameter, Any]] = (),
        rescaled: bool = False,
    ) -> None:
        self._rescaled = rescaled
        self._nested, self._what, self._owner, self._peers = nested, what, owner, peers
        self._path: list[Any] = []

    @property
    def where(self) -> str:
        """The entry that is being visited, as the subject of a sentence."""
        path = ".".join(str(one) for one in self._path if not isinstance(one, Tensor))
        return f"'{path}' in {self._what}" if path else self._what

    def visit(self, value: Any, at: Views = ()) -> Any:
        """Carry a value and all inside it.

        Args:
            value: of any kind.
            at: the same value in trials.

        Returns:
            The value itself, changed inside where it can be, or what takes its place.

        Raises:
            Uncarried: a tensor of the owner's follows no rule.
            UnsupportedError: a tensor of a former shape belongs to nobody.
        """
        done = self._nested.done
        if id(value) in done and done[id(value)][0] is value:
            return done[id(value)][1]
        if isinstance(value, Tensor):
            new = self._tensor(value, at)
        elif not contents(value):
            return _size_of_now(value, at)
        else:
            # Before what is inside, which may hold it.
            done[id(value)] = value, value
            new = self._container(value, at)
        done[id(value)] = value, new
        return new

    def _container(self, value: Any, at: Views) -> Any:
        items = contents(value)
        place = self._path[-1] if self._path else None
        owners = {} if self._owner is not None else self._nested.owners(value, items, place)
        new: dict[Any, Any] = {}
        for key, item in items.items():
            if key in made_anew(value):
                self._nested.drop(item)
                continue
            owner = owners.get(key)
            if (
                owner is not None
                and isinstance(value, MutableMapping)
                and self._is_cache(owner, item)
            ):
                self._nested.log.keep(value)
                del value[key]
                continue
            self._path.append(key)
            if owner is None:
                changed = self.visit(item, tuple(_inside(one, key) for one in at))
            else:
                changed = self._owned(owner, item, [(owners[one], items[one]) for one in owners])
            self._path.pop()
            if changed is not item:
                new[key] = changed
        return self._with(value, items, new) if new else value

    def _is_cache(self, owner: nn.Parameter, item: Any) -> bool:
        """Tell whether an entry holds nothing but views of its parameter's former memory (heavyball keeps such)."""
        change = self._nested.changes.get(owner)
        found = [*tensors_in(item)] if change is not None else []
        return (
            bool(found)
            and change is not None
            and all(_share_memory(one, change.old.values) for one in found)
        )

    def _owned(
        self, owner: nn.Parameter, item: Any, peers: Sequence[tuple[nn.Parameter, Any]]
    ) -> Any:
        """Carry something that belongs to a parameter by its place."""
        name = self._nested.names.get(owner, "?")
        walk = _Walk(self._nested, what=f"{self.where} for '{name}'", owner=owner, peers=peers)
        try:
            return walk.visit(item)
        except Uncarried as error:
            raise UnsupportedError(f"{walk.where} {error}") from None

    def _with(self, value: Any, items: Mapping[Any, Any], new: Mapping[Any, Any]) -> Any:
        """Put new entries into a container, or return a new one where it can't be written to."""
        if isinstance(value, tuple | set | frozenset):
            every = [new.get(key, item) for key, item in items.items()]
            return type(value)(*every) if hasattr(value, "_fields") else type(value)(every)
        self._nested.log.keep(value)
        for key, item in new.items():
            if hasattr(value, "__setitem__"):
                value[key] = item
            else:
                object.__setattr__(value, key, item)
        return value

    # -- tensors

    def _tensor(self, value: Tensor, at: Views) -> Tensor:
        nested, owner = self._nested, self._owner
        if value in nested.held or value in nested.names:
            return value
        if owner is None:
            nested.check_loose(value, self.where)
            return value
        change = nested.changes.get(owner)
        if change is None or not value.dim():
            return value
        shape = change.old.values.shape
        if value.numel() == 1 and len(at) > 1 and all(map(_is_one_number, at)):
            return value  # a count, say, in whatever shape
        dims = _dims(value.shape, shape, change, at)
        start = self._start(value, change, at)
        return carried(
            value, dims, shape, change.layouts, start, rescaled=self._rescaled and bool(at)
        )

    def _start(self, value: Tensor, change: Resized, at: Views) -> Tensor | None:
        """Return what new entries start with: what a trial shows, or a copy of the parameter, or zeros."""
        if at and isinstance(at[0], Tensor) and bool(torch.isfinite(at[0]).all()):
            return at[0]
        like = value.shape == change.old.values.shape and self._is_like_parameters()
        return change.new.values if like else None

    def _is_like_parameters(self) -> bool:
        """Tell whether an entry holds copies or averages of parameters, by that of all parameters together."""
        path = self._path
        product = squares = 0.0
        own = 0.0
        for parameter, entry in self._peers:
            for key in path:
                entry = contents(entry).get(key)
            former = self._nested.former(parameter)
            if isinstance(entry, Tensor) and entry.shape == former.shape and not former.is_meta:
                product += float((entry.double() * former.double()).sum())
                squares += float(entry.double().square().sum())
                own += float(former.double().square().sum())
        return bool(product > _MUCH_ALIKE * (squares * own) ** 0.5)


def _dims(found: torch.Size, shape: torch.Size, change: Resized, at: Views) -> Dims:
    """Tell which dimensions of its parameter a state tensor runs over: by trials where they have what is there."""
    shapes = [one.shape if isinstance(one, Tensor) else None for one in at[1:]]
    if not shapes or shapes[0] != found or any(shapes[1 + dim] is None for dim in change.layouts):
        return dims_by_size(found, shape)
    # A dimension that stays needs no explanation: one more unit may change the number of dimensions, as of one unit.
    trials = [
        trial
        if trial is not None and (dim in change.layouts or len(trial) == len(found))
        else found
        for dim, trial in enumerate(shapes[1:])
    ]
    return dims_by_trial(found, shape, trials)


def _is_one_number(value: Any) -> bool:
    return isinstance(value, Tensor) and value.numel() == 1


def _inside(value: Any, key: Any) -> Any:
    return MISSING if value is MISSING else contents(value).get(key, MISSING)


def _size_of_now(value: Any, at: Views) -> Any:
    """Return a plain value, or what a trial has in its place if it depends on the size."""
    if len(at) < 2 or type(at[0]) is not type(value) or type(at[1]) is not type(value):
        return value
    return at[0] if isinstance(value, int | str) and at[1] == value != at[0] else value


def _share_memory(one: Tensor, other: Tensor) -> bool:
    return memory_of(one) == memory_of(other) != 0
