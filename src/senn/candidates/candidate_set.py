"""Candidates of one round, and the activations that they are drawn from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from senn.candidates.new_layers import Layer
from senn.surgery import Append, Widen


@dataclass(frozen=True, eq=False)
class CandidateSet:
    """All candidates of one consideration.

    Attributes:
        widen: by space, the move that would add all of its candidate units.
        layers: by site, the layers that could be inserted.
        repeats: by residual block, the move that would put a silent copy after it.
    """

    widen: Mapping[str, Widen] = field(default_factory=dict)
    layers: Mapping[str, tuple[Layer, ...]] = field(default_factory=dict)
    repeats: Mapping[str, Append] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class LayerActivations:
    """Some rows of what passes through one linear map.

    Attributes:
        x: what it reads, (rows, in * taps), without a constant.
        z: what it gives, (rows, m).
    """

    x: Tensor
    z: Tensor
