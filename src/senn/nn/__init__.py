"""Ordinary modules for networks that expand: those here."""

from senn.nn.conv_net import ConvNet
from senn.nn.dense_conv import DenseConvNet
from senn.nn.ensemble import Ensemble
from senn.nn.mlp import MLP
from senn.nn.rational import Rational
from senn.nn.residual import Residual
from senn.nn.sinh_output import SinhOutput

__all__ = ["MLP", "ConvNet", "DenseConvNet", "Ensemble", "Rational", "Residual", "SinhOutput"]
