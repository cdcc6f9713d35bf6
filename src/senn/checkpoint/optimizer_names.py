"""An optimizer's parameters by name.

Growth, and groups by kind of parameter, put parameters in another order than a fresh optimizer has. So a checkpoint
stores their names; `optimizer_param_names` and `rebind_optimizer` are for checkpoints of other libraries, which have
the optimizer's state already.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from senn._records import reading_state
from senn.errors import SennError

Names = list[list[str | None]]
"""Full names of the parameters of each group; None for a parameter that isn't the model's."""


def optimizer_param_names(optimizer: Optimizer, model: nn.Module) -> Names:
    """List the names of the parameters in an optimizer's groups.

    Args:
        optimizer: of the model's parameters, all or some of them.
        model: the model.

    Returns:
        A list for each group, in the optimizer's order; None for a parameter that isn't the model's.

    >>> import torch
    >>> model = nn.Linear(2, 1)
    >>> optimizer_param_names(torch.optim.SGD(model.parameters(), lr=0.1), model)
    [['weight', 'bias']]
    """
    names = {parameter: name for name, parameter in model.named_parameters()}
    return [
        [names.get(parameter) for parameter in group["params"]] for group in optimizer.param_groups
    ]


def rebind_optimizer(
    optimizer: Optimizer, model: nn.Module, names: Sequence[Sequence[str | None]]
) -> None:
    """Rebind the optimizer's parameter groups to the model's current parameters, by name.

    Groups stay the same objects; the state of parameters that have left them is dropped. An optimizer with parameters
    that aren't the model's is left as it is.

    Args:
        optimizer: made of the model's parameters before these were replaced.
        model: the model.
        names: a list for each group, from `optimizer_param_names`.

    Raises:
        SennError: it has another number of groups, or the model lacks one of the parameters; nothing is changed.
    """
    groups = optimizer.param_groups
    if any(name is None for group in names for name in group):
        return
    if len(groups) != len(names):
        raise SennError(
            f"the optimizer has {len(groups)} groups of parameters, and the saved one had {len(names)}"
        )
    parameters = dict(model.named_parameters(remove_duplicate=False))
    missing = [name for group in names for name in group if name not in parameters]
    if missing:
        raise SennError(f"the saved optimizer held {missing[0]!r}, which the model doesn't have")
    for group, own in zip(groups, names, strict=True):
        # Slices are assigned, because schedulers and wrappers keep references to these lists.
        group["params"][:] = [parameters[str(name)] for name in own]
        if "param_names" in group:
            group["param_names"][:] = own
    current = {parameter for group in groups for parameter in group["params"]}
    for parameter in [parameter for parameter in optimizer.state if parameter not in current]:
        del optimizer.state[parameter]


def optimizer_state(optimizer: Optimizer, model: nn.Module) -> dict[str, Any]:
    """Return an optimizer's state with the names of its parameters, for `load_optimizer_state`.

    Args:
        optimizer: of the model's parameters.
        model: the model.

    Returns:
        The names of each group (`names`) and the optimizer's own state (`state`).
    """
    return {"names": optimizer_param_names(optimizer, model), "state": optimizer.state_dict()}


def load_optimizer_state(optimizer: Optimizer, model: nn.Module, state: Mapping[str, Any]) -> None:
    """Restore an optimizer whose model was resized, so that its parameters are other objects than before.

    Args:
        optimizer: a fresh one with the same options.
        model: the resized model.
        state: from `optimizer_state`.

    Raises:
        SennError: the state isn't one of such an optimizer.
    """
    with reading_state("this isn't the state of such an optimizer"):
        _check_options(optimizer, state)
        rebind_optimizer(optimizer, model, state["names"])
        # Nothing of the fresh optimizer's own state may mix with the saved one.
        optimizer.state.clear()
        optimizer.load_state_dict(state["state"])
        _check_shapes(optimizer)


def _check_options(optimizer: Optimizer, state: Mapping[str, Any]) -> None:
    """Check that the groups have the optimizer's own options; only the learning rate moves, by a schedule."""
    for group, saved in zip(optimizer.param_groups, state["state"]["param_groups"], strict=True):
        own = {name: value for name, value in group.items() if name not in ("params", "lr")}
        stored = {name: value for name, value in saved.items() if name not in ("params", "lr")}
        if own != stored:
            raise SennError("this is the state of an optimizer with other options")
        # A tensor for a learning rate is one that a captured CUDA graph reads: a number can't take its place.
        if type(saved["lr"]) is not type(group["lr"]):
            raise SennError(
                "this isn't the state of such an optimizer: its learning rate is no number"
            )


def _check_shapes(optimizer: Optimizer) -> None:
    """Check the shapes of the state's tensors: with a wrong one, a fused step would write beyond its end."""
    pairs = [
        (group, parameter) for group in optimizer.param_groups for parameter in group["params"]
    ]
    for group, parameter in pairs:
        is_fused = bool(group.get("fused"))
        for name, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor) and not _fits(value, parameter, is_fused):
                found, wanted = list(value.shape), list(parameter.shape)
                raise SennError(
                    f"this isn't the state of such an optimizer: {name!r} has the shape {found}, its parameter {wanted}"
                )


def _fits(value: Tensor, parameter: Tensor, fused: bool) -> bool:
    """Return True for a scalar, a tensor like the parameter, or one summed over some of its dimensions."""
    if not value.dim():
        return True
    if value.dim() != parameter.dim():
        return False
    # Adafactor keeps sums over a dimension, whose size then is 1; a fused kernel takes no such tensor.
    pairs = zip(value.shape, parameter.shape, strict=True)
    return all(mine == its or (mine == 1 and not fused) for mine, its in pairs)
