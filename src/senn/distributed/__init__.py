"""Wrapped models: unwrapped for growth and wrapped again, with their optimizer."""

from senn.distributed.fsdp import gathered
from senn.distributed.replicated import rewrap

__all__ = ["gathered", "rewrap"]
