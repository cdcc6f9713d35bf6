"""Optimizer state of resized Parameters, by position, and the optimizer's groups.

Old entries of a state tensor are kept bit by bit at their new places. New entries are what this very optimizer starts a
parameter with: a blank copy of it takes one step on the new Parameters' values with zero gradients, and its state is
read off. So nothing is known here of single optimizers, but for three that keep things elsewhere (LBFGS, fused SGD,
Adafactor's factored statistics). Step counts and other scalars stay.
"""

from __future__ import annotations

import inspect
from collections import OrderedDict, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, SGD, Optimizer

from senn.errors import SennError, UnsupportedError
from senn.surgery.index_maps import IndexMap, place
from senn.surgery.undo import Inserted, Resized, UndoLog

State = dict[str, Any]

# Settings that would let the blank copy's state depend on more than its start: decay makes a gradient of the weights.
_BLANK = {"weight_decay": 0.0, "lambd": 0.0, "differentiable": False}


def unwrap(optimizer: Any) -> Optimizer:
    """Return the torch optimizer inside wrappers that keep it as `.optimizer` (accelerate, some libraries' own).

    Raises:
        UnsupportedError: there is none.
    """
    inner = optimizer
    while isinstance(getattr(inner, "optimizer", None), Optimizer):
        inner = inner.optimizer
    if not isinstance(inner, Optimizer):
        raise UnsupportedError(
            f"the optimizer must be a torch.optim.Optimizer, not a {type(optimizer).__name__}"
        )
    return inner


def check_holds(optimizer: Optimizer, model: nn.Module) -> None:
    """Refuse an optimizer that holds none of a model's trainable parameters.

    Args:
        optimizer: of any kind.
        model: that it should train.

    Raises:
        SennError: it holds none of them.
    """
    held = {parameter for group in optimizer.param_groups for parameter in group["params"]}
    trainable = {
        name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad
    }
    if trainable and not any(parameter in held for parameter in trainable.values()):
        raise SennError(
            f"the optimizer doesn't hold the model's parameters (first: '{next(iter(trainable))}')"
        )


class Snapshot:
    """An optimizer's groups and state as they are now; it holds the objects and copies no tensor.

    Args:
        optimizer: to be restored later.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self._groups = list(optimizer.param_groups)
        lists = _own_lists(optimizer)
        for group in self._groups:
            lists += [group[key] for key in ("params", "param_names") if key in group]
        self._lists = [(held, list(held)) for held in lists]
        self._state = list(optimizer.state.items())

    @property
    def attached(self) -> bool:
        """True if the optimizer still has the same group objects; loading a state dict replaces them."""
        now = [id(group) for group in self.optimizer.param_groups]
        return now == [id(group) for group in self._groups]

    def restore(self) -> None:
        """Restore groups and state, in the same lists and dictionaries."""
        for held, items in self._lists:
            held[:] = items
        self.optimizer.state.clear()
        self.optimizer.state.update(self._state)
        _forget_size(self.optimizer)


def _own_lists(optimizer: Optimizer) -> list[list[nn.Parameter]]:
    # LBFGS keeps a list in addition to its group's. At first both are one object; loading a state separates them.
    own = vars(optimizer).get("_params")
    return [own] if isinstance(own, list) else []


def _forget_size(optimizer: Optimizer) -> None:
    # LBFGS remembers the total number of entries.
    if isinstance(optimizer, LBFGS):
        vars(optimizer)["_numel_cache"] = None


def migrate_optimizer_state(
    optimizer: Optimizer, log: UndoLog, model: nn.Module, names: Mapping[nn.Parameter, str]
) -> None:
    """Exchange the state of resized Parameters, and add the Parameters of inserted layers to groups.

    Group dictionaries and their lists stay the same objects, so schedulers stay attached. New parameters join groups in
    model order. A parameter of a layer before a map goes by its name, `weight` or `bias`: to the group that holds the
    map's own of that name; else to the one group that holds all others of that name in the model; else to that of the
    map's weight. So where biases don't decay, new ones don't either, and groups are as if made for the grown model.
    Parameters of a copy of a block join the groups of those of the same names in the block, after them.

    Args:
        optimizer: of any kind, changed in place.
        log: of the changed model.
        model: the changed model.
        names: full names of the Parameters before the change.

    Raises:
        SennError: there is no group for a new layer.
        UnsupportedError: some state isn't understood. In both cases the caller restores a `Snapshot`.
    """
    now = {parameter: name for name, parameter in model.named_parameters()}
    before = [list(group["params"]) for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        if not isinstance(optimizer, LBFGS):
            _migrate_state(optimizer, group, log.resized)
    for inserted in log.inserted:
        _join(optimizer.param_groups, inserted, now)
    for group, held in zip(optimizer.param_groups, before, strict=True):
        if "param_names" in group:
            _rename(group, held, names, now)
    _check_joined(optimizer, log)
    if isinstance(optimizer, LBFGS) and (log.resized or log.inserted):
        _restart(optimizer)


# -- groups


def _join(groups: Sequence[State], inserted: Inserted, now: Mapping[nn.Parameter, str]) -> None:
    """Add a new layer's parameters to groups, in these very lists."""
    home = {parameter: group["params"] for group in groups for parameter in group["params"]}
    order = {parameter: number for number, parameter in enumerate(now)}
    block = {*inserted.neighbors, *inserted.neighbors.values()} if inserted.after else set()
    for new, like in inserted.neighbors.items():
        if like not in home:
            continue
        if inserted.after:
            # The whole copy follows the whole block, as it does in `model.parameters()`.
            neighbor = [parameter for parameter in home[like] if parameter in block][-1]
            after = True
        else:
            neighbor = _neighbor(new, like, home, now)
            after = order[neighbor] < order[new]
        params = home[new] = home[neighbor]
        # Not `list.index`, which compares tensors entry by entry.
        position = next(number for number, parameter in enumerate(params) if parameter is neighbor)
        params.insert(position + after, new)


