"""Records of what a forward pass does with weights."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from senn.structure.tracing.rules.pointwise import Call


@dataclass(frozen=True, eq=False)
class Use:
    """One use of a weight by a linear map.

    Attributes:
        weight: full name of the weight.
        columns: (in,) label of each input column, 0 where no unit is read.
        in_dim: dimension of the weight that counts inputs.
        out_dim: dimension that counts outputs.
        taps: kernel positions.
        scored: whether its rows can be read.
        activation: class name of the activation that its input went through last, if any.
        inside: the module whose forward made the use.
        spatial: number of spatial dimensions of a convolution's input.
        source: coats of its input.
        uniform: whether its input has no units and is the same for all columns (zeros of a first state).
        normed: whether its input comes straight from a normalisation of whole units.
        groups: of a convolution.
        transposed: whether it is a transposed convolution.
    """

    weight: str
    columns: Tensor
    in_dim: int
    out_dim: int
    taps: int
    scored: bool
    activation: str | None
    inside: str
    spatial: int
    source: list[Tensor]
    uniform: bool
    normed: bool
    groups: int = 1
    transposed: bool = False


@dataclass(frozen=True)
class Held:
    """What part of which parameter a tensor is.

    Attributes:
        name: full name of the parameter.
        flipped: whether it is transposed.
        start: first position along `dim`, where only some are taken.
        stop: one past the last; None for all.
        dim: of the parameter as it is stored.
    """

    name: str
    flipped: bool
    start: int = 0
    stop: int | None = None
    dim: int = 0

    def part(self, dim: int) -> slice:
        """The positions taken along a dimension."""
        return slice(self.start, self.stop) if dim == self.dim else slice(None)


@dataclass(frozen=True, eq=False)
class NormUse:
    """A normalisation over whole units: the module that holds its weight, and the coat of its input."""

    module: str
    kind: str
    weighted: bool
    coat: Tensor


# Operations that move the entries of a weight; and those through which what is zero stays zero.
REARRANGING = frozenset(["t", "transpose", "permute", "split", "split_with_sizes", "slice"])
KEEPING_ZERO = frozenset(
    [
        "view",
        "unsafe_view",
        "reshape",
        "t",
        "transpose",
        "permute",
        "expand",
        "unsqueeze",
        "squeeze",
        "select",
        "slice",
        "split",
        "split_with_sizes",
        "unbind",
        "clone",
        "mean",
        "sum",
        "to_copy",
        "detach",
        "alias",
        "relu",
        "gelu",
        "silu",
        "tanh",
        "native_dropout",
    ]
)


def parts_of(call: Call, held: Held) -> list[Held]:
    """The parts that a weight is cut into."""
    given, size = call.arguments, call.args[0].shape
    dim = given["dim"] % 2
    stored = 1 - dim if held.flipped else dim
    if call.operation == "slice":
        if given["step"] != 1:
            return []
        start = min(max(given["start"] or 0, 0), size[dim])
        return [replace(held, start=start, stop=start + call.outputs[0].shape[dim], dim=stored)]
    found, start = [], 0
    for output in call.outputs:
        found.append(replace(held, start=start, stop=start + output.shape[dim], dim=stored))
        start += output.shape[dim]
    return found
