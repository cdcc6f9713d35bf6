"""The optimizers in what a loop calls its optimizer: one, several, and those that others wrap."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from senn.errors import SennError, UnsupportedError

# What can't hold state that follows a parameter, or is no business of an optimizer.
_LEAVES = (
    *(Tensor, nn.Module, bool, int, float, complex, str, bytes, type, type(None)),
    *(FunctionType, MethodType, BuiltinFunctionType, ModuleType),
    *(torch.dtype, torch.device, torch.Generator),
)
# Entries of an optimizer that hold functions, or what `OptimizerLayers` lists by itself.
HOOKS = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")


class OptimizerLayers:
    """All optimizers that can be reached from what a loop calls its optimizer.

    Args:
        given: an optimizer; a list or tuple of them; or an object that holds some among its attributes.

    Attributes:
        given: as given, in a list.
        optimizers: the optimizers, the outer ones first.

    Raises:
        UnsupportedError: something given neither is nor holds an optimizer.
    """

    def __init__(self, given: Any) -> None:
        self.given: list[Any] = [*given] if isinstance(given, list | tuple) else [given]
        found: dict[int, Optimizer] = {}
        for one in self.given:
            inside = {id(it): it for it in reachable(one) if isinstance(it, Optimizer)}
            if not inside:
                raise UnsupportedError(
                    f"the optimizer must be a torch.optim.Optimizer, not a {type(one).__name__}"
                )
            found |= inside
        if not found:
            raise UnsupportedError("the optimizer is an empty list")
        self.optimizers = tuple(found.values())

    @property
    def groups(self) -> list[dict[str, Any]]:
        """Every group once; wrappers share those of what they wrap."""
        groups = {id(group): group for one in self.optimizers for group in one.param_groups}
        return [*groups.values()]

    @property
    def parameters(self) -> dict[nn.Parameter, None]:
        """Every parameter that is held, in order."""
        return dict.fromkeys(one for group in self.groups for one in group["params"])

    @cached_property
    def states(self) -> list[tuple[Optimizer, dict[Any, Any]]]:
        """Every optimizer's own state once, with the innermost optimizer that has it."""
        states: dict[int, tuple[Optimizer, dict[Any, Any]]] = {}
        for one in self.optimizers:
            state = vars(one).get("state")
            if isinstance(state, dict):
                states[id(state)] = (one, state)
        return [*states.values()]


def reachable(root: Any) -> Iterator[Any]:
    """Yield an object and all that it holds, in attributes and containers, outer ones first.

    Args:
        root: where to start; modules, tensors and functions aren't entered.
    """
    seen: set[int] = set()
    waiting = [root]
    while waiting:
        value = waiting.pop(0)
        if id(value) in seen:
            continue
        seen.add(id(value))
        yield value
        waiting += contents(value).values()


def contents(value: Any) -> dict[Any, Any]:
    """Return what an object holds, by key, index or name of the attribute; nothing for a leaf.

    Args:
        value: of any kind.
    """
    if isinstance(value, _LEAVES):
        return {}
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, list | tuple) or hasattr(value, "maxlen"):
        return dict(enumerate(value))
    if isinstance(value, set | frozenset):
        return dict(enumerate(value))
    is_library = type(value).__module__.partition(".")[0] in ("torch", "builtins", "logging")
    if is_library and not isinstance(value, Optimizer):
        return {}
    held = dict(getattr(value, "__dict__", {}))
    for kind in type(value).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if hasattr(value, name) and not name.startswith("__"):
                held[name] = getattr(value, name)
    return {name: one for name, one in held.items() if name not in HOOKS}


def leaves_in(value: Any, seen: set[int] | None = None) -> Iterator[Any]:
    """Yield all tensors and plain values inside a state, in any nesting.

    Args:
        value: of any kind.
        seen: identities of what was entered before, for cycles.
    """
    seen = set() if seen is None else seen
    inside = contents(value)
    if not inside:
        yield value
    elif id(value) not in seen:
        seen.add(id(value))
        for one in inside.values():
            yield from leaves_in(one, seen)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield all tensors inside a state, in any nesting.

    Args:
        value: of any kind.
    """
    return (one for one in leaves_in(value) if isinstance(one, Tensor))


def memory_of(tensor: Tensor) -> int:
    """Return the address of the memory that a tensor is a view of; 0 if it has none.

    Args:
        tensor: of any kind.
    """
    return tensor.untyped_storage().data_ptr() if tensor.layout == torch.strided else 0


def is_plain(layers: OptimizerLayers) -> bool:
    """Tell whether all is torch's own: these classes have no state but what is known to follow.

    Args:
        layers: the optimizers.
    """
    every = (*layers.given, *layers.optimizers)
    return all(type(one).__module__.startswith("torch.") for one in every)


def made_anew(value: Any) -> tuple[str, ...]:
    """Return the attributes of an optimizer that hold what it makes anew by itself where a parameter has changed.

    Its class names them in `state_made_anew`. Entries in there whose key is a changed parameter are dropped.

    Args:
        value: of any kind; only optimizers have such attributes.
    """
    named: tuple[str, ...] = getattr(type(value), "state_made_anew", ())
    return named if isinstance(value, Optimizer) else ()


def takes_data(layers: OptimizerLayers) -> bool:
    """Tell whether a step can't be tried, since an optimizer runs the model on a batch: `step_takes_data` of its class.

    New entries of such an optimizer's own state start with zeros.

    Args:
        layers: the optimizers.
    """
    return any(getattr(type(one), "step_takes_data", False) for one in layers.optimizers)


def unwrap(optimizer: Any) -> Optimizer:
    """Return the torch optimizer inside wrappers (accelerate's, some libraries' own): the innermost of the first one.

    Args:
        optimizer: an optimizer, or an object that holds one.

    Raises:
        UnsupportedError: there is none.
    """
    inner: Any = OptimizerLayers(optimizer).optimizers[0]
    while isinstance(getattr(inner, "optimizer", None), Optimizer):
        inner = inner.optimizer
    unwrapped: Optimizer = inner
    return unwrapped


def check_holds(optimizer: Any, model: nn.Module) -> None:
    """Refuse optimizers that hold none of a model's trainable parameters.

    Args:
        optimizer: what the loop calls its optimizer.
        model: that it should train.

    Raises:
        SennError: none of the parameters is held.
        UnsupportedError: it isn't an optimizer.
    """
    held = OptimizerLayers(optimizer).parameters
    trainable = {
        name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad
    }
    if trainable and not any(parameter in held for parameter in trainable.values()):
        raise SennError(
            f"the optimizer doesn't hold the model's parameters (first: '{next(iter(trainable))}')"
        )


def untrained(optimizer: Any, model: nn.Module) -> tuple[str, ...]:
    """List the trainable parameters of a model that no optimizer holds: what is bought there would never learn.

    Args:
        optimizer: what the loop calls its optimizer; None for a model without one.
        model: that it trains.

    Returns:
        Full names, under every name that a tied parameter has; none without an optimizer.
    """
    if optimizer is None:
        return ()
    held = OptimizerLayers(optimizer).parameters
    return tuple(
        name
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if parameter.requires_grad and parameter not in held
    )
