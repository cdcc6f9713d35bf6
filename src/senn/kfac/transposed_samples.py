"""Single samples of a map over its outputs, kept for exact curvatures along a step of its rows (`transposed`)."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from senn.kfac.kept_rows import KeptRows, Kind


@dataclass(frozen=True, eq=False, kw_only=True)
class TransposedSamples(KeptRows):
    """Samples kept as rows over a map's outputs; methods as in `PerSampleFactors`, with a and dz exchanged.

    Inputs are zeros where a location is dead; of a table, (samples * locations, 1) numbers of its rows.
    """

    def residual(self, predict: Tensor) -> TransposedSamples:
        """Subtract from the new outputs what the existing ones predict of them.

        Args:
            predict: (c, P) A'_cc^-1 A'_cp.
        """
        c, predict = len(predict), predict.to(self.pseudo_grad.dtype)
        s, dz = (rows[:, c:] - rows[:, :c] @ predict for rows in self._both)
        return replace(self, pseudo_grad=s, output_grad=dz)

    def without(self, columns: Tensor, taken: Tensor) -> TransposedSamples:
        """Subtract from all outputs what accepted ones predict of them.

        Args:
            columns: (p,) positions of the accepted outputs.
            taken: (P, p) coefficients.
        """
        taken = taken.to(self.pseudo_grad.dtype)
        s, dz = (rows - rows[:, columns] @ taken.mT for rows in self._both)
        return replace(self, pseudo_grad=s, output_grad=dz)

    @property
    def _both(self) -> tuple[Tensor, Tensor]:
        return self.pseudo_grad, self.output_grad

    def directional(self, kind: Kind, step: Tensor, columns: Tensor) -> Tensor:
        """Sum a^T d r over each sample's locations, for several groups of outputs at once.

        Args:
            kind: what r is, s or dz.
            step: d, (inputs, groups * p).
            columns: (groups, p) positions of the outputs that d steps along.

        Returns:
            (samples, groups).
        """
        rows = self.pseudo_grad if kind == "pseudo_grad" else self.output_grad
        step = step.to(rows.dtype)
        through = self.a @ step if self.a.is_floating_point() else step[self.a[:, 0]]
        return self._by_sample((through.view(len(rows), *columns.shape) * rows[:, columns]).sum(-1))
