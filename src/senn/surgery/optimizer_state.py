"""Optimizers live through a change of their model: state by position, groups, the way back.

Old entries of a state tensor are kept at their new places, and new ones are what this very optimizer starts a parameter
with (`starts`), or for averages of squared gradients the mean of the old entries (`newborn_state`). Nothing is known
here of single optimizers, but for two: LBFGS and fused SGD keep things elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim import LBFGS, SGD, Optimizer

from senn.errors import SennError, UnsupportedError, in_one_line
from senn.surgery.blank_optimizer import Trial, TrialError, small_gradient
from senn.surgery.contents_log import ContentsLog
from senn.surgery.nested_state import NestedState
from senn.surgery.newborn_state import fill_from_existing, new_entries, start_denominators
from senn.surgery.optimizer_groups import join_groups
from senn.surgery.optimizer_layers import OptimizerLayers, is_plain, takes_data, tensors_in
from senn.surgery.starts import Starts
from senn.surgery.undo import Resized, UndoLog


class Snapshot:
    """Groups and state of optimizers as they are now; it holds the objects and copies no tensor.

    Args:
        layers: the optimizers, to be restored later.
    """

    def __init__(self, layers: OptimizerLayers) -> None:
        self._layers = layers
        self.log = ContentsLog()
        self._groups = [(one, [*one.param_groups]) for one in layers.optimizers]
        for one in layers.optimizers:
            for held in _own_lists(one):
                self.log.keep(held)
        for group in layers.groups:
            for key in ("params", "param_names"):
                if key in group:
                    self.log.keep(group[key])
        for _, state in layers.states:
            self.log.keep(state)

    @property
    def attached(self) -> bool:
        """True if the optimizers still have the same group objects; loading a state dict replaces them."""
        return all(
            [id(group) for group in one.param_groups] == [id(group) for group in groups]
            for one, groups in self._groups
        )

    def tensors(self) -> list[Tensor]:
        """Return all tensors of the state as it is now."""
        return [one for _, state in self._layers.states for one in tensors_in([*state.values()])]

    def restore(self) -> None:
        """Restore groups and state, in the same lists and dictionaries."""
        self.log.restore()
        for one in self._layers.optimizers:
            _forget_size(one)


def _own_lists(optimizer: Optimizer) -> list[list[nn.Parameter]]:
    # LBFGS keeps a list in addition to its group's. At first both are one object; loading a state separates them.
    own = vars(optimizer).get("_params")
    return [own] if isinstance(own, list) else []


def _forget_size(optimizer: Optimizer) -> None:
    # LBFGS remembers the total number of entries.
    if isinstance(optimizer, LBFGS):
        vars(optimizer)["_numel_cache"] = None


class Migration:
    """One change of a model, as its optimizers live through it.

    Args:
        layers: the optimizers.
        model: the model, not changed yet.
        restart: True to start a parameter's state anew where it can't be carried.

    Attributes:
        snapshot: the way back.
        restarted: names of parameters whose state was started anew.
    """

    def __init__(self, layers: OptimizerLayers, model: nn.Module, restart: bool = False) -> None:
        self._layers, self._model, self._restart = layers, model, restart
        # Of before the change: optimizers that record names are brought into step by them.
        self._names = {parameter: name for name, parameter in model.named_parameters()}
        self.snapshot = Snapshot(layers)
        can_be_tried = not is_plain(layers) and not takes_data(layers)
        self._tested = can_be_tried and step_error(layers) is None
        self.restarted: list[str] = []

    def run(self, log: UndoLog) -> None:
        """Carry the state of resized parameters, and add those of new layers.

        Args:
            log: of the changed model.

        Raises:
            SennError: there is no group for a new layer.
            UnsupportedError: some state can't be carried. In both cases the caller restores the snapshot.
        """
        layers = self._layers
        held = layers.parameters
        changes = {
            one: change
            for one, change in log.resized.items()
            if isinstance(one, nn.Parameter) and one in held
        }
        history = [one for one in layers.optimizers if isinstance(one, LBFGS)]
        for one in history if changes or log.inserted else ():
            _restart_history(one)
        self._carry(changes)
        join_groups(layers, log.inserted, self._model, self._names)
        self._check_joined(log)
        for one in history if log.inserted else ():
            _restart_history(one)
        if self._tested and (changes or log.inserted):
            error = step_error(layers)
            if error is not None:
                kinds = " and ".join(dict.fromkeys(type(one).__name__ for one in layers.given))
                raise UnsupportedError(
                    f"{kinds} can't train the changed model: {in_one_line(error)}"
                ) from error

    def _carry(self, changes: Mapping[nn.Parameter, Resized]) -> None:
        if not changes:
            return
        nested = NestedState(
            self._layers,
            changes,
            self._names,
            starts=Starts(self._layers, changes, {}),
            log=self.snapshot.log,
            restart=self._restart,
        )
        nested.carry()
        self.restarted += nested.restarted
        masks = {one: new_entries(change) for one, change in changes.items()}
        fill_from_existing(self._layers, {one: mask for one, mask in masks.items() if mask.any()})

    def _check_joined(self, log: UndoLog) -> None:
        """Check that the new layers' parameters have found a group, and one that can train them."""
        held = self._layers.parameters
        joined: dict[nn.Parameter, nn.Parameter] = {}
        for inserted in log.inserted:
            mine = {one: like for one, like in inserted.neighbors.items() if one in held}
            if inserted.neighbors and not mine:
                point = inserted.insertion_point
                raise SennError(
                    f"the optimizer doesn't hold the weight of '{point}', so not its new layer either"
                )
            joined |= mine
        if not joined:
            return
        starts = Starts(self._layers, {}, joined)
        for number, (optimizer, state) in enumerate(self._layers.states):
            if isinstance(optimizer, SGD):
                _start_momentum(optimizer, state, joined, starts, number)
            for one in joined:
                started = starts.of_new(number, one)
                if started and not state.get(one):
                    state[one] = started
        if self._tested:
            start_denominators(self._layers, joined)


def _start_momentum(
    optimizer: SGD,
    state: dict[Any, Any],
    joined: Mapping[nn.Parameter, Any],
    starts: Starts,
    number: int,
) -> None:
    """Give new parameters a momentum: a fused kernel wants one of all of a group or of none."""
    for group in optimizer.param_groups:
        if group["fused"] and any("momentum_buffer" in state.get(p, {}) for p in group["params"]):
            for one in [one for one in group["params"] if one in joined]:
                state[one] = dict(starts.views(number, one)[0])


def step_error(layers: OptimizerLayers) -> BaseException | None:
    """Try a step on copies of the parameters and of all state.

    Gradients are zeros or, for optimizers that don't take such, small random numbers.

    Args:
        layers: the optimizers; they aren't touched.

    Returns:
        What it raised; None if it works.
    """
    values = {one: one.detach() for one in layers.parameters}
    failed: BaseException | None = None
    for gradient in (None, small_gradient):
        try:
            Trial(layers, values, keep_state=True).step(gradient)
        except TrialError as error:
            failed = failed or error.__cause__
        else:
            return None
    return failed


def _restart_history(optimizer: LBFGS) -> None:
    """Restart the history of LBFGS: its pairs relate flat gradients of successive steps, which new entries lack."""
    evaluations = sum(state.get("func_evals", 0) for state in optimizer.state.values())
    (group,) = optimizer.param_groups
    for own in _own_lists(optimizer):
        own[:] = group["params"]
    optimizer.state.clear()
    optimizer.state[group["params"][0]] = {"func_evals": evaluations, "n_iter": 0}
    _forget_size(optimizer)
