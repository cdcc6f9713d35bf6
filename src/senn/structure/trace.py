"""One run of a model's own forward pass, with labels on every tensor."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from senn.errors import SennError
from senn.structure.labels import Labels
from senn.structure.rules import Call, rule_for

Inputs = tuple[Any, ...]

# Modules that are a per-unit non-linearity; other modules are recognised by the operations that they call.
_ACTIVATION_MODULES = frozenset(
    (
        *("CELU", "ELU", "GELU", "Hardshrink", "Hardsigmoid", "Hardswish", "Hardtanh", "LeakyReLU", "LogSigmoid"),
        *("Mish", "PReLU", "RReLU", "Rational", "ReLU", "ReLU6", "SELU", "SiLU", "Sigmoid", "Softplus", "Softshrink"),
        *("Softsign", "Tanh", "Tanhshrink", "Threshold"),
    )
)
_ACTIVATION_OPERATIONS = {
    "celu": "CELU",
    "elu": "ELU",
    "gelu": "GELU",
    "hardsigmoid": "Hardsigmoid",
    "hardswish": "Hardswish",
    "hardtanh": "Hardtanh",
    "leaky_relu": "LeakyReLU",
    "log_sigmoid_forward": "LogSigmoid",
    "mish": "Mish",
    "_prelu_kernel": "PReLU",
    "relu": "ReLU",
    "sigmoid": "Sigmoid",
    "silu": "SiLU",
    "softplus": "Softplus",
    "tanh": "Tanh",
}


@dataclass(frozen=True, eq=False)
class Use:
    """One use of a linear map's weight.

    Attributes:
        linear: name of the linear map.
        columns: (in,) label of each input column, 0 where no unit is read.
        activation: class name of the activation that its input went through last, if any.
        inside: whether the linear map's own forward made this use.
    """

    linear: str
    columns: Tensor
    activation: str | None
    inside: bool


class Trace:
    """What one forward pass showed. Rules read and write it; `structure.analysis` reads it afterwards.

    Attributes:
        model: the model that ran.
        record: labels, and what was learnt about them.
        uses: the uses of linear maps in order.
        misuses: linear maps whose weight was used in another way, and where.
        not_understood: modules, or parameters of the model itself, that an operation without a rule reads, and why.
        activations: class names of the activations in order of use, by module or, for functions, by number.
        reached: identities of the tensors that operations read.
        path: names of the modules that run now, innermost last.
        output: what the model returned.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.record = Labels()
        self.uses: list[Use] = []
        self.misuses: dict[str, str] = {}
        self.not_understood: dict[str, str] = {}
        self.activations: dict[str | int, str] = {}
        self.reached: set[int] = set()
        self.path = [""]
        self.output: Any = None
        self._held: list[Tensor] = []  # tensors are known by identity: holding them keeps it from being used again
        self._labels: dict[int, Tensor] = {}
        self._opaque: dict[int, str] = {}
        self._activation: dict[int, str] = {}
        self._weights: dict[int, tuple[str, bool]] = {}
        self._parameters: dict[int, tuple[str, str, bool]] = {}
        for name, module in model.named_modules():
            for key, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
                if isinstance(module, nn.Linear) and key == "weight":
                    self._weights.setdefault(id(tensor), (name, False))
                else:
                    self._parameters.setdefault(id(tensor), (name, key, _serves_all(module)))

    @property
    def place(self) -> str:
        """The module that runs now, for sentences."""
        name = self.path[-1]
        kind = type(self.model.get_submodule(name)).__name__
        return f"{name} ({kind})" if name else f"the model's own forward ({kind})"

    def is_labelled(self, tensor: Tensor) -> bool:
        """Whether entries of a tensor belong to units, or may: parameters and buffers have labels too."""
        if id(tensor) in self._labels:
            return bool(self._labels[id(tensor)].any())
        return id(tensor) in self._parameters

    def labels(self, tensor: Tensor) -> Tensor:
        """The labels of a tensor, of its shape."""
        key = id(tensor)
        if key not in self._labels:
            if key in self._parameters:
                module, name, shared = self._parameters[key]
                labels = self.record.issue(module, name, tuple(tensor.shape), shared=shared)
                if key in self._opaque:
                    self.record.refuse(labels, self._opaque[key])
            else:
                labels = torch.zeros(tensor.shape, dtype=torch.long)
            self._labels[key] = labels.to(tensor.device)
        return self._labels[key]

    def mark(self, tensor: Tensor, labels: Tensor) -> None:
        """Give a tensor its labels; one that has some keeps their memory, which its views share."""
        known = self._labels.get(id(tensor))
        if known is not None and known is not labels and known.shape == labels.shape:
            known.copy_(labels)
        else:
            self._labels[id(tensor)] = labels

    def refuse(self, tensor: Tensor, reason: str) -> None:
        """Refuse the units of a tensor; a parameter without labels yet is remembered without labelling it."""
        if id(tensor) in self._labels:
            self.record.refuse(self._labels[id(tensor)], reason)
        elif id(tensor) in self._parameters:
            self._opaque.setdefault(id(tensor), reason)

    def cannot_read(self, tensor: Tensor, operation: str) -> None:
        """Note that an operation without a rule reads a tensor: refuse its units; a parameter's module is named."""
        self.refuse(tensor, f"its units meet {operation} in {self.place}, which isn't understood yet")
        if id(tensor) in self._parameters:
            module, name, _ = self._parameters[id(tensor)]
            self.not_understood.setdefault(module or name, f"{operation} in {self.place} isn't understood yet")

    def weight_of(self, tensor: Tensor, *, transposed: bool) -> str | None:
        """Name of the linear map whose weight this tensor is, (out, in) or transposed; None if it is none."""
        name, flipped = self._weights.get(id(tensor), (None, False))
        return name if flipped == transposed else None

    def use(self, linear: str, columns: Tensor, source: Tensor) -> None:
        """Note that a linear map read `source`, whose features have the labels `columns`."""
        inside = self.path[-1] == linear
        self.uses.append(Use(linear, columns.cpu(), self._activation.get(id(source)), inside))

    def produce(self, linear: str) -> Tensor:
        """Labels of a linear map's outputs, (out,)."""
        rows = self.model.get_submodule(linear).get_parameter("weight").shape[0]
        return self.record.issue(linear, "weight", (rows,), produces=True, shared=False)

    def note_activation(self, call: Call) -> None:
        """Remember the activation that a pointwise operation is or belongs to."""
        kind = type(self.model.get_submodule(self.path[-1])).__name__
        operation = call.name.removeprefix("aten::").removesuffix("_")
        name = kind if kind in _ACTIVATION_MODULES else _ACTIVATION_OPERATIONS.get(operation)
        if name is not None:
            self.activations[self.path[-1] if name is kind else len(self.activations)] = name
            self._activation |= {id(tensor): name for tensor in call.outputs}

    def see(self, call: Call) -> None:
        """Follow one operation."""
        self.reached.update(id(tensor) for tensor in call.tensors)
        self._held += call.outputs
        uses = len(self.uses)
        rule_for(call.func)(self, call)
        if len(self.uses) > uses:
            return
        for tensor in call.tensors:
            if id(tensor) in self._activation:
                for output in call.outputs:
                    self._activation.setdefault(id(output), self._activation[id(tensor)])
            if id(tensor) in self._weights and not self._follow_weight(call):
                operation = call.name.removeprefix("aten::").removesuffix("_")
                self.misuses.setdefault(self._weights[id(tensor)][0], f"{operation} in {self.place}")

    def _follow_weight(self, call: Call) -> bool:
        """A transposed, cast or copied weight is still the weight; False if the operation does something else."""
        operation, args = call.name.removeprefix("aten::"), call.args
        flip = operation == "t"
        if operation == "transpose":
            flip = (args[1] - args[2]) % 2 == 1
        elif operation == "permute":
            flip = args[1][0] % 2 == 1
        elif operation not in ("t", "detach", "alias", "clone", "_to_copy", "lift_fresh"):
            return False
        name, flipped = self._weights[id(args[0])]
        self._weights[id(call.outputs[0])] = (name, flipped != flip)
        return True


