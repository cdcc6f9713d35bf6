"""Natural gradient descent, usable without growing anything."""

from senn.optim.natural_gradient import NaturalGradient

__all__ = ["NaturalGradient"]