def _neighbor(
    new: nn.Parameter,
    weight: nn.Parameter,
    home: Mapping[nn.Parameter, list[nn.Parameter]],
    now: Mapping[nn.Parameter, str],
) -> nn.Parameter:
    """Choose the parameter whose group one of a new layer before a map joins: see `migrate_optimizer_state`."""
    path = now[weight].rpartition(".")[0]
    kind = now[new].rpartition(".")[2]
    before: list[nn.Parameter] = []
    after: list[nn.Parameter] = []
    for one, name in now.items():
        if one is new:
            before, after = after, []
        elif one in home and name.rpartition(".")[2] == kind:
            after.append(one)
    others = [*after, *reversed(before)]  # the next ones in the model first
    found = next((one for one in others if now[one].rpartition(".")[0] == path), None)
    groups = {id(home[one]) for one in others}
    if found is None and len(groups) == 1:
        found = others[0]
    # Where both are in one group, the new one stands next to the map's weight.
    return weight if found is None or home[found] is home[weight] else found


def _rename(
    group: State,
    before: Sequence[nn.Parameter],
    names: Mapping[nn.Parameter, str],
    now: Mapping[nn.Parameter, str],
) -> None:
    """Bring recorded names into step with the list of parameters; a name that the user made up stays."""
    made_up = {}
    for old, recorded in zip(before, group["param_names"], strict=True):
        if recorded != names.get(old):
            made_up[old] = recorded
    recorded_names = [made_up.get(parameter) or now[parameter] for parameter in group["params"]]
    group["param_names"][:] = recorded_names


def _check_joined(optimizer: Optimizer, log: UndoLog) -> None:
    """Check that the new layers' parameters have found a group, and one that can train them."""
    for inserted in log.inserted:
        joined = False
        for group in optimizer.param_groups:
            mine = [parameter for parameter in group["params"] if parameter in inserted.neighbors]
            joined = joined or bool(mine)
            starts = _starts(optimizer, group, mine)
            if isinstance(optimizer, SGD) and group["fused"] and _has_momentum(optimizer, group):
                # Its kernel wants a momentum of all parameters or of none; other optimizers start a late one.
                optimizer.state.update(zip(mine, starts, strict=True))
        if inserted.neighbors and not joined:
            point = inserted.insertion_point
            raise SennError(
                f"the optimizer doesn't hold the weight of '{point}', so not its new layer either"
            )


def _has_momentum(optimizer: Optimizer, group: State) -> bool:
    return any(
        "momentum_buffer" in optimizer.state.get(parameter, {}) for parameter in group["params"]
    )


# -- state