def _serves_all(module: nn.Module) -> bool:
    """Whether a parameter with one entry, met in this module by a space of one unit, would serve more units as well.

    A module that counts its parameters has one per unit, except PReLU, whose single slope serves all.
    """
    per_unit = isinstance(module, nn.Linear) or isinstance(getattr(module, "num_parameters", None), int)
    return not per_unit or isinstance(module, nn.PReLU)


class _Dispatch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Shows every ATen operation to a trace."""

    def __init__(self, trace: Trace) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.trace = trace

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.trace.see(Call(func, args, kwargs or {}, result))
        return result


@contextmanager
def untouched(model: nn.Module, inputs: Inputs) -> Iterator[None]:
    """Eval mode without gradients; training flags, buffers and random number generators are as before afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    registers = [(module, dict(module._buffers)) for module in model.modules()]
    tensors = [*model.parameters(), *(leaf for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor))]
    fast_path = torch.backends.mha.get_fastpath_enabled()
    try:
        for module, _ in modes:
            module.training = False
        torch.backends.mha.set_fastpath_enabled(False)  # it hides the linear maps inside transformer layers
        with torch.no_grad(), torch.random.fork_rng(sorted({t.device.index or 0 for t in tensors if t.is_cuda})):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        for module, mode in modes:
            module.training = mode
        for module, register in registers:
            module._buffers.update(register)
        with torch.no_grad():
            for buffer, before in buffers:
                if not torch.equal(buffer, before):
                    buffer.copy_(before)


@contextmanager
def _followed(trace: Trace) -> Iterator[None]:
    """Keep `trace.path` while modules run."""

    def leave(*_: Any) -> None:
        trace.path.pop()

    def enter(name: str) -> Any:
        return lambda *_: trace.path.append(name)

    with ExitStack() as stack:
        for name, module in trace.model.named_modules():
            for handle in (
                module.register_forward_pre_hook(enter(name), prepend=True),
                module.register_forward_hook(leave, always_call=True),
            ):
                stack.callback(handle.remove)
        yield


def run(model: nn.Module, inputs: Inputs) -> Trace:
    """Run the model once in eval mode and follow its labels.

    Raises:
        SennError: the forward pass fails on these inputs.
    """
    trace = Trace(model)
    with untouched(model, inputs), _followed(trace), _Dispatch(trace):
        try:
            trace.output = call(model, inputs)
        except Exception as error:
            raise SennError(f"The model's forward pass fails on the example inputs: {describe(error)}.") from error
    return trace


def call(model: nn.Module, inputs: Inputs) -> Any:
    """The model's output for copies of the inputs, which it may write to."""
    return model(*pytree.tree_map_only(Tensor, lambda tensor: tensor.detach().clone(), inputs))


def describe(error: Exception) -> str:
    """An error in one line."""
    text = str(error).strip().split("\n")[0].rstrip(".")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
