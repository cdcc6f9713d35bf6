"""Records of one batch at the linear maps of a model: what `capture` yields and `accumulate` sums up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from senn import pytree
from senn.kfac.layer_inputs import LayerInput


@dataclass(frozen=True, eq=False, kw_only=True)
class RowChunk:
    """One call of a linear map on all samples.

    Attributes:
        layer_input: input of the map.
        output_grad: dz, gradient of each sample's loss with respect to the map's output, for the true targets,
            (samples, locations, m).
        pseudo_grad: s, random with E[s s^T] = S, of the same shape.
    """

    layer_input: LayerInput
    output_grad: Tensor
    pseudo_grad: Tensor

    def select(self, samples: slice) -> RowChunk:
        """Keep some of the samples."""
        return RowChunk(
            layer_input=self.layer_input.select(samples),
            output_grad=self.output_grad[samples],
            pseudo_grad=self.pseudo_grad[samples],
        )


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
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output_grad: Tensor
    pseudo_grad: Tensor

    def select(self, samples: slice) -> BlockCall:
        """Keep some of the samples."""
        # arguments that don't count samples (a mask, a position table) are passed on whole
        args, kwargs = pytree.index_batch((self.args, self.kwargs), samples, len(self.output_grad))
        return BlockCall(
            args=args,
            kwargs=kwargs,
            output_grad=self.output_grad[samples],
            pseudo_grad=self.pseudo_grad[samples],
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
    """

    rows: dict[str, LayerRows]
    blocks: dict[str, BlockCall]
    loss: float
    score_limit: float
    gradient_square: float
    curvature_trace: float
    output: Tensor
