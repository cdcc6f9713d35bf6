"""Rational activation: a per-unit nonlinearity that includes the identity."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from senn._validate import check, whole
from senn.errors import SennError


class Rational(nn.Module):
    """Per-unit rational activation on the last dimension, (..., num_parameters) to the same shape.

        sigma(x) = (l x + (c + 2 v x) / (1 + x^2)) / sqrt(v^2 + c^2 + l^2)

    Each unit has its own v, c and l, of which only the ratio matters. With v = c = 0 and l = 1 it is the identity, so a
    layer can be inserted without changing the network's function (Mitchell et al. 2023, *Self-Expanding Neural
    Networks*, arXiv 2307.04526, section 3.1). A unit whose three parameters are all zero outputs zero.

    Args:
        num_parameters: number of units, the size of the input's last dimension.
        device: device of the parameters; None for the default.
        dtype: floating-point type of the parameters; None for the default.

    Attributes:
        v: sizes of the odd bump, (num_parameters,).
        c: sizes of the even bump, (num_parameters,).
        l: slopes far from zero, (num_parameters,).

    Raises:
        SennError: `num_parameters` is no whole number of at least 1, or an input has another last dimension.

    >>> Rational.identity(2)(torch.tensor([[-3.0, 0.5]]))
    tensor([[-3.0000,  0.5000]], grad_fn=<DivBackward0>)
    """

    def __init__(
        self,
        num_parameters: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check("num_parameters", num_parameters, whole(low=1))
        self.num_parameters = num_parameters
        self.v = nn.Parameter(torch.empty(num_parameters, device=device, dtype=dtype))
        self.c = nn.Parameter(torch.empty(num_parameters, device=device, dtype=dtype))
        self.l = nn.Parameter(torch.empty(num_parameters, device=device, dtype=dtype))
        self.reset_parameters()

    @classmethod
    def identity(
        cls,
        num_parameters: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Rational:
        """Create a Rational with v = c = 0 and l = 1, which returns its input.

        Args:
            num_parameters: number of units.
            device: device of the parameters; None for the default.
            dtype: floating-point type of the parameters; None for the default.
        """
        # drawing parameters that are overwritten would change the global random state
        place = torch.get_default_device() if device is None else device
        module: Rational = skip_init(cls, num_parameters, device=place, dtype=dtype)  # type: ignore[no-untyped-call]
        with torch.no_grad():
            module.v.zero_()
            module.c.zero_()
            module.l.fill_(1)
        return module

    def reset_parameters(self) -> None:
        """Sample v, c and l from the standard normal: uniform over all shapes, since only ratios matter."""
        for parameter in (self.v, self.c, self.l):
            nn.init.normal_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """Apply each unit's function to its entry of the last dimension.

        Raises:
            SennError: the last dimension isn't the number of units.
        """
        if x.shape[-1] != self.v.shape[0]:
            raise SennError(
                f"Rational has {self.v.shape[0]} units, but the last dimension of its input {tuple(x.shape)} has "
                f"{x.shape[-1]}"
            )
        # Normalized, so that the size of (v, c, l) can't take over the role of the neighboring layers' weights.
        square = self.v**2 + self.c**2 + self.l**2
        # At v = c = l = 0 any finite length gives the output 0; a length of 1 keeps the gradient finite as well.
        length = torch.where(square > 0, square, torch.ones_like(square)).sqrt()
        # The 2 gives both bumps one height: 2 x / (1 + x^2) reaches 1 at x = 1, 1 / (1 + x^2) at 0.
        return (self.l * x + (self.c + 2 * self.v * x) / (1 + x**2)) / length

    def extra_repr(self) -> str:
        """Return what `print` shows inside the parentheses."""
        return f"num_parameters={self.num_parameters}"
