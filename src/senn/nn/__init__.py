"""Ordinary modules that expanding networks are made of: `Rational`, `Residual`, `MLP`."""

from senn.nn.mlp import MLP
from senn.nn.rational import Rational
from senn.nn.residual import Residual

__all__ = ["MLP", "Rational", "Residual"]
