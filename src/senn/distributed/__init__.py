"""Wrapped models: unwrapped for growth and wrapped again, together with their optimizer."""

from typing import TYPE_CHECKING

from senn import _deprecated
from senn.distributed.ddp import rewrap_ddp
from senn.distributed.fsdp import full_parameters

__all__ = [
    "full_parameters",
    "rewrap_ddp",
]

if not TYPE_CHECKING:
    __getattr__ = _deprecated.old_names(__name__)
