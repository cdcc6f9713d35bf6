"""Candidates of one round, and the activations that they are sampled from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from senn.candidates.new_layers import Layer
from senn.candidates.stream_units import StreamUnits
from senn.surgery import Append, Widen


@dataclass(frozen=True, eq=False)
class CandidateSet:
    """All candidates of one round.

    Attributes:
        widen: by channel group, the move that would add all of its candidate units.
        layers: by insertion point, the layers that could be inserted.
        repeats: by residual block, the move that would put a function-preserving copy after it.
        outgoing: by channel group and map that reads it, the weights with which an initializer wants its candidate
            units born, (m, units * p) with p columns a unit, side by side.
        streams: by channel group behind norms, its candidate units.
    """

    widen: Mapping[str, Widen] = field(default_factory=dict)
    layers: Mapping[str, tuple[Layer, ...]] = field(default_factory=dict)
    repeats: Mapping[str, Append] = field(default_factory=dict)
    outgoing: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    streams: Mapping[str, StreamUnits] = field(default_factory=dict)

    def of_group(self, name: str) -> Widen:
        """Return the move that would add all candidate units of a channel group."""
        return self.streams[name].move if name in self.streams else self.widen[name]


@dataclass(frozen=True, kw_only=True, eq=False)
class LayerActivations:
    """Rows of the inputs and outputs of one linear map.

    Attributes:
        x: inputs without a constant, (rows, in * kernel numel).
        z: outputs, (rows, m).
    """

    x: Tensor
    z: Tensor
