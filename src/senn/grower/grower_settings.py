"""Arguments of a `Grower`: their ranges, and what an assignment to one of them does between rounds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from senn._validate import (
    Rule,
    a_seed,
    callable_,
    check,
    each,
    flag,
    instance_of,
    one_of,
    text,
    whole,
)
from senn.candidates.candidate_config import CandidateConfig
from senn.collectives import Communicator
from senn.errors import SennError, warn
from senn.policies import Budget, check_moves, policy_rule, width_rule
from senn.scoring.round_config import RoundConfig
from senn.surgery.averages import find_copy
from senn.surgery.optimizer_layers import check_holds, untrained
from senn.surgery.state_check import check_state_follows, has_state
from senn.surgery.transaction import UncarriedState

RANGES: Mapping[str, Rule] = {
    "loss": callable_("a function loss(outputs, targets)"),
    "policy": policy_rule().or_none(),
    "samples": whole(low=1).or_none(),
    "max_params": whole(low=1).or_none(),
    "max_flops": whole(low=1).or_none(),
    "max_width": width_rule().or_none(),
    "round_to": whole(low=1),
    "moves": each(text()),
    "candidate_config": instance_of(CandidateConfig, called="a senn.CandidateConfig").or_none(),
    "round_config": instance_of(RoundConfig, called="a senn.RoundConfig").or_none(),
    "birth": one_of("stepped", "silent", "plain", "best").or_none(),
    "averaged": each(instance_of(object, called="an average of the model")),
    "examples": instance_of(list, tuple, called="a list of example inputs"),
    "on_uncarried_state": one_of("refuse", "restart"),
    "ignore": each(text()),
    "metric": one_of("fisher", "euclidean"),
    "loss_hessian": callable_("a function loss_hessian(outputs, targets)").or_none(),
    "coupled": flag(),
    "prepare": callable_("a function that makes inputs and targets of a batch").or_none(),
    "output": callable_("a function that finds the outputs in what the model returns").or_none(),
    "seed": a_seed(),
    "communicator": instance_of(Communicator, called="a senn.collectives.Communicator").or_none(),
}

_FIXED = ("model", "loss", "metric", "loss_hessian", "coupled", "seed")
_LIMITS = ("max_params", "max_flops", "max_width", "round_to")


class GrowerSettings:
    """Assignments to a grower's arguments: checked like the constructor's, and never without effect."""

    model: nn.Module
    budget: Budget
    moves: tuple[str, ...]
    optimizer: Any
    on_uncarried_state: UncarriedState
    rejections: list[str]
    _untrained: tuple[str, ...] = ()
    _state_tried: bool = True

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; an argument of the constructor is checked first.

        Args:
            name: name of the attribute.
            value: new value.

        Raises:
            SennError: the value is out of range, or the argument can't change on a living grower.
        """
        if name in _FIXED and (name in vars(self) or name not in ("model", "metric")):
            raise SennError(f"{name} can't be changed on a grower: make a new one")
        if name in RANGES and name != "metric":
            check(name, value, RANGES[name])
        if name == "moves":
            value = check_moves(value)
        if name in _LIMITS:
            name, value = "budget", replace(self.budget, **{name: value})
        if name in ("ignore", "averaged"):
            value = (*value,)
        if name == "averaged":
            for average in value:  # refused now, not after a round
                find_copy(self.model, average)
        if name == "optimizer" and value is not None:
            check_holds(value, self.model)
            self._try_state(value)
        changed = name == "ignore" and vars(self).get(name, value) != value
        super().__setattr__(name, value)
        if changed:
            # Candidates were sampled at places that may now be left alone: the model is analyzed anew.
            vars(self).update(_graph=None, _session=None)

    def _look_at_optimizer(self) -> None:
        """Look at the optimizer again: it has state after its first step, and may hold other parameters now."""
        if not self._state_tried and has_state(self.optimizer):
            self._try_state(self.optimizer)
        idle = untrained(self.optimizer, self.model)
        if idle != self._untrained:
            vars(self).update(_untrained=idle, _graph=None, _session=None)

    def _try_state(self, optimizer: Any) -> None:
        """Refuse an optimizer whose state couldn't follow, before anything is scored for it."""
        restart = self.on_uncarried_state == "restart"
        reason = check_state_follows(optimizer, self.model, restart=restart)
        if reason is not None and "prune" in self.moves:
            if {*self.moves} == {"prune"}:
                raise SennError(f"nothing can be removed: {reason}")
            sentence = f"removals are left out: {reason}"
            warn(sentence)
            self.rejections.append(sentence)
            self.moves = check_moves([move for move in self.moves if move != "prune"])
        # Without state it was tried on a step from random gradients; then once more on its own.
        vars(self).update(_state_tried=has_state(optimizer))

    @property
    def max_params(self) -> int | None:
        """Most parameters of the model; None for no limit."""
        return self.budget.max_params

    @property
    def max_flops(self) -> int | None:
        """Most floating-point operations of a forward pass, per sample; None for no limit."""
        return self.budget.max_flops

    @property
    def max_width(self) -> int | Mapping[str, int] | None:
        """Most units of one layer, or by place; None for no limit."""
        return self.budget.max_width

    @property
    def round_to(self) -> int:
        """Divisor of all widths after growth."""
        return self.budget.round_to
