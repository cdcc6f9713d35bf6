"""Activations by name: the one table of them, for networks that are built and for layers that are inserted."""

from __future__ import annotations

from typing import Any

from torch import nn

from senn._validate import Rule
from senn.errors import SennError
from senn.nn.rational import Rational

ACTIVATIONS: dict[str, type[nn.Module]] = {
    kind.__name__: kind
    for kind in (
        nn.CELU, nn.ELU, nn.GELU, nn.Hardshrink, nn.Hardsigmoid, nn.Hardswish, nn.Hardtanh, nn.Identity, nn.LeakyReLU,
        nn.LogSigmoid, nn.Mish, nn.PReLU, nn.RReLU, Rational, nn.ReLU, nn.ReLU6, nn.SELU, nn.SiLU, nn.Sigmoid,
        nn.Softplus, nn.Softshrink, nn.Softsign, nn.Tanh, nn.Tanhshrink,
    )
}  # fmt: skip
"""By class name: what acts on each unit for itself and can be made without arguments, or from a number of units."""

_BY_KEY = {name.lower(): kind for name, kind in ACTIVATIONS.items()}


def find_activation(name: str) -> type[nn.Module] | None:
    """Find an activation's class by its name in any case, with or without underscores; None for an unknown name."""
    return _BY_KEY.get(name.lower().replace("_", ""))


def activation_class(name: str) -> type[nn.Module]:
    """Find an activation's class by its name in any case.

    Raises:
        SennError: the name is unknown; the sentence lists the known ones.

    >>> activation_class("gelu").__name__, activation_class("leaky_relu").__name__
    ('GELU', 'LeakyReLU')
    """
    found = find_activation(name)
    if found is None:
        raise SennError(f"activation must be one of {', '.join(ACTIVATIONS)} (in any case), not {name!r}")
    return found


def activation_name() -> Rule:
    """Allow the names of `ACTIVATIONS` in any case."""
    return Rule(
        expected=f"one of {', '.join(ACTIVATIONS)} (in any case)",
        allows=lambda value: isinstance(value, str) and find_activation(value) is not None,
    )


def activation_or_factory() -> Rule:
    """Allow the names of `ACTIVATIONS` in any case, module classes and functions that make a module."""
    named = activation_name()

    def allows(value: Any) -> bool:
        # a module can be called, too, but one object can't stand in several layers
        return named.allows(value) or (callable(value) and not isinstance(value, nn.Module))

    return Rule(expected=f"a module's class, a function that makes one, or {named.expected}", allows=allows)
