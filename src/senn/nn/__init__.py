"""Ordinary modules that expanding networks are made of: `Rational`, `Residual`, `MLP`, `ConvNet`."""

from senn.nn.conv_net import ConvNet
from senn.nn.mlp import MLP
from senn.nn.rational import Rational
from senn.nn.residual import Residual

__all__ = ["MLP", "ConvNet", "Rational", "Residual"]
