"""Search for residual blocks, x -> x + f(x), after which another one like them can be put, by trying in a copy.

A module is residual if it gives back exactly what it is given once some of its parameters are zero: those that make
what is added to x. Which ones these are is found by giving parameters their values back, in the order of use, as long
as the module still gives back its input; what is zero in the end is needed, every single one. A norm that ends the
branch is therefore zero rather than the map before it, whose zeros it would divide by nearly nothing.

A ReLU after the sum is no hindrance where x has been through a ReLU: it comes back as it was. With other inputs it
doesn't, and what counts is what really comes in. All parameters of the copy are perturbed, twice, so that nothing rests
on the ones and zeros of a fresh model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from senn import pytree
from senn.graph.forward_passes import ForwardPass
from senn.graph.named_tensors import get_tensor
from senn.graph.types import LinearMap, Refusal, ResidualBlock
from senn.preserve import preserve_model_state
from senn.verification.copy_placement import NOT_REPEATED, place_copies
from senn.verification.module_calls import (
    ForwardError,
    ModuleCall,
    copy_arguments,
    first_tensor,
    record_calls,
)
from senn.verification.verify_groups import perturb_parameters

# With its output parameters at this fraction of their size, a branch adds that fraction of what it added, or less; one
# that ends in a norm still adds all of it. The limit lies between the two.
_SMALL = 0.05
_LITTLE = 6 * _SMALL


def find_residual_blocks(
    model: nn.Module,
    passes: Sequence[ForwardPass],
    maps: Sequence[LinearMap],
    ignored: Collection[str] = (),
) -> tuple[list[ResidualBlock], list[Refusal]]:
    """Find the innermost residual blocks of a model, by trying in a copy.

    Args:
        model: a copy, which is spoiled: its parameters are others afterwards.
        passes: how it is run. Blocks are searched for in the first one, and their copies tried in all.
        maps: its linear maps; a block has at least one.
        ignored: names of modules that stay as they are.

    Returns:
        Blocks in order of use, and refusals of those after which nothing can be put.
    """
    names = [name for name in _candidates(model, maps) if name not in ignored]
    if not names:
        return [], []
    try:
        return _Search(model, passes, maps).run(names)
    except ForwardError as error:
        reason = f"no block of it can be repeated: with other parameters its forward pass fails ({error})"
        return [], [Refusal(place="", reason=reason)]


def _candidates(model: nn.Module, maps: Sequence[LinearMap]) -> list[str]:
    """Return the modules that hold a linear map, aren't one, and stand in one place."""
    around: set[str] = set()
    for linear in maps:
        path = linear.weight.rpartition(".")[0]
        while path:
            around.add(path)
            path = path.rpartition(".")[0]
    holders: Counter[int] = Counter()
    for module in model.modules():
        holders.update(id(child) for child in module._modules.values())
    found = []
    for name, module in model.named_modules():
        is_map = isinstance(module, nn.Linear | nn.modules.conv._ConvNd)
        if name in around and holders[id(module)] == 1 and not is_map:
            found.append(name)
    return found


