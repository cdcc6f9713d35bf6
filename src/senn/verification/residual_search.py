"""Residual blocks, x -> x + f(x), after which another one like them can be put. Found by trying, in a copy.

A module is one if it gives back exactly what it is given once some of its parameters are zero: those that make what is
added to x. Which ones these are is found by giving parameters their values back in the order of use as long as the
module stays silent; what then is still zero is needed, every single one. A norm that ends the branch is therefore zero
rather than the map before it, whose zeros it would divide by nearly nothing.

A ReLU after the sum is no hindrance where x has been through a ReLU: it comes back as it was. With other inputs it
doesn't, and what counts is what really comes in. All parameters of the copy are disturbed, twice, so that nothing
rests on the ones and zeros of a fresh model.
"""

from __future__ import annotations

import copy
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from senn import pytree
from senn.errors import UnsupportedError, in_one_line
from senn.graph.types import LinearMap, Refusal, ResidualBlock, get_tensor
from senn.preserve import preserve_model_state
from senn.pytree import Inputs
from senn.surgery.repeat import counts_of, function_preserving_copy, have_positions, insert_copy_after
from senn.verification.verify_groups import is_close, perturb_parameters

_NOT_REPEATED = "nothing like it can be put after it"
_SMALL = 0.05  # of their size, for tensors that were zero: then what is added must be small too


def find_residual_blocks(
    model: nn.Module, inputs: Inputs, maps: Sequence[LinearMap], ignored: Collection[str] = ()
) -> tuple[list[ResidualBlock], list[Refusal]]:
    """The innermost residual blocks in order of use, and those after which nothing can be put.

    Args:
        model: isn't changed.
        inputs: of its forward.
        maps: its linear maps; a block has at least one.
        ignored: names of modules that stay as they are.
    """
    names = [name for name in _candidates(model, maps) if name not in ignored]
    if not names:
        return [], []
    try:
        trial = copy.deepcopy(model)
    except Exception as error:
        raise UnsupportedError(f"The model can't be copied: {in_one_line(error)}.") from error
    try:
        return _Search(trial, inputs, maps).run(names)
    except _BrokenError as reason:
        return [], [
            Refusal(
                place="",
                reason=f"no block of it can be repeated: with other parameters its forward pass fails ({reason})",
            )
        ]


class _BrokenError(Exception):
    """The copy doesn't run."""


def _candidates(model: nn.Module, maps: Sequence[LinearMap]) -> list[str]:
    """Modules that hold a linear map among others, and stand in one place."""
    inside = Counter(
        ".".join(parts[:depth]) for parts in (one.weight.split(".") for one in maps) for depth in range(1, len(parts))
    )
    holders = Counter(id(child) for module in model.modules() for child in module._modules.values())
    return [
        name
        for name, module in model.named_modules()
        if inside[name] and holders[id(module)] == 1 and not isinstance(module, nn.Linear | nn.modules.conv._ConvNd)
    ]


@dataclass(eq=False)
class _Visit:
    """What a module was given, the first tensor of it, and the first tensor that it gave back."""

    args: Any
    kwargs: Any
    inputs: Tensor
    made: Tensor | None = None

    @property
    def alike(self) -> bool:
        """Whether the module may be residual: it gave back a tensor of the shape of the one that it was given."""
        made = self.made
        alike = made is not None and (made.shape, made.dtype) == (self.inputs.shape, self.inputs.dtype)
        return alike and bool(self.inputs.any())


