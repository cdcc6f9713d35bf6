"""Parts of a Lightning run that grow together: a submodule, its optimizer and its averages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from senn.errors import SennError


def submodule(module: nn.Module, name: str | None) -> nn.Module:
    """Return the submodule of a name.

    Args:
        module: the module.
        name: path of the submodule; None for the module itself.

    Raises:
        SennError: there is none of that name.
    """
    try:
        return module if name is None else module.get_submodule(name)
    except AttributeError as error:
        raise SennError(
            f"a {type(module).__name__} has no part {name!r} that could grow"
        ) from error


def optimizer_of(
    model: nn.Module, optimizers: Iterable[torch.optim.Optimizer]
) -> torch.optim.Optimizer:
    """Return the optimizer that holds parameters of a model.

    Args:
        model: the model.
        optimizers: all optimizers of the run.

    Raises:
        SennError: none does, or several do.
    """
    own = {*model.parameters()}
    holders = []
    for optimizer in optimizers:
        if any(
            parameter in own for group in optimizer.param_groups for parameter in group["params"]
        ):
            holders.append(optimizer)
    if len(holders) != 1:
        raise SennError(
            f"{len(holders) or 'no'} optimizers hold parameters of what is to grow, and it takes one: "
            "name the part that one of them trains by model=..."
        )
    return holders[0]


def averages(callbacks: Sequence[object], module: nn.Module, name: str | None) -> list[nn.Module]:
    """Return the averages, of the submodule that grows, which callbacks and the module keep.

    Args:
        callbacks: all callbacks of the run.
        module: the module that is trained.
        name: path of the submodule that grows; None for the module itself.

    Raises:
        SennError: the module keeps an average of a part of it while all of it grows.
    """
    found: list[nn.Module] = []
    # Callbacks for averages have no common interface: they keep a copy of the module in some attribute.
    for callback in callbacks:
        for value in vars(callback).values():
            kept = value.module if isinstance(value, AveragedModel) else value
            if type(kept) is type(module) and kept is not module:
                found.append(submodule(kept, name))
    grown = submodule(module, name)
    for path, one in module.named_modules():
        if isinstance(one, AveragedModel):
            if grown is module:
                raise SennError(
                    f"the module keeps the average {path!r} of a part of it: name that by model=..."
                )
            # By exact type: an average is a deep copy.
            if type(one.module) is type(grown):
                found.append(one.module)
    return found


def number_of_samples(loader: Any) -> int | None:
    """Return the number of samples of a loader's data set; None if it has no length."""
    dataset: Any = getattr(loader, "dataset", None)
    return len(dataset) if hasattr(dataset, "__len__") else None
