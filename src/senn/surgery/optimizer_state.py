"""Carries an optimizer along: groups, and state by position.

Old entries of a state tensor are kept bit by bit at their new places. New entries are what this very optimizer
starts a parameter with: a blank copy of it takes one step on the new Parameters' values with zero gradients, and
its state is read off. Step counts and other scalars stay.
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

# Settings that would let the blank copy's state depend on more than its start.
_BLANK = {"weight_decay": 0.0, "lambd": 0.0, "differentiable": False}


def unwrap(optimizer: Any) -> Optimizer:
    """The torch optimizer inside wrappers that keep it as `.optimizer`."""
    seen = optimizer
    while isinstance(getattr(seen, "optimizer", None), Optimizer):
        seen = seen.optimizer
    if not isinstance(seen, Optimizer):
        raise UnsupportedError(f"the optimizer must be a torch.optim.Optimizer, not a {type(optimizer).__name__}")
    return seen


def check_holds(optimizer: Optimizer, model: nn.Module) -> None:
    """Refuse an optimizer that holds none of the model's trainable parameters."""
    held = {parameter for group in optimizer.param_groups for parameter in group["params"]}
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    if names and not any(parameter in held for parameter in model.parameters() if parameter.requires_grad):
        raise SennError(f"the optimizer doesn't hold the model's parameters (first: '{names[0]}')")


class Snapshot:
    """An optimizer's groups and state as they are now, to be given back; holds the objects, copies no tensor."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self._groups = list(optimizer.param_groups)
        named = [group["param_names"] for group in self._groups if "param_names" in group]
        lists = [*(group["params"] for group in self._groups), *named, *_own_lists(optimizer)]
        self._lists = [(held, list(held)) for held in lists]
        self._state = list(optimizer.state.items())

    @property
    def attached(self) -> bool:
        """Whether the optimizer still has the same groups; loading a state replaces them."""
        now = self.optimizer.param_groups
        return len(now) == len(self._groups) and all(a is b for a, b in zip(now, self._groups, strict=True))

    def restore(self) -> None:
        """Give everything back."""
        for held, items in self._lists:
            held[:] = items
        self.optimizer.state.clear()
        self.optimizer.state.update(self._state)
        _forget_size(self.optimizer)


def _own_lists(optimizer: Optimizer) -> list[list[nn.Parameter]]:
    """Lists of parameters besides the groups': LBFGS keeps one, which loading a state separates from its group's."""
    own = vars(optimizer).get("_params")
    return [own] if isinstance(own, list) else []


def _forget_size(optimizer: Optimizer) -> None:
    """LBFGS remembers the total number of entries."""
    if isinstance(optimizer, LBFGS):
        vars(optimizer)["_numel_cache"] = None


def migrate_optimizer_state(
    optimizer: Optimizer, journal: UndoLog, model: nn.Module, names: Mapping[nn.Parameter, str]
) -> None:
    """Exchange Parameters in the optimizer's groups and state, and add those of inserted layers.

    Group dictionaries and their lists stay the same objects, so schedulers stay attached. New parameters join groups in
    model order. One of a layer before a map goes by its name, `weight` or `bias` say: to the group that holds the map's
    own of that name; else to that which holds all others of that name in the model, if one does; else to that of the
    map's weight. So where biases don't decay, new ones don't, and groups are as if made for the grown model. Those of a
    copy of a block join the groups of those of the same names in the block, after these.

    Args:
        optimizer: a torch optimizer.
        journal: of the changed model.
        model: the changed model.
        names: of the Parameters before the change.

    Raises:
        SennError: no group for a new layer.
        UnsupportedError: state that isn't understood. In both cases the caller restores a Snapshot.
    """
    now = {parameter: name for name, parameter in model.named_parameters()}
    before = [list(group["params"]) for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        if not isinstance(optimizer, LBFGS):
            _carry_state(optimizer, group, journal.resized)
        group["params"][:] = map(journal.now, group["params"])
    for inserted in journal.inserted:
        _join(optimizer.param_groups, inserted, now)
    for group, held in zip(optimizer.param_groups, before, strict=True):
        if "param_names" in group:
            _rename(group, held, names, now, journal)
    _check_joined(optimizer, journal)
    if isinstance(optimizer, LBFGS) and (journal.resized or journal.inserted):
        _restart(optimizer)


def _join(groups: Sequence[State], inserted: Inserted, now: Mapping[nn.Parameter, str]) -> None:
    """Put a new layer's parameters into groups, in these very lists."""
    home = {parameter: group["params"] for group in groups for parameter in group["params"]}
    order = {parameter: number for number, parameter in enumerate(now)}
    block = {*inserted.beside, *inserted.beside.values()} if inserted.after else set()
    for new, like in inserted.beside.items():
        if like not in home:
            continue
        if inserted.after:  # the whole copy after the whole block
            beside = [parameter for parameter in home[like] if parameter in block][-1]
        else:
            beside = _beside(new, like, home, now)
        params = home[new] = home[beside]
        place = next(number for number, parameter in enumerate(params) if parameter is beside)
        params.insert(place + (inserted.after or order[beside] < order[new]), new)


def _beside(
    new: nn.Parameter,
    weight: nn.Parameter,
    home: Mapping[nn.Parameter, list[nn.Parameter]],
    now: Mapping[nn.Parameter, str],
) -> nn.Parameter:
    """Which parameter one of a new layer before a map stands beside, see `carry`."""
    path, kind = now[weight].rpartition(".")[0], now[new].rpartition(".")[2]
    alike = [one for one, name in now.items() if name.rpartition(".")[2] == kind and (one in home or one is new)]
    at = next(number for number, one in enumerate(alike) if one is new)
    others = [*alike[at + 1 :], *alike[:at][::-1]]  # the next in the model first
    beside = next((one for one in others if now[one].rpartition(".")[0] == path), None)
    if beside is None and len({id(home[one]) for one in others}) == 1:
        beside = others[0]
    return weight if beside is None or home[beside] is home[weight] else beside


