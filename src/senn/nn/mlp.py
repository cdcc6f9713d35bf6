"""A multilayer perceptron made of ordinary layers."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence

from torch import Tensor, nn

from senn.errors import SennError
from senn.nn.rational import Rational

Activation = str | Callable[..., nn.Module]

_ACTIVATIONS: dict[str, Callable[..., nn.Module]] = {
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "identity": nn.Identity,
    "leaky_relu": nn.LeakyReLU,
    "prelu": nn.PReLU,
    "rational": Rational,
    "relu": nn.ReLU,
    "selu": nn.SELU,
    "sigmoid": nn.Sigmoid,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
    "tanh": nn.Tanh,
}


class MLP(nn.Module):
    """Linear maps with activations between them, (..., in_features) to (..., out_features).

    Each hidden layer is Linear, then BatchNorm1d if asked for, then the activation, then Dropout if asked for; all
    of them lie in `body`, an `nn.Sequential`.

    Args:
        in_features: size of the input.
        hidden: widths of the hidden layers; `()` leaves one linear map.
        out_features: size of the output.
        activation: a name (`relu`, `tanh`, `rational`, ...), a module class, or a function that makes one; what
            takes `num_parameters` (Rational, PReLU) gets the layer's width.
        norm: `"batch"` or None.
        dropout: probability in [0, 1) with which a hidden unit is dropped in training.
        shortcut: whether the inputs also reach the outputs through one linear map of their own, `shortcut`, that starts
            at zero; hidden units are then left with what is not linear. Needs a hidden layer.
    """

    def __init__(
        self,
        in_features: int,
        hidden: Sequence[int],
        out_features: int,
        activation: Activation = "relu",
        norm: str | None = None,
        dropout: float = 0.0,
        shortcut: bool = False,
    ) -> None:
        super().__init__()
        _check(in_features, hidden, out_features, norm, dropout)
        make = _factory(activation)
        layers: list[nn.Module] = []
        width = in_features
        for wider in hidden:
            layers.append(nn.Linear(width, wider))
            if norm == "batch":
                layers.append(nn.BatchNorm1d(wider))
            layers.append(make(wider))
            if dropout:
                layers.append(nn.Dropout(dropout))
            width = wider
        layers.append(nn.Linear(width, out_features))
        self.body = nn.Sequential(*layers)
        self.shortcut: nn.Linear | None = None
        if shortcut and hidden:
            self.shortcut = nn.Linear(in_features, out_features, bias=False)
            nn.init.zeros_(self.shortcut.weight)

    @property
    def hidden(self) -> tuple[int, ...]:
        """Widths of the hidden layers as they are now: the rows of every linear map but the last, in order."""
        linears = [module for module in self.body.modules() if isinstance(module, nn.Linear)]
        return tuple(linear.weight.shape[0] for linear in linears[:-1])

    def forward(self, x: Tensor) -> Tensor:
        """The outputs, (..., out_features), without a final activation."""
        output: Tensor = self.body(x)
        return output if self.shortcut is None else output + self.shortcut(x)


def _check(in_features: int, hidden: Sequence[int], out_features: int, norm: str | None, dropout: float) -> None:
    for name, size in [("in_features", in_features), ("out_features", out_features), *(("hidden", h) for h in hidden)]:
        if size < 1:
            raise SennError(f"MLP needs positive sizes, but {name} contains {size}.")
    if norm not in (None, "batch"):
        raise SennError(f"MLP knows the norms 'batch' and None, not {norm!r}.")
    if not 0 <= dropout < 1:
        raise SennError(f"MLP needs a dropout probability in [0, 1), not {dropout}.")


def _factory(activation: Activation) -> Callable[[int], nn.Module]:
    """A function from a width to a fresh activation module."""
    if isinstance(activation, str):
        if activation not in _ACTIVATIONS:
            raise SennError(f"Unknown activation {activation!r}; MLP knows {', '.join(sorted(_ACTIVATIONS))}.")
        activation = _ACTIVATIONS[activation]
    if not callable(activation) or isinstance(activation, nn.Module):
        raise SennError(f"MLP needs an activation's name, class or factory, not {activation!r}.")
    maker = activation
    if "num_parameters" in inspect.signature(maker).parameters:
        return lambda width: maker(num_parameters=width)
    return lambda width: maker()
