"""Ordinary modules that expanding networks are made of: `Rational`, `Residual`, `MLP`, `DenseConvNet`."""

from senn.nn.dense_conv import DenseConvNet
from senn.nn.mlp import MLP
from senn.nn.rational import Rational
from senn.nn.residual import Residual

__all__ = ["MLP", "DenseConvNet", "Rational", "Residual"]
