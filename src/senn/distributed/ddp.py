"""DistributedDataParallel around a model that has grown."""

from __future__ import annotations

import inspect
from typing import Any

from torch.nn.parallel import DistributedDataParallel

from senn.errors import SennError, UnsupportedError
from senn.grower.ddp_wrapper import stale

_KEPT = (
    "device_ids", "output_device", "dim", "process_group", "find_unused_parameters", "gradient_as_bucket_view",
    "static_graph", "skip_all_reduce_unused_params", "batched_grad_copy", "forward_sync_buffers",
)  # fmt: skip
"""Arguments of DistributedDataParallel that it keeps as attributes of the same names."""

_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
)


def rewrap_ddp(model: DistributedDataParallel) -> DistributedDataParallel:
    """Let a DistributedDataParallel follow its model after growth.

    It is initialized again in place, with the same arguments, hooks and communication hooks, so every reference to it
    stays valid; the optimizer has followed the model already. Call it on all ranks. If nothing has grown, it costs
    little and changes nothing.

    Args:
        model: the wrapper that was in use before the growth.

    Returns:
        The same object.

    Raises:
        SennError: it is no DistributedDataParallel.
        UnsupportedError: it was created with options that can't be read back from it; the message names them.
    """
    if not isinstance(model, DistributedDataParallel):
        raise SennError(f"rewrap_ddp takes a DistributedDataParallel, not a {type(model).__name__}")
    if model.mixed_precision is not None or model._delay_all_reduce_params:
        which = (
            "mixed_precision"
            if model.mixed_precision is not None
            else "delay_all_reduce_named_params"
        )
        raise UnsupportedError(
            f"a DistributedDataParallel with {which} can't be wrapped again: wrap model.module yourself"
        )
    known = inspect.signature(DistributedDataParallel.__init__).parameters
    arguments: dict[str, Any] = {
        name: getattr(model, name) for name in _KEPT if name in known and hasattr(model, name)
    }
    if "forward_sync_buffers" not in arguments:
        arguments["broadcast_buffers"] = model.broadcast_buffers
    # Passing the default on would make it a choice, which turns off the smaller first bucket.
    if not getattr(model, "bucket_bytes_cap_default", False):
        arguments["bucket_cap_mb"] = model.bucket_bytes_cap / 2**20
    module, communication = model.module, list(model._comm_hooks)
    # The constructor replaces these dictionaries by empty ones, so they are put back afterwards.
    hooks = {name: getattr(model, name) for name in _HOOKS}
    for name in [key for key, hook in hooks["_forward_pre_hooks"].items() if hook is stale]:
        hooks["_forward_pre_hooks"].pop(name)
    training = model.training
    # The old reducer's hooks on parameters that stay would reduce them twice; they go with it.
    for name in ("reducer", "logger"):
        model.__dict__.pop(name, None)
    DistributedDataParallel.__init__(model, module, init_sync=False, **arguments)
    for name, held in hooks.items():
        getattr(model, name).update(held)
    for hook, state in communication:
        model.register_comm_hook(state, hook)
    # The constructor has reset this flag alone; train() would also set the modes of all modules
    # inside.
    model.training = training
    return model