class _Search:
    """Search in a copy of the model, which it spoils.

    Args:
        trial: the copy.
        passes: how it is run, first in evaluation mode.
        maps: its linear maps.

    Attributes:
        zeros: output parameters of blocks found so far, by the module's class and its parameters' names: the next block
            of a kind is likely to have the same.
        order: the order in which tensors are read first, by id.
    """

    def __init__(
        self, trial: nn.Module, passes: Sequence[ForwardPass], maps: Sequence[LinearMap]
    ) -> None:
        self.trial, self.passes, self.inputs = trial, passes, passes[0].inputs
        self.generator = torch.Generator().manual_seed(0)
        self.weights = {
            name for linear in maps for name in (linear.weight, linear.bias) if name is not None
        }
        self.zeros: dict[tuple[Any, ...], list[str]] = {}
        self.order: dict[int, int] = {}

    def run(self, names: list[str]) -> tuple[list[ResidualBlock], list[Refusal]]:
        """Return the blocks among these modules, and refusals."""
        parameters = dict(self.trial.named_parameters())
        trainable = {name for name, parameter in parameters.items() if parameter.requires_grad}
        refused: list[Refusal] = []
        blocks: list[ResidualBlock] = []
        with torch.no_grad(), preserve_model_state(self.trial, fused=False):
            perturb_parameters(self.trial, parameters, self.generator)
            found = self._found(record_calls(self.trial, names, self.inputs, self.order))
            # Once more with other parameters and inputs: what was residual by chance isn't now.
            perturb_parameters(self.trial, parameters, self.generator)
            calls = self._other_calls(list(found))
            for name, call in calls.items():
                if not self._is_identity(name, call, found[name]):
                    continue
                objection = self._objection(name, call, found[name], trainable)
                if objection is None:
                    blocks.append(ResidualBlock(module=name, output_params=found[name]))
                else:
                    refused.append(Refusal(place=name, reason=f"{NOT_REPEATED}: {objection}"))
            placed, without = place_copies(self.trial, self.passes, blocks)
        return placed, [*refused, *without]

    def _other_calls(self, names: Sequence[str]) -> dict[str, ModuleCall]:
        """Record calls with other inputs, if the model takes them (it may want positive ones)."""
        try:
            calls = record_calls(
                self.trial, names, pytree.map_leaves(self._varied, self.inputs), self.order
            )
            if all(bool(call.inputs.isfinite().all()) for call in calls.values()):
                return calls
        except ForwardError:
            pass
        return record_calls(self.trial, names, self.inputs, self.order)

    def _varied(self, tensor: Tensor) -> Tensor:
        """Return other entries of the same size, of either sign; integers (tokens) and infinities (masks) stay."""
        if not tensor.is_floating_point():
            return tensor
        factors = 2 * torch.rand(tensor.shape, generator=self.generator) - 1
        return torch.where(tensor.isfinite(), tensor * factors.to(tensor), tensor)

    # -- what is zero

    def _found(self, calls: dict[str, ModuleCall]) -> dict[str, tuple[str, ...]]:
        """Return the output parameters of the innermost blocks, by the block's name, in order of use."""
        found: dict[str, tuple[str, ...]] = {}
        for name in reversed(calls):  # what lies inside a module is entered after it
            if any(other.startswith(f"{name}.") for other in found):
                continue
            zeros = self._output_params(name, calls[name])
            if zeros:
                found[name] = tuple(zeros)
        return {name: found[name] for name in calls if name in found}

    def _output_params(self, name: str, call: ModuleCall) -> list[str]:
        """Find the tensors that are zero where a module gives back its input; none if it never does."""
        module = self.trial.get_submodule(name)
        own = [key for key, parameter in module.named_parameters() if parameter.is_floating_point()]
        kind = (type(module), *own)
        known = [f"{name}.{key}" for key in self.zeros.get(kind, ())]
        if known and self._is_identity(name, call, known):
            return known
        every = [f"{name}.{key}" for key in own]
        names = sorted(every, key=lambda full: self._rank(name, full))
        # With all of them zero most modules give zeros: then no fewer will do.
        if not self._is_identity(name, call, names):
            return []
        zeros = self._released(name, call, names, names)
        self.zeros[kind] = [full.removeprefix(f"{name}.") for full in zeros]
        return zeros

    def _rank(self, block: str, full: str) -> tuple[bool, int]:
        """Return a tensor's place in the order in which values are given back."""
        owner = full.rpartition(".")[0]
        kind = type(self.trial.get_submodule(owner)).__name__.lower()
        bare = owner == block or "scale" in kind
        # Scales of a branch (LayerScale) first, so that the map before them is zero instead: a scale of zero would stop
        # the gradient of everything before it.
        is_scale = bare and full not in self.weights
        tensor = get_tensor(self.trial, full)
        return not is_scale, self.order.get(id(tensor), -1)

    def _released(
        self, name: str, call: ModuleCall, zeros: list[str], some: list[str]
    ) -> list[str]:
        """Give as many of some tensors as possible their values back, in order, by halves; return what stays zero."""
        rest = [full for full in zeros if full not in some]
        if self._is_identity(name, call, rest):
            return rest
        if len(some) == 1:
            return zeros
        half = len(some) // 2
        zeros = self._released(name, call, zeros, some[:half])
        return self._released(name, call, zeros, some[half:])

    def _is_identity(self, name: str, call: ModuleCall, zeros: Collection[str]) -> bool:
        """Return True if the module gives back its input, bit by bit, while some tensors are zero."""
        with self._scaled(zeros):
            output = self._output(name, call)
        return output is not None and torch.equal(output, call.inputs)

    def _output(self, name: str, call: ModuleCall) -> Tensor | None:
        args, kwargs = copy_arguments((call.args, call.kwargs))
        try:
            return first_tensor(self.trial.get_submodule(name)(*args, **kwargs))
        except Exception:  # it doesn't run by itself, or not with zeros: no block then
            return None

    @contextmanager
    def _scaled(self, names: Collection[str], factor: float = 0.0) -> Iterator[None]:
        """Multiply tensors by a factor inside the context."""
        parameters = list(dict.fromkeys(get_tensor(self.trial, name) for name in names))
        values = [parameter.data for parameter in parameters]
        try:
            for parameter in parameters:
                parameter.data = factor * parameter.data
            yield
        finally:
            for parameter, value in zip(parameters, values, strict=True):
                parameter.data = value

    # -- what stands against it

    def _objection(
        self, name: str, call: ModuleCall, zeros: Sequence[str], trainable: Collection[str]
    ) -> str | None:
        """Say why a function-preserving copy couldn't learn little by little; None if it could."""
        frozen = next((full for full in zeros if full not in trainable), None)
        if frozen is not None:
            return f"a function-preserving copy couldn't learn, {frozen} is frozen"
        dead = self._dead(name, call, zeros)
        if dead is not None:
            return f"a function-preserving copy couldn't learn, {dead}"
        with self._scaled(zeros, _SMALL):
            little = self._output(name, call)
        if little is None or call.output is None:
            return "what it adds is normalized, however small it is"
        added = (little - call.inputs).double().norm()
        whole = (call.output - call.inputs).double().norm()
        # A norm at the end of the branch divides by the size of what it is given.
        return (
            "what it adds is normalized, however small it is" if added > _LITTLE * whole else None
        )

    def _dead(self, name: str, call: ModuleCall, zeros: Sequence[str]) -> str | None:
        """Say which tensor has no gradient where a copy adds nothing; None if all have one."""
        parameters = [get_tensor(self.trial, full) for full in zeros]
        with self._scaled(zeros), torch.enable_grad():
            output = self._output(name, call)
            if output is None or not output.requires_grad:
                return "it runs without gradients"
            # A random direction: the sum of the outputs has no gradient where a norm follows.
            draw = torch.randn(output.shape, generator=self.generator).to(output)
            grads = torch.autograd.grad((output * draw).sum(), parameters, allow_unused=True)
        for full, grad in zip(zeros, grads, strict=True):
            if grad is None or not bool(grad.any()):
                return f"{full} has no gradient at zero"
        return None
