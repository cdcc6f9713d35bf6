"""The numbers of a model's configuration, which are to say its sizes: `config.intermediate_size` and the like."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn


def follow(model: nn.Module) -> bool:
    """Bring the numbers of a model's configuration in line with its sizes, where they can say these.

    A model without numbers is built of the configuration, and compared in all sizes.

    Returns:
        Whether they say it now; they are left as they are if not.
    """
    config: Any = getattr(model, "config", None)
    if not hasattr(config, "to_dict") or _built(model, config) == _described(model):
        return True
    small = _built_shapes(model, config)
    pairs: dict[int, set[int]] = {}
    for name, shape in _shapes(model).items():
        for old, new in zip(small.get(name, ()), shape, strict=False):
            if old != new:
                pairs.setdefault(old, set()).add(new)
    numbers = {key: value for key, value in config.to_dict().items() if type(value) is int}
    keys = {key: value for key, value in numbers.items() if len(pairs.get(value, ())) == 1}
    for chosen in (keys, *({key: value} for key, value in keys.items())):
        trial = copy.deepcopy(config)
        for key, value in chosen.items():
            setattr(trial, key, min(pairs[value]))
        if chosen and _built(model, trial) == _described(model):
            for key, value in chosen.items():
                setattr(config, key, min(pairs[value]))
            return True
    return False


def _bare(model: nn.Module, config: Any) -> nn.Module | None:
    """A model of a configuration without numbers; None if there is none of it."""
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            made: nn.Module = type(model)(copy.deepcopy(config))
            return made
    except Exception:  # whatever its owner's code makes of such numbers
        return None


def _built(model: nn.Module, config: Any) -> Any:
    bare = _bare(model, config)
    return None if bare is None else _described(bare)


def _built_shapes(model: nn.Module, config: Any) -> dict[str, tuple[int, ...]]:
    bare = _bare(model, config)
    return {} if bare is None else _shapes(bare)


def _described(model: nn.Module) -> Any:
    """All that a configuration must say: classes, sizes, whole numbers of every module."""
    shapes_ = _shapes(model)
    numbers = {
        path: (type(module), {k: v for k, v in vars(module).items() if type(v) is int and not k.startswith("_")})
        for path, module in model.named_modules()
    }
    return shapes_, numbers


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
