"""Activations by name: one table for networks that are built and for layers that are inserted."""

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
"""Elementwise activations that need no arguments, or only a number of units, by class name."""

# Without underscores: PyTorch's functions have them (leaky_relu), its classes don't.
_BY_KEY = {name.lower(): kind for name, kind in ACTIVATIONS.items()}


def find_activation(name: str) -> type[nn.Module] | None:
    """Return an activation's class by its name in any case; None for an unknown one."""
    return _BY_KEY.get(name.lower().replace("_", ""))


def activation_class(name: str) -> type[nn.Module]:
    """Return an activation's class by its name in any case, with or without underscores.

    Raises:
        SennError: the name is unknown; the message lists the known ones.

    >>> activation_class("gelu").__name__, activation_class("leaky_relu").__name__
    ('GELU', 'LeakyReLU')
    """
    found = find_activation(name)
    if found is None:
        raise SennError(
            f"activation must be one of {', '.join(ACTIVATIONS)} (in any case), not {name!r}"
        )
    return found


def activation_name() -> Rule:
    """Build the rule for the names of `ACTIVATIONS` in any case."""
    return Rule(
        expected=f"one of {', '.join(ACTIVATIONS)} (in any case)",
        allows=lambda value: isinstance(value, str) and find_activation(value) is not None,
    )


def activation_or_factory() -> Rule:
    """Build the rule for names of `ACTIVATIONS`, module classes, and functions that create a module."""
    named = activation_name()

    def allows(value: Any) -> bool:
        # A module is callable, too, but one object can't be the activation of several layers.
        return named.allows(value) or (callable(value) and not isinstance(value, nn.Module))

    return Rule(
        expected=f"a module class, a function that creates a module, or {named.expected}",
        allows=allows,
    )
