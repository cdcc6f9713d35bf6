"""What a linear map reads and what comes back, as the three statistics that scores are made of.

A `DenseInput` map is applied to rows; `ConvInput` are what a convolution (of one group) reads: rows of (in * taps,),
input channel by input channel, taps inside in row-major order, so that the map's matrix is `weight.flatten(1)`. Rows
are sample-major, one for each location. A convolution's patches are only ever formed for some locations or some
samples: its cross moment is a weight gradient, which has a kernel of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Kernel:
    """Geometry of a convolution.

    Attributes:
        size: by dimension.
        stride: by dimension.
        dilation: by dimension.
        padding: zeros before and after, by dimension.
        groups: of channels that are mapped on their own.
        transposed: whether it is a transposed convolution's: each pixel that is read gives a patch.
    """

    size: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    groups: int = 1
    transposed: bool = False

    @property
    def numel(self) -> int:
        """Number of positions."""
        return torch.Size(self.size).numel()


def upcast(x: Tensor) -> Tensor:
    """At least float32."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


@dataclass(frozen=True, eq=False)
class DenseInput:
    """Rows that a matrix is applied to.

    Attributes:
        x: (samples, locations, columns).
        bias: whether a constant 1 stands last.
    """

    x: Tensor
    bias: bool

    @property
    def locations(self) -> int:
        """Rows per sample."""
        return self.x.shape[1]

    @property
    def columns(self) -> int:
        """c, the constant counted."""
        return self.x.shape[2] + self.bias

    def select(self, samples: slice) -> DenseInput:
        """Some of the samples."""
        return replace(self, x=self.x[samples])

    def rows(self, places: Tensor | None = None) -> Tensor:
        """(samples * locations, c), or those of some locations only."""
        x = self.x if places is None else self.x[:, places]
        a = x.flatten(0, 1)
        return torch.cat([a, a.new_ones(len(a), 1)], 1) if self.bias else a

    def cross(self, g: Tensor) -> Tensor:
        """Sum over samples and locations of g a^T, (m, c), for g (samples, locations, m)."""
        return g.flatten(0, 1).mT @ self.rows()

    def by_sample(self, g: Tensor) -> Tensor:
        """Sums over each sample's locations, (samples, m, c)."""
        return g.mT @ self.rows().view(*self.x.shape[:2], -1)


@dataclass(frozen=True, eq=False)
class ConvInput:
    """What a convolution reads.

    Attributes:
        x: (samples, in, *spatial), padded.
        bias: whether the patches have a constant 1.
        kernel: its geometry; the padding is done.
        existing: number of first channels after whose columns the constant stands; None for all.
    """

    x: Tensor
    bias: bool
    kernel: Kernel
    existing: int | None = None

    @classmethod
    def of(cls, x: Tensor, bias: bool, kernel: Kernel) -> ConvInput:
        """From an input that isn't padded yet."""
        sides = [width for pair in reversed(kernel.padding) for width in pair]
        return cls(F.pad(x, sides) if any(sides) else x, bias, kernel)

    @property
    def outputs(self) -> tuple[int, ...]:
        """Number of locations, by dimension."""
        k = self.kernel
        reach = [gap * (size - 1) for gap, size in zip(k.dilation, k.size, strict=True)]
        return tuple((n - r - 1) // s + 1 for n, r, s in zip(self.x.shape[2:], reach, k.stride, strict=True))

    @property
    def locations(self) -> int:
        """Patches per sample."""
        return torch.Size(self.outputs).numel()

    @property
    def columns(self) -> int:
        """c, the constant counted."""
        return self.x.shape[1] * self.kernel.numel + self.bias

    def select(self, samples: slice) -> ConvInput:
        """Some of the samples."""
        return replace(self, x=self.x[samples])

    def rows(self, places: Tensor | None = None) -> Tensor:
        """(samples * locations, c), or those of some locations only."""
        spatial = self.x.dim() - 2
        x = self.x
        for dim, (size, stride, gap) in enumerate(
            zip(self.kernel.size, self.kernel.stride, self.kernel.dilation, strict=True)
        ):
            x = x.unfold(2 + dim, gap * (size - 1) + 1, stride)[..., ::gap]
        x = x.movedim(1, 1 + spatial)  # (samples, *locations, in, *taps), nothing is copied yet
        if places is None:
            a = x.reshape(len(x) * self.locations, -1)
        else:
            at: tuple[Tensor, ...] = torch.unravel_index(places, self.outputs)
            index: tuple[slice | Tensor, ...] = (slice(None), *at)
            a = x[index].reshape(len(x) * len(places), -1)
        return self._with_constant(a, a.new_ones(len(a), 1)) if self.bias else a

    def cross(self, g: Tensor) -> Tensor:
        """Sum over samples and locations of g a^T, (m, c), for g (samples, locations, m)."""
        sums = self._weight_gradient(self.x, g.mT, 1).flatten(1)
        return self._with_constant(sums, g.sum((0, 1))[:, None]) if self.bias else sums

    def by_sample(self, g: Tensor) -> Tensor:
        """Sums over each sample's locations, (samples, m, c)."""
        samples, _, m = g.shape
        # a sample a group: far faster than forming its patches
        sums = self._weight_gradient(self.x.flatten(0, 1)[None], g.mT.flatten(0, 1)[None], samples).flatten(1)
        sums = self._with_constant(sums, g.sum(1).view(-1, 1)) if self.bias else sums
        return sums.view(samples, m, -1)

    def input_gradient(self, g: Tensor, weight: Tensor) -> Tensor:
        """Gradient of x, padding included, for g (samples, locations, m) at what a weight (m, in, *taps) gives."""
        gradient: Tensor = torch.ops.aten.convolution_backward(
            g.mT.reshape(len(g), -1, *self.outputs), self.x, weight.detach().to(self.x), None, self.kernel.stride,
            [0] * len(self.kernel.size), self.kernel.dilation, False, [0], 1, [True, False, False],
        )[0]  # fmt: skip
        return gradient

    def _weight_gradient(self, x: Tensor, g: Tensor, groups: int) -> Tensor:
        """Gradient of a convolution's weight, (m, in / groups, *taps), for g (batch, m, locations)."""
        image = g.reshape(*g.shape[:2], *self.outputs)
        weight = x.new_empty(g.shape[1], x.shape[1] // groups, *self.kernel.size)
        gradient: Tensor = torch.ops.aten.convolution_backward(
            image, x, weight, None, self.kernel.stride, [0] * len(self.kernel.size), self.kernel.dilation, False, [0],
            groups, [False, True, False],
        )[1]  # fmt: skip
        return gradient

    def _with_constant(self, columns: Tensor, constant: Tensor) -> Tensor:
        place = columns.shape[1] if self.existing is None else self.existing * self.kernel.numel
        return torch.cat([columns[:, :place], constant, columns[:, place:]], 1)


LayerInput = DenseInput | ConvInput
"""What a linear map reads."""
