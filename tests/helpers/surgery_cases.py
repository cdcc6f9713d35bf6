"""Small networks for the surgery's tests."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from senn.graph import DependencyGraph, analyze
from senn.nn import Rational
from senn.surgery import Widen


def mlp(
    sizes: list[int], activation: type[nn.Module] = nn.Tanh, batch_norm: bool = False
) -> nn.Sequential:
    """Linear maps `0`, `k`, `2k`, ... with an activation (after a BatchNorm) between them."""
    layers: list[nn.Module] = []
    for i, o in itertools.pairwise(sizes):
        layers += [nn.Linear(i, o), *([nn.BatchNorm1d(o)] if batch_norm else []), activation()]
    return nn.Sequential(*layers[: -2 if batch_norm else -1])


class Concat(nn.Module):
    """`fc` reads [a(x), x, b(x)]: new columns go in the middle."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = nn.Linear(3, 4), nn.Linear(3, 2), nn.Linear(9, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.cat([self.a(x).tanh(), x, self.b(x).tanh()], 1))


class Tokens(nn.Module):
    """One token per input feature; their units are flattened unit by unit, or token by token."""

    def __init__(self, unit_major: bool) -> None:
        super().__init__()
        self.token, self.act, self.fc = nn.Linear(1, 4), nn.PReLU(4), nn.Linear(12, 2)
        self.unit_major = unit_major

    def forward(self, x: Tensor) -> Tensor:
        h = self.act(self.token(x.unsqueeze(2)).transpose(1, 2))
        return self.fc((h if self.unit_major else h.transpose(1, 2)).flatten(1))


class Stream(nn.Module):
    """A residual stream: the block's map both writes and reads it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.block, self.last = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return self.last(h + self.block(h).tanh())


X = torch.randn(16, 3, generator=torch.Generator().manual_seed(0))
X64 = X.double()
Y64 = torch.randn(16, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
CASES: dict[str, Callable[[], nn.Module]] = {
    "mlp": lambda: mlp([3, 5, 4, 2]),
    "batch norm": lambda: mlp([3, 5, 4, 2], batch_norm=True),
    "rational": lambda: nn.Sequential(nn.Linear(3, 4), Rational(4), nn.Linear(4, 2)),
    "concat": Concat,
    "unit-major": lambda: Tokens(True),
    "interleaved": lambda: Tokens(False),
    "stream": Stream,
    "no bias": lambda: nn.Sequential(
        nn.Linear(3, 4, bias=False), nn.GELU(), nn.Linear(4, 2, bias=False)
    ),
}


def case(name: str, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, DependencyGraph]:
    """A fresh model, and its graph: names and positions, which hold for every such model."""
    return _model(name, dtype), _graph(name, dtype)


@functools.cache
def _graph(name: str, dtype: torch.dtype) -> DependencyGraph:
    return analyze(_model(name, dtype), X.to(dtype))


def _model(name: str, dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(3)
    model = CASES[name]()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return model.to(dtype)


def identity_layer(
    width: int, dtype: torch.dtype = torch.float32
) -> tuple[nn.Module, Tensor, Tensor]:
    """x -> PReLU(B x + beta) with slope 1, and the `right` and `shift` that make up for it."""
    layer = nn.Sequential(nn.Linear(width, width), nn.PReLU(width, init=1.0)).to(dtype)
    with torch.no_grad():
        layer[0].weight.add_(2 * torch.eye(width))
    inverse = layer[0].weight.detach().double().inverse()
    return layer, inverse, -inverse @ layer[0].bias.detach().double()


def silent(width: int) -> nn.Module:
    """The branch of a residual layer whose outputs are zero."""
    branch = nn.Sequential(nn.Linear(width, 3), nn.Tanh(), nn.Linear(3, width))
    nn.init.zeros_(branch[2].weight)
    nn.init.zeros_(branch[2].bias)
    return branch


def widen(model: nn.Module, graph: DependencyGraph, name: str, count: int, seed: int = 0) -> Widen:
    """New units with random incoming weights."""
    generator = torch.Generator().manual_seed(seed)
    values = {}
    for coupled in graph.group(name).dims_of("producer"):
        tensor = model.get_submodule(coupled.module).get_parameter(coupled.tensor)
        shape = list(tensor.shape)
        shape[coupled.dim] = count * coupled.index.shape[1]
        values[coupled.name] = torch.randn(shape, generator=generator, dtype=torch.float64).to(
            tensor
        )
    return Widen(name, count, values)


def evaluate(closure: Any) -> Any:
    """What an optimizer's step does with its closure."""
    with torch.enable_grad():
        return None if closure is None else closure()


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    steps: int,
    after: Callable[[], None] = lambda: None,
) -> list[float]:
    """Training steps on X64, Y64; returns the losses before each."""
    losses = []

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (model(X64) - Y64).square().mean()
        loss.backward()
        return loss

    for _ in range(steps):
        losses.append(float(optimizer.step(closure).detach()))
        after()
    return losses


def net() -> tuple[nn.Sequential, DependencyGraph]:
    """Two hidden layers, always with the same weights, in float64."""
    torch.manual_seed(1)
    model = mlp([3, 5, 4, 2]).double()
    return model, analyze(model, X64)


def everything(model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> list[object]:
    """Objects and bits of a model and its optimizer, to compare before with after."""
    found: list[object] = []
    for name, module in model.named_modules():
        found += [name, id(module), [(key, _mark(value)) for key, value in vars(module).items()]]
    for tensor in (*model.parameters(), *model.buffers()):
        found += [
            id(tensor),
            tensor.tolist(),
            id(tensor.grad),
            None if tensor.grad is None else tensor.grad.tolist(),
        ]
        found += [id(tensor._backward_hooks), tensor.requires_grad, tensor.stride()]
    if optimizer is not None:
        for group in optimizer.param_groups:
            found += [id(group), [(key, _mark(value)) for key, value in group.items()]]
        for p, state in optimizer.state.items():
            found += [
                id(p),
                id(state),
                [(key, id(value), _mark(value)) for key, value in state.items()],
            ]
            found += [value.tolist() for value in state.values() if isinstance(value, Tensor)]
    return found


def _mark(value: object) -> object:
    """A plain value, or which objects it is and holds."""
    if isinstance(value, dict):
        return id(value), [(key, id(item)) for key, item in value.items()]
    if isinstance(value, list):
        return id(value), [id(item) for item in value]
    return value if isinstance(value, bool | int | float | str | tuple | None) else id(value)
