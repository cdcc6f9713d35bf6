"""Scoring in the model's own precision, whatever context its caller has open."""

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
def without_autocast(model: nn.Module) -> Iterator[None]:
    """Turn off autocast and inference mode inside, also the autocast of a model that accelerate has prepared.

    Factors, gains and the check that a change keeps the function are then as exact as the parameters are, and there
    are gradients. An autocast that a model's own forward opens is part of the model, and stays.
    """
    # accelerate wraps the forward in autocast and keeps the original beside it
    prepared = [
        own
        for module in model.modules()
        if {"_original_forward", "forward"} <= (own := vars(module)).keys()
    ]
    with ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            # Tensors made in inference mode can't take part in a backward pass.
            stack.enter_context(torch.inference_mode(False))
        for device in {"cpu", *(parameter.device.type for parameter in model.parameters())}:
            if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        for own in prepared:
            stack.callback(own.__setitem__, "forward", own["forward"])
            own["forward"] = own["_original_forward"]
        yield


def full_precision(method: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R]:
    """Decorate a method of an object with a `model`, so that it runs in `without_autocast`."""

    @wraps(method)
    def within(self: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
        with without_autocast(self.model):
            return method(self, *args, **kwargs)

    return within
