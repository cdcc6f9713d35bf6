"""An optimizer's parameters by name: growth and groups by kind put them in another order than a fresh optimizer has.

`held` and `hold` are for checkpoints of others, which have the optimizer's state already.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from senn._records import reading_state
from senn.errors import SennError

Names = list[list[str | None]]
"""Of the parameters of an optimizer's groups; None for one that isn't the model's."""


def optimizer_param_names(optimizer: Optimizer, model: nn.Module) -> Names:
    """Names of the parameters of an optimizer's groups, in order."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    return [[names.get(parameter) for parameter in group["params"]] for group in optimizer.param_groups]


def rebind_optimizer(optimizer: Optimizer, model: nn.Module, names: Sequence[Sequence[str | None]]) -> None:
    """Have an optimizer hold the model's parameters of these names, in this order.

    Groups stay the same objects; states of parameters that it no longer holds are forgotten. An optimizer that holds
    others than the model's too is left as it is.

    Raises:
        SennError: it has another number of groups, or the model lacks one of the parameters; nothing is changed.
    """
    groups = optimizer.param_groups
    if any(name is None for group in names for name in group):
        return
    if len(groups) != len(names):
        raise SennError(f"the optimizer has {len(groups)} groups of parameters, and the saved one had {len(names)}")
    known = dict(model.named_parameters(remove_duplicate=False))
    if missing := [name for group in names for name in group if name not in known]:
        raise SennError(f"the saved optimizer held {missing[0]!r}, which the model doesn't have")
    for group, own in zip(groups, names, strict=True):
        group["params"][:] = [known[str(name)] for name in own]
        if "param_names" in group:
            group["param_names"][:] = own
    kept = {parameter for group in groups for parameter in group["params"]}
    for parameter in [parameter for parameter in optimizer.state if parameter not in kept]:
        del optimizer.state[parameter]


def optimizer_state(optimizer: Optimizer, model: nn.Module) -> dict[str, Any]:
    """An optimizer's state, and the names of the parameters in its groups, in their order there."""
    return {"names": optimizer_param_names(optimizer, model), "state": optimizer.state_dict()}


def load_optimizer_state(optimizer: Optimizer, model: nn.Module, state: Mapping[str, Any]) -> None:
    """Have an optimizer go on with a model that was regrown, whose Parameters are others than it has held so far.

    Raises:
        SennError: the state isn't one of such an optimizer.
    """
    with reading_state("this isn't the state of such an optimizer"):
        _check_options(optimizer, state)
        rebind_optimizer(optimizer, model, state["names"])
        optimizer.state.clear()
        optimizer.load_state_dict(state["state"])
        _check_shapes(optimizer)


def _check_options(optimizer: Optimizer, state: Mapping[str, Any]) -> None:
    """The options of the groups must be the optimizer's own, but for the learning rate, which a schedule moves."""
    for group, saved in zip(optimizer.param_groups, state["state"]["param_groups"], strict=True):
        kept = {name: value for name, value in group.items() if name not in ("params", "lr")}
        if kept != {name: value for name, value in saved.items() if name not in ("params", "lr")}:
            raise SennError("this is the state of an optimizer with other options")
        if type(saved["lr"]) is not type(group["lr"]):
            raise SennError("this isn't the state of such an optimizer: its learning rate is no number")


def _check_shapes(optimizer: Optimizer) -> None:
    """A tensor of another shape than its parameter's would have a fused step write beyond its end."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            for name, value in optimizer.state.get(parameter, {}).items():
                if not isinstance(value, Tensor) or not value.dim():
                    continue
                fits = value.dim() == parameter.dim() and all(
                    mine == its or (mine == 1 and not group.get("fused"))  # Adafactor keeps sums over a dimension
                    for mine, its in zip(value.shape, parameter.shape, strict=True)
                )
                if not fits:
                    raise SennError(
                        f"this isn't the state of such an optimizer: {name!r} has the shape {list(value.shape)}, its "
                        f"parameter {list(parameter.shape)}"
                    )
