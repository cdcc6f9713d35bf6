"""What in a module can change size: spaces (hidden dimensions), sites (places for a new layer) and blocks."""

import importlib
from typing import Any

from senn.structure.spaces import (
    SizeAttribute,
    ResidualBlock,
    LinearMap,
    Norm,
    Refusal,
    InsertionPoint,
    CoupledDim,
    ChannelGroup,
    DependencyGraph,
    owned_columns,
    get_linear,
    weight_matrix,
    get_tensor,
)
from senn.structure.tracing.rules.module_rules import Visit, layer_rule

__all__ = [
    "Attribute",
    "Block",
    "LinearMap",
    "Norm",
    "Refusal",
    "Site",
    "Slot",
    "Space",
    "Structure",
    "Visit",
    "analyse",
    "columns",
    "explain",
    "layer_rule",
    "linear_map",
    "matrix",
    "silent_copy",
    "tensor_of",
]

_HOME = {"analyse": "senn.verification", "explain": "senn.verification", "silent_copy": "senn.surgery"}


def __getattr__(name: str) -> Any:
    """Names that lie in packages above this one, which import it."""
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'senn.structure' has no attribute {name!r}")
