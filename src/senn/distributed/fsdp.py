"""Models sharded by `fully_shard` (FSDP2): whole during a growth round, then sharded as before."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed._composable.contract import REGISTRY_KEY, STATE_KEY
from torch.distributed._composable_state import _module_state_mapping
from torch.distributed.fsdp import FSDPModule, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from senn.errors import SennError, UnsupportedError
from senn.surgery.optimizer_layers import unwrap


@contextmanager
def full_parameters(model: nn.Module, optimizer: Any = None) -> Iterator[nn.Module]:
    """Make a sharded model a plain one, whole on every rank, inside a `with` block.

    All parameters and optimizer states are gathered, so every rank needs memory for them: for Adam in float32, 12 bytes
    per parameter, besides what the growth round itself takes. Afterwards the same modules are sharded with the same
    settings, the optimizer's states with their parameters, and a new module like a sharded sibling of its class. The
    model, the optimizer and its groups stay the same objects, so schedulers keep working. Gradients are dropped.

        grower = senn.Grower(model, optimizer, loss)
        ...
        with senn.distributed.full_parameters(model, optimizer):
            events = grower.grow(batches)

    Args:
        model: the root module that was sharded.
        optimizer: optimizer of its parameters, or None.

    Yields:
        The same model, unsharded.

    Raises:
        SennError: the model isn't sharded.
        UnsupportedError: it is sharded in a way that can't be read back from it; the message says which.
    """
    if not isinstance(model, FSDPModule):
        raise SennError(
            "full_parameters takes a model that torch.distributed.fsdp.fully_shard has sharded"
        )
    wrappings = [_Wrapping.of(one) for one in dict.fromkeys(map(_state_of, _sharded(model)))]
    inner = None if optimizer is None else unwrap(optimizer)
    before = [*model.modules()]
    _unshard(model, inner)
    try:
        yield model
    finally:
        _shard(model, _with_new(model, before, wrappings), inner)


@dataclass(frozen=True, eq=False)
class _Wrapping:
    """One call of `fully_shard`.

    Attributes:
        modules: modules that it was called with.
        settings: its keyword arguments.
    """

    modules: tuple[nn.Module, ...]
    settings: dict[str, Any]

    @classmethod
    def of(cls, state: Any) -> _Wrapping:
        """Read the call's arguments back from what it has left on the modules."""
        groups = state._fsdp_param_groups
        if len(groups) > 1:
            raise UnsupportedError(
                "a model whose modules are sharded over several meshes can't be gathered"
            )
        if not groups:
            return cls(tuple(state._modules), {})
        (group,) = groups
        if getattr(group.mesh_info, "is_spmd_mesh", False) or any(
            one.is_dtensor for one in group.fsdp_params
        ):
            raise UnsupportedError(
                "a model that is tensor-parallel as well as sharded can't be gathered"
            )
        if type(group.offload_policy) is not OffloadPolicy:
            raise UnsupportedError(
                "a model that is sharded with CPUOffloadPolicy can't be gathered"
            )
        # reshard_after_forward: True keeps the mesh, False has none after the forward, an int a smaller one
        after = group.post_forward_mesh_info
        reshard: bool | int | None = after is not None
        if after is not None and after is not group.mesh_info:
            reshard = int(after.shard_mesh_size)
        if state._auto_reshard_after_forward:
            reshard = None
        settings = {
            "mesh": group.mesh_info.mesh,
            "reshard_after_forward": reshard,
            "mp_policy": group.mp_policy,
            "offload_policy": group.offload_policy,
        }
        if any(one.fsdp_placement.dim for one in group.fsdp_params):
            raise UnsupportedError(
                "a model that is sharded along other dimensions than the first can't be gathered"
            )
        return cls(tuple(state._modules), settings)


def _sharded(model: nn.Module) -> list[FSDPModule]:
    return [module for module in model.modules() if isinstance(module, FSDPModule)]


def _state_of(module: FSDPModule) -> Any:
    return module._get_fsdp_state()


