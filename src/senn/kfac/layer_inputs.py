"""Inputs of a linear map, dense or to be unfolded, and the three statistics that scores are made of.

A `DenseInput` is rows that a matrix is applied to. A `ConvInput` is the image that a convolution (of one group) slides
over; its rows are the patches, (in * taps,) each, input channel by input channel and taps inside in row-major order,
so that the map's matrix is `weight.flatten(1)`. Rows are sample-major, one for each location.

That A is the covariance of patches, and G and S are means over locations, is KFC (Grosse and Martens 2016, *A
Kronecker-factored approximate Fisher matrix for convolution layers*, arXiv 1602.01407): spatial homogeneity (every
location has the same statistics) and spatially uncorrelated derivatives. Patches of a whole batch would be taps times
its size. So they are formed for some locations or some samples only; the cross moment is a weight gradient, which
PyTorch computes without them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn import grad

# by number of spatial dimensions; padding is done beforehand, so none is passed on
_INPUT_GRADIENTS: dict[int, Callable[..., Tensor]] = {
    1: grad.conv1d_input,
    2: grad.conv2d_input,
    3: grad.conv3d_input,
}
_WEIGHT_GRADIENTS: dict[int, Callable[..., Tensor]] = {
    1: grad.conv1d_weight,
    2: grad.conv2d_weight,
    3: grad.conv3d_weight,
}


@dataclass(frozen=True)
class Kernel:
    """Geometry of a convolution.

    Attributes:
        size: taps along each spatial dimension.
        stride: along each spatial dimension.
        dilation: along each spatial dimension.
        padding: zeros before and after, along each spatial dimension.
        groups: number of groups of channels, each with a map of its own.
        transposed: True for a transposed convolution, where each pixel of the input makes a patch of the output.
    """

    size: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    groups: int = 1
    transposed: bool = False

    @property
    def numel(self) -> int:
        """Number of taps in all."""
        return torch.Size(self.size).numel()


def upcast(x: Tensor) -> Tensor:
    """Convert half precision to float32: products of many small numbers underflow there."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


@dataclass(frozen=True, eq=False)
class DenseInput:
    """Rows that a matrix is applied to.

    Attributes:
        x: (samples, locations, columns).
        bias: True if a constant 1 is appended as the last column.
    """

    x: Tensor
    bias: bool

    @property
    def locations(self) -> int:
        """Rows per sample."""
        return self.x.shape[1]

    @property
    def columns(self) -> int:
        """Number of columns c, the constant counted."""
        return self.x.shape[2] + self.bias

    def select(self, samples: slice) -> DenseInput:
        """Keep some of the samples."""
        return replace(self, x=self.x[samples])

    def rows(self, places: Tensor | None = None) -> Tensor:
        """Form the rows a, (samples * locations, c), or those of some locations (k,) only."""
        return self._with_constant((self.x if places is None else self.x[:, places]).flatten(0, 1))

    def rows_at(self, samples: Tensor, places: Tensor) -> Tensor:
        """Form the rows a of pairs of a sample and a location, (pairs, c)."""
        return self._with_constant(self.x[samples, places])

    def _with_constant(self, a: Tensor) -> Tensor:
        return torch.cat([a, a.new_ones(len(a), 1)], 1) if self.bias else a

    def cross(self, g: Tensor) -> Tensor:
        """Sum g a^T over samples and locations, (m, c), for g (samples, locations, m)."""
        return g.flatten(0, 1).mT @ self.rows()

    def by_sample(self, g: Tensor) -> Tensor:
        """Sum g a^T over each sample's locations, (samples, m, c), for g (samples, locations, m)."""
        return g.mT @ self.rows().view(*self.x.shape[:2], -1)


