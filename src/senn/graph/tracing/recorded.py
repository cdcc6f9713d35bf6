"""Records of one forward pass: its operations, and what they do with weights.

Rules and the recorder import these; nothing here imports a rule.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from torch import Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Call:
    """One executed ATen operation: its inputs and its result.

    Attributes:
        func: the overload, such as `torch.ops.aten.add.Tensor`.
        args: positional arguments.
        kwargs: keyword arguments.
        result: the return value.
        overwritten: copy of the first argument as it was, if the operation wrote into it and it had no units; else
            None.
    """

    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: Any
    overwritten: Tensor | None = None

    @property
    def name(self) -> str:
        """Name of the operation without its overload, such as "aten::add_"."""
        return str(self.func._schema.name)

    @property
    def operation(self) -> str:
        """Short name for messages: "add" for "aten::add_"."""
        return self.name.removeprefix("aten::").strip("_")

    @cached_property
    def arguments(self) -> dict[str, Any]:
        """All arguments by name, defaults filled in."""
        # Operations arrive with some arguments by position, some by name, and without defaults.
        values = {}
        for number, argument in enumerate(self.func._schema.arguments):
            if number < len(self.args):
                values[argument.name] = self.args[number]
            elif argument.name in self.kwargs:
                values[argument.name] = self.kwargs[argument.name]
            elif argument.has_default_value():
                values[argument.name] = argument.default_value
        return values

    def values_of(self, tensor: Tensor) -> Tensor:
        """Return the values that the operation read from one of its tensors, which it may have overwritten."""
        return (
            self.overwritten if self.overwritten is not None and tensor is self.args[0] else tensor
        )

    @cached_property
    def tensors(self) -> list[Tensor]:
        """All input tensors in order, also those inside lists."""
        return _tensors((*self.args, *self.kwargs.values()))

    @cached_property
    def outputs(self) -> list[Tensor]:
        """All output tensors in order."""
        return _tensors((self.result,))


def _tensors(values: Iterable[Any]) -> list[Tensor]:
    """Return the tensors among arguments of an ATen operation, which are nested in lists and tuples only."""
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += _tensors(value)
    return found


@dataclass(frozen=True, kw_only=True, eq=False)
class WeightUse:
    """One use of a weight by a linear map.

    Attributes:
        weight: full name of the weight.
        columns: (in,) label of each input column, 0 where no unit is read; of the weight's rank if its inputs lie along
            several dimensions, with size 1 along the others.
        in_dim: dimension of the weight that counts inputs; of several, the last.
        out_dim: dimension of the weight that counts outputs.
        kernel_numel: number of kernel positions; 1 for a linear layer.
        scored: True if its inputs and output gradients can be recorded.
        activation: class name of the last activation that its input went through; None if there was none.
        inside: name of the module whose forward applied it.
        pass_number: number of the forward pass, from 0.
        spatial: number of spatial dimensions of its input.
        source: label maps of its input.
        uniform: True if its input has no units and is equal for all columns (zeros of a first state).
        normed: True if its input comes straight from a normalization over whole units.
        groups: number of groups of a convolution.
        transposed: True for a transposed convolution.
    """

    weight: str
    columns: Tensor
    in_dim: int
    out_dim: int
    kernel_numel: int
    scored: bool
    activation: str | None
    inside: str
    pass_number: int
    spatial: int
    source: list[Tensor]
    uniform: bool
    normed: bool
    groups: int = 1
    transposed: bool = False


@dataclass(kw_only=True, eq=False)
class NormUse:
    """One normalization over whole units.

    With C units and k that add nothing to its statistic, its output is (C' / (C' + k)) ** -power times what it was,
    where C' = C - spare.

    Attributes:
        module: name of the module that holds its weight; of the one that runs it if it has no weight.
        kind: `layer` or `rms`.
        label_map: label map of its input.
        power: exponent; 0 if the output stays as it is.
        spare: 1 for an unbiased variance.
        eps: (module, attribute) of the small number in the statistic; None if there is none.
        eps_power: exponent with which that must change.
        fixed_eps: True if the forward's own code holds that number.
        inputs: what enters.
        weights: full names of the parameters that multiply its output, by unit.
        shifts: full names of those that are added to it.
        reads: (weight, dimension) of maps that read its output with no such parameter in between.
        blocked: what keeps these from making up for it; None if nothing does.
        other_power: what `power` may be instead; None if it is certain.
    """

    module: str
    kind: Literal["layer", "rms"]
    label_map: Tensor
    power: float
    spare: int
    eps: tuple[str, str] | None
    eps_power: float
    fixed_eps: bool
    inputs: Sources
    weights: list[str] = field(default_factory=list)
    shifts: list[str] = field(default_factory=list)
    reads: list[tuple[str, int]] = field(default_factory=list)
    blocked: str | None = None
    other_power: float | None = None


@dataclass(frozen=True, kw_only=True)
class Sources:
    """What an activation is a sum of; see `linear_sources`.

    Attributes:
        gains: by full name of the weight, bias or table that makes a term, the parameters that scale it, by unit.
        obstacle: the first operation that isn't linear, or the same for all units; None if there is none.
    """

    gains: dict[str, tuple[str, ...]] = field(default_factory=dict)
    obstacle: str | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Step:
    """One followed operation, and the refusals that it caused.

    Attributes:
        call: the operation.
        refusals: indices into `Labels.refusals`.
    """

    call: Call
    refusals: range


# Operations that map zero to zero. A unit that a normalization gives as zero is still zero after them, so that the
# columns that read it may hold anything (`CoupledDim.behind_norm`).
PRESERVING_ZERO = frozenset(
    (
        *(
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
        ),
        *(
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
        ),
        *("relu", "gelu", "silu", "tanh", "native_dropout"),
    )
)