def _unshard(model: nn.Module, optimizer: torch.optim.Optimizer | None) -> None:
    """Replace sharded parameters and states by whole ones, and undo `fully_shard`.

    torch has no inverse of `fully_shard`, so this removes its hooks, state and classes one by one. The names are
    private, so a version of torch may change them: `tests/collectives/test_distributed.py` trains a model through it.
    """
    # Typed Any: torch doesn't declare FSDPModule as an nn.Module.
    modules: list[Any] = [*_sharded(model)]
    for one in modules:
        one.reshard()
    whole = _gather_parameters(model)
    for state in dict.fromkeys(map(_state_of, modules)):
        handles = [state._pre_forward_hook_handle, state._post_forward_hook_handle]
        for group in state._fsdp_param_groups:
            handles += [one._post_load_hook_handle for one in group.fsdp_params]
            handles += group._module_to_pre_save_state_dict_hook_handle.values()
            handles += group._module_to_pre_load_state_dict_hook_handle.values()
        for handle in handles:
            handle.remove()
    for one in modules:
        _module_state_mapping.pop(one, None)
        # `fully_shard` puts a class of its own, FSDP<name>, before the module's.
        one.__class__ = type(one).__mro__[one._orig_cls_mro_index]
    for module in model.modules():
        for key in (STATE_KEY, REGISTRY_KEY, "_is_fsdp_managed_module", "_fsdp_use_orig_params"):
            module.__dict__.pop(key, None)
    _rebind(optimizer, whole, lambda value, _: _gather(value))


def _gather_parameters(model: nn.Module) -> dict[Any, nn.Parameter]:
    """Replace sharded parameters by whole ones, and return these by the old ones."""
    whole: dict[Any, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if not isinstance(parameter, DTensor):
                continue
            if parameter not in whole:  # a tied weight is gathered once, and stays tied
                values = parameter.full_tensor().detach().clone()
                whole[parameter] = nn.Parameter(values, parameter.requires_grad)
            module._parameters[name] = whole[parameter]
    return whole


def _gather(value: Any) -> Any:
    """Return a sharded tensor as a whole one, anything else as it is."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def _shard(
    model: nn.Module, wrappings: Sequence[_Wrapping], optimizer: torch.optim.Optimizer | None
) -> None:
    """Shard a whole model, and its optimizer's states with it."""
    plain = dict(model.named_parameters(remove_duplicate=False))
    settings = next(one.settings for one in wrappings if one.settings)
    for wrapping in reversed(
        wrappings
    ):  # inner ones first: `fully_shard` leaves out what is sharded already
        modules = wrapping.modules
        fully_shard(
            modules[0] if len(modules) == 1 else [*modules], **(wrapping.settings or settings)
        )
    now = dict(model.named_parameters(remove_duplicate=False))

    def spread(value: Any, parameter: nn.Parameter) -> Any:
        # Values of other shapes, such as Adam's step count, stay whole.
        if (
            isinstance(value, Tensor)
            and isinstance(parameter, DTensor)
            and value.shape == parameter.shape
        ):
            # None: every rank has the whole tensor, so each cuts its part without communication.
            return distribute_tensor(
                value, parameter.device_mesh, parameter.placements, src_data_rank=None
            )
        return value

    _rebind(optimizer, {old: now[name] for name, old in plain.items()}, spread)


def _rebind(
    optimizer: torch.optim.Optimizer | None,
    new: Mapping[nn.Parameter, nn.Parameter],
    change: Callable[[Any, nn.Parameter], Any],
) -> None:
    """Replace an optimizer's parameters in their groups, and convert their states.

    Args:
        optimizer: the optimizer, or None.
        new: by old parameter, the new one.
        change: function of a value of the state and its new parameter.
    """
    if optimizer is None:
        return
    for group in optimizer.param_groups:
        group["params"][:] = [new.get(parameter, parameter) for parameter in group["params"]]
    for old, parameter in new.items():
        if old in optimizer.state:
            state = optimizer.state.pop(old)  # keyed by the parameter object
            optimizer.state[parameter] = {
                name: change(value, parameter) for name, value in state.items()
            }


def _with_new(
    model: nn.Module, before: Sequence[nn.Module], wrappings: Sequence[_Wrapping]
) -> list[_Wrapping]:
    """Return the wrappings of modules still there, and those of new ones: like a sibling's."""
    present, known = {*model.modules()}, {*before}
    alike = {one.modules[0]: one for one in wrappings if len(one.modules) == 1}
    found: dict[nn.Module, list[_Wrapping]] = {}
    for one in wrappings:
        if all(module in present for module in one.modules):
            found.setdefault(one.modules[0], []).append(one)
    for parent in model.modules():
        children = [*parent.children()]
        for child in children:
            like = next(
                (
                    alike[other]
                    for other in children
                    if other in alike and type(other) is type(child)
                ),
                None,
            )
            if child not in known and like is not None:
                found[child] = [_Wrapping((child,), like.settings)]
    return [one for module in model.modules() for one in found.get(module, ())]