@dataclass(frozen=True, eq=False)
class ConvInput:
    """Image that a convolution slides over.

    Attributes:
        x: (samples, in, *spatial), padded already.
        bias: True if patches get a constant 1.
        kernel: geometry of the convolution.
        existing: number of first channels after whose columns the constant is inserted, so that candidate channels
            come after it; None for all channels.
    """

    x: Tensor
    bias: bool
    kernel: Kernel
    existing: int | None = None

    @classmethod
    def of(cls, x: Tensor, bias: bool, kernel: Kernel) -> ConvInput:
        """Pad an input as the convolution would.

        Args:
            x: (samples, in, *spatial), not padded yet.
            bias: True if patches get a constant 1.
            kernel: geometry of the convolution.
        """
        # F.pad takes the last dimension first
        sides = [width for pair in reversed(kernel.padding) for width in pair]
        return cls(F.pad(x, sides) if any(sides) else x, bias, kernel)

    @property
    def outputs(self) -> tuple[int, ...]:
        """Number of locations along each spatial dimension."""
        k = self.kernel
        # (n - dilation (size - 1) - 1) / stride + 1, as torch.nn.Conv2d documents
        reach = [gap * (size - 1) for gap, size in zip(k.dilation, k.size, strict=True)]
        return tuple(
            (n - r - 1) // s + 1 for n, r, s in zip(self.x.shape[2:], reach, k.stride, strict=True)
        )

    @property
    def locations(self) -> int:
        """Patches per sample."""
        return torch.Size(self.outputs).numel()

    @property
    def columns(self) -> int:
        """Number of columns c, the constant counted."""
        return self.x.shape[1] * self.kernel.numel + self.bias

    def select(self, samples: slice) -> ConvInput:
        """Keep some of the samples."""
        return replace(self, x=self.x[samples])

    def rows(self, places: Tensor | None = None) -> Tensor:
        """Form the rows a, (samples * locations, c), or those of some locations (k,) only."""
        x = self._patches()
        if places is None:
            return self._finished(x.reshape(len(x) * self.locations, -1))
        at: tuple[Tensor, ...] = torch.unravel_index(places, self.outputs)
        index: tuple[slice | Tensor, ...] = (slice(None), *at)
        return self._finished(x[index].reshape(len(x) * len(places), -1))

    def rows_at(self, samples: Tensor, places: Tensor) -> Tensor:
        """Form the rows a of pairs of a sample and a location, (pairs, c)."""
        at: tuple[Tensor, ...] = torch.unravel_index(places, self.outputs)
        index = (samples, *at)
        return self._finished(self._patches()[index].flatten(1))

    def _patches(self) -> Tensor:
        """All patches, (samples, *locations, in, *taps): a view, nothing is copied."""
        x = self.x
        for dim, (size, stride, gap) in enumerate(
            zip(self.kernel.size, self.kernel.stride, self.kernel.dilation, strict=True)
        ):
            # a strided view by dimension; dilation takes every gap-th tap of the window
            x = x.unfold(2 + dim, gap * (size - 1) + 1, stride)[..., ::gap]
        return x.movedim(1, self.x.dim() - 1)

    def _finished(self, a: Tensor) -> Tensor:
        return self._with_constant(a, a.new_ones(len(a), 1)) if self.bias else a

    def cross(self, g: Tensor) -> Tensor:
        """Sum g a^T over samples and locations, (m, c), for g (samples, locations, m)."""
        sums = self._weight_gradient(self.x, g.mT, 1).flatten(1)
        return self._with_constant(sums, g.sum((0, 1))[:, None]) if self.bias else sums

    def by_sample(self, g: Tensor) -> Tensor:
        """Sum g a^T over each sample's locations, (samples, m, c), for g (samples, locations, m)."""
        samples, _, m = g.shape
        # Each sample is a group of one large convolution, so a single weight gradient has all of them: far faster than
        # forming patches.
        sums = self._weight_gradient(
            self.x.flatten(0, 1)[None], g.mT.flatten(0, 1)[None], samples
        ).flatten(1)
        sums = self._with_constant(sums, g.sum(1).view(-1, 1)) if self.bias else sums
        return sums.view(samples, m, -1)

    def input_gradient(self, g: Tensor, weight: Tensor) -> Tensor:
        """Backpropagate through the convolution to its padded input.

        Args:
            g: (samples, locations, m) gradient of its output.
            weight: (m, in, *taps).

        Returns:
            Gradient of `x`, padding included.
        """
        image = g.mT.reshape(len(g), -1, *self.outputs)
        gradient: Tensor = _INPUT_GRADIENTS[len(self.kernel.size)](
            self.x.shape,
            weight.detach().to(self.x),
            image,
            stride=self.kernel.stride,
            dilation=self.kernel.dilation,
        )
        return gradient

    def live_pixels(self, live: Tensor) -> Tensor:
        """Find the pixels that some live patch reads.

        Args:
            live: (samples, locations) Boolean, patches that count.

        Returns:
            (samples, *spatial) Boolean, without the padding.
        """
        # ones in place of the weight: each pixel gets the number of live patches that it is in
        taps = self.x.new_ones(1, 1, *self.kernel.size)
        counts = replace(self, x=self.x[:, :1]).input_gradient(live[..., None].to(self.x), taps)
        sides = zip(self.kernel.padding, counts.shape[2:], strict=True)
        inside = tuple(slice(low, size - high) for (low, high), size in sides)
        return (counts > 0.5)[:, 0][(slice(None), *inside)]

    def _weight_gradient(self, x: Tensor, g: Tensor, groups: int) -> Tensor:
        """Gradient of a convolution's weight, (m, in / groups, *taps), for g (batch, m, locations)."""
        # sum over locations of g_l patch_l^T is what a backward pass computes for the weight
        image = g.reshape(*g.shape[:2], *self.outputs)
        shape = torch.Size((g.shape[1], x.shape[1] // groups, *self.kernel.size))
        gradient: Tensor = _WEIGHT_GRADIENTS[len(self.kernel.size)](
            x, shape, image, stride=self.kernel.stride, dilation=self.kernel.dilation, groups=groups
        )
        return gradient

    def _with_constant(self, columns: Tensor, constant: Tensor) -> Tensor:
        # candidate channels are appended last, so the constant stays with the existing columns
        place = columns.shape[1] if self.existing is None else self.existing * self.kernel.numel
        return torch.cat([columns[:, :place], constant, columns[:, place:]], 1)


LayerInput = DenseInput | ConvInput
"""Input of one call of a linear map."""
