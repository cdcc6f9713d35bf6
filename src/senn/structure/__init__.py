"""What in a module can change size: spaces (hidden dimensions) and sites (places for a new layer)."""

from senn.structure.analysis import analyse
from senn.structure.explain import explain
from senn.structure.spaces import (
    Attribute,
    Block,
    LinearMap,
    Norm,
    Refusal,
    Site,
    Slot,
    Space,
    Structure,
    columns,
    linear_map,
    matrix,
    tensor_of,
)

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
    "analyse",
    "columns",
    "explain",
    "linear_map",
    "matrix",
    "tensor_of",
]