def _migrate_state(optimizer: Optimizer, group: State, resized: Mapping[Tensor, Resized]) -> None:
    """Exchange the state of a group's resized parameters; a parameter without state stays without."""
    changed = [one for one in group["params"] if one in resized and optimizer.state.get(one)]
    starts = _starts(optimizer, group, changed)
    for parameter, start in zip(changed, starts, strict=True):
        change = resized[parameter]
        # A new dictionary: the old one is what a rollback puts back.
        migrated = {}
        for key, value in optimizer.state[parameter].items():
            what = f"'{key}' in the state of {type(optimizer).__name__}"
            migrated[key] = _migrated(what, value, start.get(key), change)
        optimizer.state[parameter] = migrated


def _migrated(what: str, value: Any, start: Any, change: Resized) -> Any:
    """Return one entry of a parameter's state, its tensors by position."""
    old = change.old.values
    if not isinstance(value, Tensor):
        if isinstance(value, (list, tuple, dict)) and any(
            isinstance(item, Tensor) for item in value
        ):
            raise UnsupportedError(
                f"{what} is a {type(value).__name__} of tensors, which can't be migrated by position"
            )
        return value
    if not isinstance(start, Tensor) and value.shape == old.shape:
        # The blank step made none (a momentum of zero gradients, say): moments start at zero.
        start = torch.zeros_like(change.new.values)
    if not isinstance(start, Tensor):
        return _only_scalar(what, value, old)
    along: dict[int, IndexMap] = {}
    if value.dim() == start.dim() == old.dim():
        # A factored statistic (Adafactor) has size 1 along the dimensions that it sums over: these stay.
        for dim, layout in change.layouts.items():
            follows = value.shape[dim] == layout.size and start.shape[dim] == len(layout.order)
            if follows:
                along[dim] = layout
    shape = list(value.shape)
    for dim, layout in along.items():
        shape[dim] = len(layout.order)
    if shape != list(start.shape):
        return _only_scalar(what, value, old)
    if not along:
        return value
    into = start.to(value.device, value.dtype, copy=True)
    return place(value, along, into)


def _only_scalar(what: str, value: Tensor, old: Tensor) -> Tensor:
    if value.dim():
        found, wanted = tuple(value.shape), tuple(old.shape)
        raise UnsupportedError(
            f"{what} has shape {found}, which doesn't follow its parameter's {wanted}"
        )
    return value


def _starts(optimizer: Optimizer, group: State, parameters: Sequence[Tensor]) -> list[State]:
    """Return the state that this optimizer starts parameters with; empty where its step needs arguments."""
    if not parameters or _needs_closure(optimizer):
        return [{} for _ in parameters]
    params = [nn.Parameter(parameter.detach().clone()) for parameter in parameters]
    for parameter in params:
        parameter.grad = torch.zeros_like(parameter)
    # Not `type(optimizer)(params)`: constructors take arguments that nobody knows here.
    blank = object.__new__(type(optimizer))
    vars(blank).update(vars(optimizer))
    vars(blank).pop("step", None)  # schedulers wrap the instance's step to count its calls
    blank._optimizer_step_pre_hooks, blank._optimizer_step_post_hooks = OrderedDict(), OrderedDict()
    blank.state = defaultdict(dict)
    settings = {key: value for key, value in _BLANK.items() if key in group}
    blank.param_groups = [{**group, **settings, "params": params}]
    try:
        blank.step()
    except torch.OutOfMemoryError:
        raise  # says nothing about the optimizer
    except (RuntimeError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UnsupportedError(
            f"{type(optimizer).__name__} can't train the new parameters: {error}"
        ) from error
    return [dict(blank.state.get(parameter, {})) for parameter in params]


def _needs_closure(optimizer: Optimizer) -> bool:
    step = inspect.signature(type(optimizer).step).parameters.values()
    named = [one for one in step if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)]
    return sum(one.default is one.empty for one in named) > 1  # the first is `self`


def _restart(optimizer: LBFGS) -> None:
    """Restart the history of LBFGS: its pairs relate flat gradients of successive steps, which new entries lack."""
    evaluations = sum(state.get("func_evals", 0) for state in optimizer.state.values())
    (group,) = optimizer.param_groups
    for own in _own_lists(optimizer):
        own[:] = group["params"]
    optimizer.state.clear()
    optimizer.state[group["params"][0]] = {"func_evals": evaluations, "n_iter": 0}
    _forget_size(optimizer)
