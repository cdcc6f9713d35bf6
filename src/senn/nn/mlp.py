"""A multilayer perceptron of ordinary layers."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from senn._validate import Rule, check_arguments, each, flag, fraction, one_of, whole
from senn.nn.activations import activation_class, activation_or_factory

Activation = str | Callable[..., nn.Module]


class MLP(nn.Module):
    """Linear maps with activations between them, (..., in_features) to (..., out_features).

    A hidden layer is Linear, optionally BatchNorm1d, the activation, and optionally Dropout. All of them are in `body`,
    an `nn.Sequential`.

    Args:
        in_features: size of the input.
        hidden: widths of the hidden layers; `()` for a single linear map.
        out_features: size of the output.
        activation: a name in any case (`relu`, `tanh`, `rational`, ...), a module class, or a function that creates a
            module. If it takes `num_parameters` (Rational, PReLU), it is given the width of the layer.
        norm: `"batch"` for BatchNorm1d, or None.
        dropout: probability in [0, 1) of dropping a hidden unit in training.
        shortcut: True for a second, linear path from the inputs to the outputs, `shortcut`, which starts at zero.
            Hidden units then only need to learn what isn't linear. Ignored without a hidden layer.

    Raises:
        SennError: an argument is out of range.

    >>> import torch
    >>> model = MLP(4, (8, 8), 2, activation="tanh")
    >>> model.hidden, model(torch.zeros(3, 4)).shape
    ((8, 8), torch.Size([3, 2]))
    """

    _RANGES: ClassVar[Mapping[str, Rule]] = {
        "in_features": whole(low=1),
        "hidden": each(whole(low=1)),
        "out_features": whole(low=1),
        "activation": activation_or_factory(),
        "norm": one_of("batch", None),
        "dropout": fraction(open_high=True),
        "shortcut": flag(),
    }

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
        check_arguments(self._RANGES, locals())
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
        if shortcut and hidden:  # without a hidden layer the body is that linear map already
            self.shortcut = nn.Linear(in_features, out_features, bias=False)
            # Zero: hidden units see the same gradients at the start as without a shortcut.
            nn.init.zeros_(self.shortcut.weight)

    @property
    def hidden(self) -> tuple[int, ...]:
        """Current widths of the hidden layers: the rows of every linear map but the last, in order."""
        return tuple(linear.weight.shape[0] for _, linear in self._hidden_maps())

    @property
    def hidden_names(self) -> tuple[str, ...]:
        """Names of the linear maps of the hidden layers, in order."""
        return tuple(name for name, _ in self._hidden_maps())

    def _hidden_maps(self) -> list[tuple[str, nn.Linear]]:
        # Of the body: the shortcut is a linear map, too, but no hidden layer.
        modules = self.body.named_modules(prefix="body")
        return [(name, one) for name, one in modules if isinstance(one, nn.Linear)][:-1]

    @torch.no_grad()
    def scale_outputs(self, factor: float) -> None:
        """Multiply all outputs by a factor, by the weights of the maps that make them.

        Args:
            factor: of the outputs.
        """
        last = [one for one in self.body.modules() if isinstance(one, nn.Linear)][-1]
        makers = (last,) if self.shortcut is None else (last, self.shortcut)
        for parameter in (one for maker in makers for one in maker.parameters()):
            parameter.mul_(factor)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the outputs, (..., out_features), without a final activation."""
        output: Tensor = self.body(x)
        return output if self.shortcut is None else output + self.shortcut(x)


def _factory(activation: Activation) -> Callable[[int], nn.Module]:
    """Return a function that creates an activation for a layer of a given width."""
    maker = activation_class(activation) if isinstance(activation, str) else activation
    # By the signature, not the class: a user's activation with parameters per unit gets its width as well.
    if "num_parameters" in inspect.signature(maker).parameters:
        return lambda width: maker(num_parameters=width)
    return lambda width: maker()
