"""Ordinary modules for networks that expand: `Rational`, `Residual`, `MLP`, `ConvNet`, `DenseConvNet`, `Ensemble`."""

from senn.nn.conv_net import ConvNet
from senn.nn.dense_conv import DenseConvNet
from senn.nn.ensemble import Ensemble
from senn.nn.mlp import MLP
from senn.nn.rational import Rational
from senn.nn.residual import Residual

__all__ = ["MLP", "ConvNet", "DenseConvNet", "Ensemble", "Rational", "Residual"]
