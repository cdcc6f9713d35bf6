"""Records of one forward pass: its operations, and what they do with weights. Nothing here knows a rule."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree


@dataclass(frozen=True, kw_only=True, eq=False)
class Call:
    """One executed ATen operation: what went in and what came out."""

    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: Any

    @property
    def name(self) -> str:
        """Operation name without overload, such as "aten::add_"."""
        return str(self.func._schema.name)

    @property
    def operation(self) -> str:
        """The same for people: "add"."""
        return self.name.removeprefix("aten::").strip("_")

    @cached_property
    def arguments(self) -> dict[str, Any]:
        """Arguments by name, defaults filled in."""
        schema = self.func._schema.arguments
        values = {a.name: a.default_value for a in schema if a.has_default_value()}
        return values | dict(zip((a.name for a in schema), self.args, strict=False)) | self.kwargs

    @cached_property
    def tensors(self) -> list[Tensor]:
        """All tensors that went in, in order, also those inside lists."""
        return [leaf for leaf in pytree.tree_leaves((self.args, self.kwargs)) if isinstance(leaf, Tensor)]

    @cached_property
    def outputs(self) -> list[Tensor]:
        """All tensors that came out."""
        return [leaf for leaf in pytree.tree_leaves(self.result) if isinstance(leaf, Tensor)]


@dataclass(frozen=True, kw_only=True, eq=False)
class WeightUse:
    """One use of a weight by a linear map.

    Attributes:
        weight: full name of the weight.
        columns: (in,) label of each input column, 0 where no unit is read.
        in_dim: dimension of the weight that counts inputs.
        out_dim: dimension that counts outputs.
        kernel_numel: kernel positions.
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
    kernel_numel: int
    scored: bool
    activation: str | None
    inside: str
    spatial: int
    source: list[Tensor]
    uniform: bool
    normed: bool
    groups: int = 1
    transposed: bool = False


@dataclass(frozen=True, kw_only=True)
class WeightView:
    """What part of which parameter a tensor is.

    Attributes:
        name: full name of the parameter.
        flipped: whether it is transposed.
        start: first position along `dim`, where only some are taken.
        stop: one past the last; None for all.
        dim: of the parameter as it is stored.
    """

    name: str
    flipped: bool = False
    start: int = 0
    stop: int | None = None
    dim: int = 0

    def part(self, dim: int) -> slice:
        """The positions taken along a dimension."""
        return slice(self.start, self.stop) if dim == self.dim else slice(None)


@dataclass(frozen=True, kw_only=True, eq=False)
class NormUse:
    """A normalisation over whole units.

    Attributes:
        module: name of the module that holds its weight, or that runs it.
        kind: `layer` or `rms`.
        weighted: whether it has a weight.
        label_map: coat of its input.
    """

    module: str
    kind: str
    weighted: bool
    label_map: Tensor


@dataclass(frozen=True, kw_only=True)
class Step:
    """What one operation left behind, to find out at the end whether anything was made of its results.

    Attributes:
        inputs: identities of the tensors that went in.
        outputs: identities of those that came out.
        mutates: whether it writes into its inputs.
        refusals: numbers of the refusals that it brought.
    """

    inputs: frozenset[int]
    outputs: frozenset[int]
    mutates: bool
    refusals: range


# Operations that move the entries of a weight; and those through which what is zero stays zero.
REARRANGING = frozenset(["t", "transpose", "permute", "split", "split_with_sizes", "slice"])
KEEPING_ZERO = frozenset(
    (
        *("view", "unsafe_view", "reshape", "t", "transpose", "permute", "expand", "unsqueeze", "squeeze", "select"),
        *("slice", "split", "split_with_sizes", "unbind", "clone", "mean", "sum", "to_copy", "detach", "alias"),
        *("relu", "gelu", "silu", "tanh", "native_dropout"),
    )
)


def weight_views(call: Call, held: WeightView) -> list[WeightView] | None:
    """Return what the outputs of an operation on a weight are of it: transposed, cast, copied, or parts.

    Args:
        call: an operation whose first argument is the weight, or a view of it.
        held: what of which parameter that argument is.

    Returns:
        One view for each output; None if they are something else than the weight.
    """
    operation, args, matrix = call.operation, call.args, call.args[0].dim() == 2
    if operation in ("detach", "alias", "clone", "to_copy", "lift_fresh"):
        return [held]
    if operation == "t":
        return [replace(held, flipped=not held.flipped)]
    if matrix and operation in ("transpose", "permute"):
        swaps = (args[1] - args[2]) % 2 == 1 if operation == "transpose" else args[1][0] % 2 == 1
        return [replace(held, flipped=held.flipped != swaps)]
    if not (matrix and held.stop is None and operation in ("split", "split_with_sizes", "slice")):
        return None
    given = call.arguments
    dim = given["dim"] % 2
    stored = 1 - dim if held.flipped else dim
    start = 0
    if operation == "slice":
        if given["step"] != 1:
            return None
        start = min(max(given["start"] or 0, 0), args[0].shape[dim])
    parts = []
    for output in call.outputs:
        stop = start + output.shape[dim]
        parts.append(replace(held, start=start, stop=stop, dim=stored))
        start = stop
    return parts
