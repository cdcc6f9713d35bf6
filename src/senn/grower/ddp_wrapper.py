"""A model inside of a DistributedDataParallel, which is made for the sizes that it has."""

from __future__ import annotations

from torch import nn

from senn.errors import SennError


def unwrapped(model: nn.Module) -> tuple[nn.Module, nn.Module | None]:
    """Return what grows, the module inside of a DistributedDataParallel, and that wrapper; None where there is none.

    After a change the wrapper's buffers have former sizes, so a pass through it is stopped until it is made anew
    (`stale`).
    """
    # By name, so that torch.distributed isn't imported for a model without it.
    if type(model).__name__ != "DistributedDataParallel":
        return model, None
    inside: nn.Module = model.module  # type: ignore[assignment]
    return inside, model


def stale(*_: object) -> None:
    """Forward hook of a DistributedDataParallel whose model has grown: raise until it is made anew."""
    raise SennError(
        "the model has grown, and its DistributedDataParallel still reduces gradients of the former sizes: "
        "call senn.distributed.rewrap_ddp(model) after growth"
    )