class _Search:
    """The search in a copy of the model, which it spoils.

    Attributes:
        trial: the copy.
        silent: of blocks found so far, which tensors are zero, by the module's class and its parameters' names.
    """

    def __init__(self, trial: nn.Module, inputs: Inputs, maps: Sequence[LinearMap]) -> None:
        self.trial, self.inputs = trial, inputs
        self.generator = torch.Generator().manual_seed(0)
        self.weights = {name for one in maps for name in (one.weight, one.bias) if name is not None}
        self.silent: dict[tuple[Any, ...], list[str]] = {}
        self.order: dict[int, int] = {}

    def run(self, names: list[str]) -> tuple[list[ResidualBlock], list[Refusal]]:
        """Blocks among these modules, and refusals."""
        parameters = dict(self.trial.named_parameters())
        trainable = {name for name, parameter in parameters.items() if parameter.requires_grad}
        refused: list[Refusal] = []
        blocks: list[ResidualBlock] = []
        with torch.no_grad(), preserve_model_state(self.trial, fused=False):
            perturb_parameters(self.trial, parameters, self.generator)
            found = self._found(self._visits(names, self.inputs))
            perturb_parameters(self.trial, parameters, self.generator)
            visits = self._visited_again(list(found))
            for name in visits:
                if not self._holds(name, visits[name], found[name]):
                    continue
                reason = self._unfit(name, visits[name], found[name], trainable)
                if reason is None:
                    blocks.append(ResidualBlock(module=name, output_params=found[name]))
                else:
                    refused.append(Refusal(place=name, reason=f"{_NOT_REPEATED}: {reason}"))
            placed, without = self._placed(blocks)
        return placed, [*refused, *without]

    def _visited_again(self, names: Sequence[str]) -> dict[str, _Visit]:
        """What modules are given with other inputs, if the model takes them (it may want positive ones)."""
        try:
            visits = self._visits(names, pytree.map_leaves(self._varied, self.inputs))
            if all(bool(visit.inputs.isfinite().all()) for visit in visits.values()):
                return visits
        except _BrokenError:
            pass
        return self._visits(names, self.inputs)

    def _varied(self, tensor: Tensor) -> Tensor:
        """Other entries of the same size, of either sign."""
        if not tensor.is_floating_point():
            return tensor
        factors = 2 * torch.rand(tensor.shape, generator=self.generator) - 1
        return torch.where(tensor.isfinite(), tensor * factors.to(tensor), tensor)

    # -- what modules are given

    def _visits(self, names: Sequence[str], inputs: Inputs) -> dict[str, _Visit]:
        """What modules that run once are given, and give back a tensor of the same shape for, in order of use."""
        visits: dict[str, list[_Visit]] = {name: [] for name in names}
        order: list[str] = []

        def enter(name: str) -> Any:
            def hook(_module: nn.Module, args: Any, kwargs: Any) -> None:
                args, kwargs = _copied((args, kwargs))
                given = pytree.tensor_leaves([args, kwargs])
                visits[name].append(_Visit(args, kwargs, given[0] if given else torch.empty(0)))
                order.append(name)

            return hook

        def leave(name: str) -> Any:
            def hook(_module: nn.Module, _args: Any, output: Any) -> None:
                made = _first(output)
                visits[name][-1].made = None if made is None else made.clone()

            return hook

        with ExitStack() as stack:
            for name in names:
                module = self.trial.get_submodule(name)
                stack.callback(module.register_forward_pre_hook(enter(name), with_kwargs=True).remove)
                stack.callback(module.register_forward_hook(leave(name)).remove)
            if not self.order:
                stack.enter_context(_Order(self.order))
            self._outputs(inputs)
        return {name: visits[name][0] for name in order if len(visits[name]) == 1 and visits[name][0].alike}

    def _outputs(self, inputs: Inputs | None = None) -> list[Tensor]:
        try:
            found = pytree.tensor_leaves(
                pytree.call(self.trial, pytree.clone(self.inputs if inputs is None else inputs))
            )
        except Exception as error:
            raise _BrokenError(in_one_line(error)) from error
        return [tensor for tensor in found if tensor.is_floating_point()]

    # -- what is zero

    def _found(self, visits: dict[str, _Visit]) -> dict[str, tuple[str, ...]]:
        """Tensors to be zero by the block's name: innermost blocks, in order of use."""
        found: dict[str, tuple[str, ...]] = {}
        for name in reversed(visits):  # what lies inside a module runs after it
            if any(other.startswith(f"{name}.") for other in found):
                continue
            if silent := self._silent(name, visits[name]):
                found[name] = tuple(silent)
        return {name: found[name] for name in visits if name in found}

    def _silent(self, name: str, visit: _Visit) -> list[str]:
        """The tensors of a module that are zero where it gives back what it is given; none if it never does."""
        module = self.trial.get_submodule(name)
        own = [key for key, parameter in module.named_parameters() if parameter.is_floating_point()]
        kind = (type(module), *own)
        known = [f"{name}.{key}" for key in self.silent.get(kind, ())]
        if known and self._holds(name, visit, known):
            return known
        names = sorted((f"{name}.{key}" for key in own), key=lambda full: self._rank(name, full))
        if not self._holds(name, visit, names):
            return []
        silent = self._released(name, visit, names, names)
        self.silent[kind] = [full.removeprefix(f"{name}.") for full in silent]
        return silent

    def _rank(self, block: str, full: str) -> tuple[bool, int]:
        """Place in the order of giving back: scales of a branch first, so that the map before them is zero instead."""
        owner = full.rpartition(".")[0]
        bare = owner == block or "scale" in type(self.trial.get_submodule(owner)).__name__.lower()
        scale = bare and full not in self.weights
        return not scale, self.order.get(id(get_tensor(self.trial, full)), -1)

    def _released(self, name: str, visit: _Visit, zero: list[str], some: list[str]) -> list[str]:
        """What stays zero when as many of some tensors as possible get their values back, in order, by halves."""
        rest = [full for full in zero if full not in some]
        if self._holds(name, visit, rest):
            return rest
        if len(some) == 1:
            return zero
        half = len(some) // 2
        zero = self._released(name, visit, zero, some[:half])
        return self._released(name, visit, zero, some[half:])

    def _holds(self, name: str, visit: _Visit, zero: Collection[str]) -> bool:
        """Whether the module gives back what it is given, bit by bit, while some tensors are zero."""
        with self._scaled(zero):
            output = self._output(name, visit)
        return output is not None and torch.equal(output, visit.inputs)

    def _output(self, name: str, visit: _Visit) -> Tensor | None:
        args, kwargs = _copied((visit.args, visit.kwargs))
        try:
            return _first(self.trial.get_submodule(name)(*args, **kwargs))
        except Exception:  # it doesn't run by itself, or not with zeros: no block then
            return None

    @contextmanager
    def _scaled(self, names: Collection[str], factor: float = 0.0) -> Iterator[None]:
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

    def _unfit(self, name: str, visit: _Visit, silent: Sequence[str], trainable: Collection[str]) -> str | None:
        """Why a silent copy couldn't learn little by little: frozen, or dead like a ReLU of zeros, or normalised."""
        frozen = next((full for full in silent if full not in trainable), None)
        if frozen is not None:
            return f"a silent copy couldn't learn, {frozen} is frozen"
        dead = self._dead(name, visit, silent)
        if dead is not None:
            return f"a silent copy couldn't learn, {dead}"
        with self._scaled(silent, _SMALL):
            little = self._output(name, visit)
        added = [(output - visit.inputs).double().norm() for output in (little, visit.made) if output is not None]
        if len(added) < 2 or added[0] > 6 * _SMALL * added[1]:
            return "what it adds is normalised, however small it is"
        return None

    def _dead(self, name: str, visit: _Visit, silent: Sequence[str]) -> str | None:
        """What has no gradient where a copy is silent."""
        parameters = [get_tensor(self.trial, full) for full in silent]
        with self._scaled(silent), torch.enable_grad():
            output = self._output(name, visit)
            if output is None or not output.requires_grad:
                return "it runs without gradients"
            draw = torch.randn(output.shape, generator=self.generator).to(output)
            grads = torch.autograd.grad((output * draw).sum(), parameters, allow_unused=True)
        for full, grad in zip(silent, grads, strict=True):
            if grad is None or not bool(grad.any()):
                return f"{full} has no gradient at zero"
        return None

    # -- where a copy goes

    def _placed(self, blocks: Sequence[ResidualBlock]) -> tuple[list[ResidualBlock], list[Refusal]]:
        """Blocks with where their copies go, and refusals.

        Of the blocks of one list the first and the last are tried. The first moves all others up: where that does no
        harm and the last can go in too, so can those between.
        """
        before = self._outputs()
        found: dict[str, ResidualBlock | str] = {}
        lists: dict[str, list[ResidualBlock]] = defaultdict(list)
        for block in blocks:
            lists[block.module.rpartition(".")[0]].append(block)
        for several in lists.values():
            ends = {block.module: self._place(block, before) for block in dict.fromkeys((several[0], several[-1]))}
            ways = {
                (end.in_module_list, end.depth_attributes) if isinstance(end, ResidualBlock) else (False, ())
                for end in ends.values()
            }
            for block in several:
                if block.module in ends:
                    found[block.module] = ends[block.module]
                elif len(ways) == 1 and (way := next(iter(ways)))[0]:
                    found[block.module] = replace(block, in_module_list=True, depth_attributes=way[1])
                else:
                    found[block.module] = self._place(block, before)
        ordered = [(block.module, found[block.module]) for block in blocks]
        return (
            [one for _, one in ordered if isinstance(one, ResidualBlock)],
            [Refusal(place=name, reason=f"{_NOT_REPEATED}: {one}") for name, one in ordered if isinstance(one, str)],
        )

    def _place(self, block: ResidualBlock, before: list[Tensor]) -> ResidualBlock | str:
        """The block with where its copy goes: into the list that it lies in, else beside it; or why nowhere."""
        path = block.module.rpartition(".")[0]
        options = []
        if isinstance(self.trial.get_submodule(path), nn.ModuleList | nn.Sequential):
            configured, own = counts_of(self.trial, path)
            # A number of layers is left alone unless it is read: by the forward pass, or by a cache, where layers know
            # their places in it.
            counts = [(), *((one,) for one in (*configured, *own))]
            if have_positions(self.trial, path):
                counts = [*((one,) for one in configured), *counts]
            options = [replace(block, in_module_list=True, depth_attributes=some) for some in counts]
        reason = ""
        for option in (*options, block):
            against = self._against(option, before)
            if against is None:
                return option
            reason = reason or against
        return reason

    def _against(self, block: ResidualBlock, before: list[Tensor]) -> str | None:
        """Why a silent copy doesn't run right after the block, with the same outputs; None if it does."""
        original, twin = self.trial.get_submodule(block.module), function_preserving_copy(self.trial, block)
        made: list[Tensor | None] = []
        read: list[Tensor] = []
        swaps = insert_copy_after(self.trial, [(block, twin)])
        with ExitStack() as stack:
            stack.callback(original.register_forward_hook(lambda *given: made.append(_first(given[-1]))).remove)
            entered = twin.register_forward_pre_hook(
                lambda _, args, kwargs: read.append(pytree.tensor_leaves([args, kwargs])[0].clone()), with_kwargs=True
            )
            stack.callback(entered.remove)
            for held, key, old, new in swaps:
                stack.callback(held.__setitem__, key, old)
                held[key] = new
            try:
                after = self._outputs()
            except _BrokenError as error:
                return f"the forward pass fails with it ({error})"
        if len(made) != 1 or len(read) != 1 or made[0] is None or not torch.equal(made[0], read[0]):
            return "the forward pass doesn't run what stands there"
        return None if is_close(before, after) else "the outputs depend on the number of layers"


class _Order(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes in which order operations read tensors first, by their identities."""

    def __init__(self, order: dict[int, int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.order = order

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in (*args, *kwargs.values()) if kwargs else args:
            self.order.setdefault(id(tensor), len(self.order))
        return func(*args, **(kwargs or {}))


def _first(output: Any) -> Tensor | None:
    """What a module gives back: a tensor, or the first of several."""
    found = pytree.tensor_leaves(output) if isinstance(output, Tensor | tuple | list) else []
    return found[0] if found else None


def _copied(arguments: Any) -> Any:
    """Arguments of their own memory, caches of keys and values included."""
    with torch.no_grad():
        try:
            return copy.deepcopy(arguments)
        except Exception:  # what can't be copied is passed on
            return pytree.clone(arguments)
