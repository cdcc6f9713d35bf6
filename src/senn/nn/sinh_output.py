"""A network that has learned numbers through their inverse hyperbolic sine."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn

_FARTHEST = 80.0
"""Size that arguments of sinh are clipped to: beyond 89 its values lie outside the range of float32."""


class SinhOutput(nn.Module):
    """A network for heavy-tailed numbers, (..., in_features) to (..., k): `center + spread * sinh(mean + scale * z)`.

    `z` is what the network says. Near its center a number is learned as it is, far from it nearly by its logarithm,
    also where numbers have both signs (Burbidge, Magee & Robb 1988, *Alternative transformations to handle extreme
    values of the dependent variable*, JASA 83). Errors are weighed by that, so predictions lie nearer to the median
    than to the mean.

    Args:
        network: its outputs are standardized inverse hyperbolic sines.
        center: (k,) what becomes 0.
        spread: (k,) distance from the center up to which numbers count as near, above 0.
        mean: (k,) of the inverse hyperbolic sines.
        scale: (k,) their standard deviations, above 0.

    >>> import torch
    >>> y = torch.randn(500, 1, generator=torch.Generator().manual_seed(0)).mul(3).exp()
    >>> learned = SinhOutput.fit(torch.nn.Identity(), y)
    >>> z = learned.transform(y)
    >>> abs(float(z.mean())) < 0.01, round(float(z.std()), 2)
    (True, 1.0)
    >>> torch.allclose(learned(z), y, rtol=1e-3, atol=1e-4)
    True
    """

    center: Tensor
    spread: Tensor
    mean: Tensor
    scale: Tensor

    def __init__(
        self, network: nn.Module, *, center: Tensor, spread: Tensor, mean: Tensor, scale: Tensor
    ) -> None:
        super().__init__()
        self.network = network
        scales = {"center": center, "spread": spread, "mean": mean, "scale": scale}
        for name, one in scales.items():
            self.register_buffer(name, one.detach().clone())

    @classmethod
    def fit(cls, network: nn.Module, targets: Tensor) -> Self:
        """Fit the transform to targets: the center is their median, the spread half of what the middle half spans.

        Args:
            network: the network.
            targets: (n, k) numbers, the middle half of which isn't all the same in any column.
        """
        levels = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64, device=targets.device)
        first, center, third = targets.double().quantile(levels, dim=0)
        spread = (third - first) / 2
        z = ((targets.double() - center) / spread).asinh()
        scales = {"center": center, "spread": spread, "mean": z.mean(0), "scale": z.std(0)}
        return cls(network, **{name: one.to(targets.dtype) for name, one in scales.items()})

    def around(self, network: nn.Module) -> SinhOutput:
        """Return the same transform around another network."""
        return SinhOutput(
            network, center=self.center, spread=self.spread, mean=self.mean, scale=self.scale
        )

    @property
    def hidden(self) -> tuple[int, ...]:
        """Widths of the hidden layers of the network."""
        return tuple(getattr(self.network, "hidden", ()))

    @property
    def hidden_names(self) -> tuple[str, ...]:
        """Names of the layers that have these widths."""
        return tuple(f"network.{name}" for name in getattr(self.network, "hidden_names", ()))

    def transform(self, targets: Tensor) -> Tensor:
        """Convert targets (..., k) to what the network says."""
        return (((targets - self.center) / self.spread).asinh() - self.mean) / self.scale

    def restore(self, z: Tensor) -> Tensor:
        """Convert what the network says, (..., k), to targets."""
        argument = (self.mean + self.scale * z).clamp(-_FARTHEST, _FARTHEST)
        return self.center + self.spread * argument.sinh()

    def forward(self, x: Tensor) -> Tensor:
        """Compute the outputs, (..., k)."""
        return self.restore(self.network(x))
