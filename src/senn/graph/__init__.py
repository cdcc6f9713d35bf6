"""Find what in a model can change size: channel groups, insertion points, residual blocks."""

import importlib
from typing import Any

from senn import _deprecated
from senn.graph.named_tensors import get_linear, get_tensor, owned_columns, weight_matrix
from senn.graph.norm_record import Norm
from senn.graph.tracing.rules.module_rules import Visit, layer_rule
from senn.graph.types import (
    ChannelGroup,
    CoupledDim,
    DependencyGraph,
    InsertionPoint,
    LinearMap,
    Refusal,
    ResidualBlock,
    SizeAttribute,
)

__all__ = [
    "ChannelGroup",
    "CoupledDim",
    "DependencyGraph",
    "InsertionPoint",
    "LinearMap",
    "Norm",
    "Refusal",
    "ResidualBlock",
    "SizeAttribute",
    "Visit",
    "analyze",
    "explain",
    "function_preserving_copy",
    "get_linear",
    "get_tensor",
    "layer_rule",
    "owned_columns",
    "weight_matrix",
]

_HOME = {
    "analyze": "senn.verification",
    "explain": "senn.verification",
    "function_preserving_copy": "senn.surgery",
}


def __getattr__(name: str) -> Any:
    """Look up names that belong to packages above this one, and old names."""
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    return _deprecated.lookup("senn.graph", name)
