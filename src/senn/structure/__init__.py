"""What in a module can change size: spaces (hidden dimensions), sites (places for a new layer) and blocks."""

from senn.structure.analysis import analyse, explain
from senn.structure.repeat import silent_copy
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
