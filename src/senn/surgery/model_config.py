"""Keeping a model's configuration (`config.intermediate_size` and the like) in line with its sizes."""

from __future__ import annotations

import copy
import logging
from typing import Any
from weakref import WeakSet

import torch
from torch import nn

from senn.surgery.undo import UndoLog

logger = logging.getLogger("senn")

Shape = tuple[int, ...]
Numbers = dict[str, int]
Sizes = tuple[dict[str, Shape], dict[str, tuple[type, Numbers]]]
"""Shapes of the state's tensors by full name, and (class, whole numbers) of each module by path."""


_reported: WeakSet[nn.Module] = WeakSet()
"""Models of which it was said that their configuration lags behind: once is enough."""


def update_config(model: nn.Module) -> bool:
    """Update the numbers in a model's configuration after growth, if they can say its sizes.

    Args:
        model: any module; one without a `config` that has `to_dict` needs nothing.

    Returns:
        True if the configuration says all sizes now; False if no choice of its numbers does. It is unchanged then.
    """
    news = _new_numbers(model)
    if news is not None:
        _assign(getattr(model, "config", None), news)
    return news is not None


def follow_config(log: UndoLog) -> None:
    """Let the configuration of a changed model follow, so that what is saved with it can be loaded.

    Args:
        log: of the changed model; it takes the configuration back too.
    """
    model = log.model
    config = vars(model).get("config")
    # Nothing is said of a wrapper, or of a class that its configuration alone doesn't make.
    if not hasattr(config, "to_dict") or _build(model, config) is None:
        return
    news = _new_numbers(model)
    if news is None:
        if model not in _reported:
            _reported.add(model)
            logger.warning(
                "the configuration of this %s can't say its sizes any more, so from_pretrained won't load what "
                "save_pretrained writes: use senn.save(folder, model) and senn.load(folder, into=a new model)",
                type(model).__name__,
            )
        return
    held = vars(config)
    log.exchange([(held, key, held[key], new) for key, new in news.items() if key in held])


def _new_numbers(model: nn.Module) -> Numbers | None:
    """Return the numbers that a configuration needs to say a model's sizes; None if no choice of them does.

    Nothing tells which number of a configuration says which size. So a model is built from the configuration, without
    memory, and compared with the real one: a number is a candidate if every size that had this value has changed to one
    other value. What is built from the new configuration must then agree in all sizes.
    """
    # transformers' configurations have `to_dict`; anything else called `config` is its owner's own.
    config: Any = getattr(model, "config", None)
    if not hasattr(config, "to_dict"):
        return {}
    built, wanted = _build(model, config), _sizes(model)
    if built is not None and _sizes(built) == wanted:
        return {}
    changes = _changed_sizes({} if built is None else _shapes(built), _shapes(model))
    numbers = {key: value for key, value in config.to_dict().items() if type(value) is int}
    keys = {key: value for key, value in numbers.items() if len(changes.get(value, ())) == 1}
    # All candidates together, else one alone: two numbers may be equal by chance, and only one of them has changed.
    for chosen in (keys, *({key: value} for key, value in keys.items())):
        news = {key: min(changes[value]) for key, value in chosen.items()}
        if not news:
            continue
        trial = copy.deepcopy(config)
        _assign(trial, news)
        built = _build(model, trial)
        if built is not None and _sizes(built) == wanted:
            return news
    return None


def _changed_sizes(small: dict[str, Shape], grown: dict[str, Shape]) -> dict[int, set[int]]:
    """Map each old size to the new ones that dimensions of this size have now."""
    changes: dict[int, set[int]] = {}
    for name, shape in grown.items():
        for old, new in zip(small.get(name, ()), shape, strict=False):
            if old != new:
                changes.setdefault(old, set()).add(new)
    return changes


def _assign(config: Any, values: dict[str, int]) -> None:
    for key, value in values.items():
        setattr(config, key, value)


def _build(model: nn.Module, config: Any) -> nn.Module | None:
    """Build a model from a configuration, without memory for its tensors; None if its class can't."""
    try:
        # The caller's random numbers must not change: some classes draw outside of what the meta device skips.
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            built: nn.Module = type(model)(copy.deepcopy(config))
            return built
    except Exception:  # its owner's code may raise anything on numbers that don't go together
        return None


def _sizes(model: nn.Module) -> Sizes:
    modules: dict[str, tuple[type, dict[str, int]]] = {}
    for path, module in model.named_modules():
        public = {key: value for key, value in vars(module).items() if not key.startswith("_")}
        numbers = {key: value for key, value in public.items() if type(value) is int}
        modules[path] = type(module), numbers
    return _shapes(model), modules


def _shapes(model: nn.Module) -> dict[str, Shape]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