def _rename(
    group: State,
    before: Sequence[nn.Parameter],
    names: Mapping[nn.Parameter, str],
    now: Mapping[nn.Parameter, str],
    journal: UndoLog,
) -> None:
    """Recorded names in step with the list of parameters; a name that the user made up stays."""
    made_up = {}
    for old, recorded in zip(before, group["param_names"], strict=True):
        if recorded != names.get(old):
            made_up[journal.resized[old].new if old in journal.resized else old] = recorded
    group["param_names"][:] = [made_up.get(p) or now[p] for p in group["params"]]


def _check_joined(optimizer: Optimizer, journal: UndoLog) -> None:
    """The layers' parameters must have found a group, and one that can train them."""
    for inserted in journal.inserted:
        joined = [(group, [p for p in group["params"] if p in inserted.beside]) for group in optimizer.param_groups]
        if inserted.beside and not any(mine for _, mine in joined):
            raise SennError(
                f"the optimizer doesn't hold the weight of '{inserted.insertion_point}', so not its new layer either"
            )
        for group, mine in joined:
            starts = _starts(optimizer, group, mine)
            if isinstance(optimizer, SGD) and group["fused"] and _has_momentum(optimizer, group):
                # Its kernel wants a momentum of all parameters or of none; others start a late one by themselves.
                optimizer.state.update(zip(mine, starts, strict=True))


def _has_momentum(optimizer: Optimizer, group: State) -> bool:
    return any("momentum_buffer" in optimizer.state.get(p, {}) for p in group["params"])


def _carry_state(optimizer: Optimizer, group: State, resized: Mapping[nn.Parameter, Resized]) -> None:
    """Exchange the state of the group's resized parameters; a parameter without state stays without."""
    olds = [p for p in group["params"] if p in resized and optimizer.state.get(p)]
    starts = _starts(optimizer, group, [resized[p].new for p in olds])
    for old, start in zip(olds, starts, strict=True):
        # The old dictionary stays whole: rolling back means giving it back.
        state, where = optimizer.state.pop(old), f"in the state of {type(optimizer).__name__}"
        optimizer.state[resized[old].new] = {
            key: _carried(f"'{key}' {where}", value, start.get(key), old, resized[old]) for key, value in state.items()
        }


def _carried(what: str, value: Any, start: Any, old: nn.Parameter, to: Resized) -> Any:
    """One entry of a parameter's state, by position."""
    if not isinstance(value, Tensor):
        if isinstance(value, (list, tuple, dict)) and any(isinstance(x, Tensor) for x in value):
            raise UnsupportedError(f"{what} is a {type(value).__name__} of tensors, which can't be carried by position")
        return value
    if not isinstance(start, Tensor) and value.shape == old.shape:
        start = torch.zeros_like(to.new)
    if not isinstance(start, Tensor):
        return _only_scalar(what, value, old)
    along: dict[int, IndexMap] = {}
    if value.dim() == start.dim() == old.dim():
        # A factored statistic (Adafactor) has size 1 along the dimensions that it sums over: these stay.
        along = {
            dim: layout
            for dim, layout in to.layouts.items()
            if value.shape[dim] == layout.size and start.shape[dim] == len(layout.order)
        }
    rest = [dim for dim in range(value.dim()) if dim not in along]
    if value.dim() != start.dim() or any(value.shape[dim] != start.shape[dim] for dim in rest):
        return _only_scalar(what, value, old)
    return place(value, along, start.to(value.device, value.dtype, copy=True)) if along else value


def _only_scalar(what: str, value: Tensor, old: nn.Parameter) -> Tensor:
    if value.dim():
        raise UnsupportedError(
            f"{what} has shape {tuple(value.shape)}, which doesn't follow its parameter's {tuple(old.shape)}"
        )
    return value


def _starts(optimizer: Optimizer, group: State, parameters: Sequence[Tensor]) -> list[State]:
    """The state that this optimizer starts such parameters with; empty where its step needs arguments."""
    step = inspect.signature(type(optimizer).step).parameters.values()
    needed = [p for p in step if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    if len(needed) > 1 or not parameters:
        return [{} for _ in parameters]
    params = [nn.Parameter(p.detach().clone()) for p in parameters]
    for parameter in params:
        parameter.grad = torch.zeros_like(parameter)
    blank = object.__new__(type(optimizer))
    vars(blank).update(vars(optimizer))
    vars(blank).pop("step", None)  # schedulers wrap the instance's step to count its calls
    blank._optimizer_step_pre_hooks, blank._optimizer_step_post_hooks = OrderedDict(), OrderedDict()
    blank.state = defaultdict(dict)
    blank.param_groups = [{**group, **{key: value for key, value in _BLANK.items() if key in group}, "params": params}]
    try:
        blank.step()
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UnsupportedError(f"{type(optimizer).__name__} can't train the new parameters: {error}") from error
    return [dict(blank.state.get(parameter, {})) for parameter in params]


def _restart(optimizer: LBFGS) -> None:
    """Begin the history anew: its pairs relate flat gradients of successive steps, which new entries don't have."""
    evaluations = sum(state.get("func_evals", 0) for state in optimizer.state.values())
    (group,) = optimizer.param_groups
    for own in _own_lists(optimizer):
        own[:] = group["params"]
    optimizer.state.clear()
    optimizer.state[group["params"][0]] = {"func_evals": evaluations, "n_iter": 0}
    _forget_size(optimizer)
