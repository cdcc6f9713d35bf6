"""Wrapped models: unwrapped for growth and wrapped again, with their optimizer."""

from senn.distributed.fsdp import full_parameters
from senn.distributed.replicated import rewrap_ddp

__all__ = ["gathered", "rewrap"]
