"""Records of one batch at the linear maps of a model: what `capture` yields and `accumulate` sums up."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from senn import pytree
from senn.kfac.layer_inputs import DenseInput, LayerInput


@dataclass(frozen=True, eq=False, kw_only=True)
class RowChunk:
    """One call of a linear map on all samples.

    Attributes:
        layer_input: input of the map.
        output_grad: dz, gradient of each sample's loss with respect to the map's output, for the true targets,
            (samples, locations, m).
        pseudo_grad: s, random with E[s s^T] = S, of the same shape.
        live: which locations can change the loss (`live_locations`), (samples, locations) Boolean; None for all. Rows
            of dz and s are zero at the others.
    """

    layer_input: LayerInput
    output_grad: Tensor
    pseudo_grad: Tensor
    live: Tensor | None = None

    def select(self, samples: slice) -> RowChunk:
        """Keep some of the samples."""
        return RowChunk(
            layer_input=self.layer_input.select(samples),
            output_grad=self.output_grad[samples],
            pseudo_grad=self.pseudo_grad[samples],
            live=None if self.live is None else self.live[samples],
        )

    @property
    def by_sample(self) -> Tensor:
        """Number of live locations of each sample, (samples,)."""
        if self.live is not None:
            return self.live.sum(1)
        grad = self.output_grad
        return torch.full((len(grad),), self.layer_input.locations, device=grad.device)

    def compact(self, locations: int) -> RowChunk:
        """Move each sample's live rows to the front, in their order, and keep so many locations.

        Where all samples have as many, what comes out is what unpadded samples would have given, bit for bit. Images
        of convolutions stay as they are.

        Args:
            locations: how many to keep: at least as many as any sample has.
        """
        if self.live is None or not isinstance(self.layer_input, DenseInput):
            return self
        # a stable sort: live locations first, each kind in its order
        order = (~self.live).to(torch.uint8).argsort(dim=1, stable=True)[:, :locations]
        live = self.live.gather(1, order)
        every = torch.arange(len(order), device=order.device)[:, None]

        def moved(rows: Tensor) -> Tensor:
            return rows[every, order].masked_fill(~live[..., None], 0.0)

        return RowChunk(
            layer_input=replace(self.layer_input, x=moved(self.layer_input.x)),
            output_grad=moved(self.output_grad),
            pseudo_grad=moved(self.pseudo_grad),
            live=None if bool(live.all()) else live,
        )


@dataclass(frozen=True, kw_only=True)
class LocationCount:
    """Number of live locations of one call of a map, over all samples of a batch.

    Attributes:
        most: the most that a sample has.
        mean: their mean over the samples.
    """

    most: int
    mean: float


@dataclass(frozen=True, eq=False)
class LayerRows:
    """Rows of one linear map, sample-major: (samples * locations, ...).

    Attributes:
        chunks: one for each call; a second call of the same weight counts as further locations (K-FAC "expand",
            Eschenhagen et al. 2023, arXiv 2311.00636).
        reads_inputs: True if the map reads the model's inputs themselves, so that A is a statistic of the data.
    """

    chunks: tuple[RowChunk, ...]
    reads_inputs: bool

    @property
    def locations(self) -> int:
        """Rows per sample, of all calls together."""
        return sum(part.layer_input.locations for part in self.chunks)

    @property
    def a(self) -> Tensor:
        """Inputs with a trailing 1 where the map has a bias, (rows, c)."""
        return self._rows(
            [part.layer_input.rows().view(*part.output_grad.shape[:2], -1) for part in self.chunks]
        )

    @property
    def live(self) -> Tensor | None:
        """Rows that can change the loss, (rows,) Boolean; None for all."""
        if all(part.live is None for part in self.chunks):
            return None
        every = [
            torch.ones_like(part.output_grad[..., 0], dtype=torch.bool)
            if part.live is None
            else part.live
            for part in self.chunks
        ]
        return torch.cat(every, 1).flatten()

    @property
    def output_grad(self) -> Tensor:
        """Output gradients dz, (rows, m)."""
        return self._rows([part.output_grad for part in self.chunks])

    @property
    def pseudo_grad(self) -> Tensor:
        """Pseudo-gradients s, (rows, m)."""
        return self._rows([part.pseudo_grad for part in self.chunks])

    def _rows(self, values: list[Tensor]) -> Tensor:
        # joined along locations: a sample's rows stay side by side
        return torch.cat(values, 1).flatten(0, 1)


@dataclass(frozen=True, eq=False, kw_only=True)
class BlockCall:
    """One call of a residual block.

    Attributes:
        args: arguments that a copy inserted after the block would get: the block's output in place of its first one.
        kwargs: keyword arguments of that copy.
        output_grad: gradient of each sample's loss with respect to the block's output, of the output's shape.
        pseudo_grad: pseudo-gradient there, of the same shape.
        live: numbers that are non-zero where the loss can be changed, of the same shape; None for everywhere.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output_grad: Tensor
    pseudo_grad: Tensor
    live: Tensor | None = None

    def select(self, samples: slice) -> BlockCall:
        """Keep some of the samples."""
        # arguments that don't count samples (a mask, a position table) are passed on whole
        args, kwargs = pytree.index_batch((self.args, self.kwargs), samples, len(self.output_grad))
        return BlockCall(
            args=args,
            kwargs=kwargs,
            output_grad=self.output_grad[samples],
            pseudo_grad=self.pseudo_grad[samples],
            live=None if self.live is None else self.live[samples],
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class LayerStatistics:
    """Statistics of one batch.

    Attributes:
        rows: by name of the linear map; a grouped convolution has one entry per group, by `labels`.
        blocks: calls of the requested blocks, by name.
        loss: mean loss of the batch, in the loss's own unit (nats for cross-entropy).
        score_limit: lambda of Theorem 3.1, which eta can't exceed on this batch.
        gradient_square: mean over samples of g^T g, g the loss's gradient at the outputs.
        curvature_trace: mean over samples of v^T v, v the pseudo-gradient there: the trace of H, on average.
        output: outputs of the model, detached.
        used: samples that can change the loss, (samples,) Boolean; None for all.
    """

    rows: dict[str, LayerRows]
    blocks: dict[str, BlockCall]
    loss: float
    score_limit: float
    gradient_square: float
    curvature_trace: float
    output: Tensor
    used: Tensor | None = None
