"""A consideration computes in the model's own precision, whatever its caller has open."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Concatenate, ParamSpec, Protocol, TypeVar

import torch
from torch import nn


class _HasModel(Protocol):
    model: nn.Module


S = TypeVar("S", bound=_HasModel)
P = ParamSpec("P")
R = TypeVar("R")


@contextmanager
def exact(model: nn.Module) -> Iterator[None]:
    """Within it autocast and inference mode are off, also the autocast of a model that accelerate has prepared.

    Moments, promises and the check that a change keeps the function are then as exact as the parameters are, and there
    are gradients. An autocast that a model's own forward opens is part of the model, and stays.
    """
    prepared = [held for module in model.modules() if {"_original_forward", "forward"} <= (held := vars(module)).keys()]
    with ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        for device in {"cpu", *(parameter.device.type for parameter in model.parameters())}:
            if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        for held in prepared:
            stack.callback(held.__setitem__, "forward", held["forward"])
            held["forward"] = held["_original_forward"]
        yield


def full_precision(method: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R]:
    """Have a method of what looks at a `model` do so in `exact`."""

    @wraps(method)
    def within(self: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
        with exact(self.model):
            return method(self, *args, **kwargs)

    return within
