"""Input covariances of maps that read the data itself, kept between rounds since training doesn't change them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor


@dataclass(frozen=True, eq=False, kw_only=True)
class DataCovariance:
    """Input covariance of a linear map that reads the data itself.

    Attributes:
        factor: lower Cholesky factor of the damped covariance, (c, c).
        rows: number of rows that it is a mean over.
        outgrown: True once a session has held at least twice as many rows; the next one of that size replaces it.
    """

    factor: Tensor
    rows: float
    outgrown: bool = False


@dataclass(frozen=True, eq=False, kw_only=True)
class CovarianceSnapshot:
    """State of `DataCovariances` to go back to."""

    known: dict[str, DataCovariance]
    reads_data: frozenset[str]
    in_use: dict[str, Tensor]


class DataCovariances:
    """Covariances of the data in one session.

    Args:
        known: by linear map, the covariances of earlier sessions, kept by the caller. The first session that has more
            rows than columns fills it in, and one with twice the rows does so anew.
    """

    def __init__(self, known: dict[str, DataCovariance]) -> None:
        self.known = known
        self._reads_data: set[str] = set()
        self._in_use: dict[str, Tensor] = {}

    def factor(self, name: str) -> Tensor | None:
        """Cholesky factor of a map's covariance if this session uses a known one, (c, c)."""
        return self._in_use.get(name)

    def note(self, name: str) -> None:
        """Note that a map reads the data itself."""
        self._reads_data.add(name)

    def use(self, name: str, rows: int) -> None:
        """Use a map's known covariance in this session, unless a batch has outgrown it.

        Call it before anything of the map is summed: all sums of one session must have the same columns.

        Args:
            name: name of the linear map.
            rows: number of rows of the batch.
        """
        past = self.known.get(name)
        if (
            name in self._reads_data
            and past is not None
            and not past.outgrown
            and rows < 2 * past.rows
        ):
            self._in_use[name] = past.factor

    def update(
        self, name: str, factor: Tensor, *, rows: float, existing: int
    ) -> DataCovariance | None:
        """Make what to keep for later sessions: a covariance of more rows, or a note that the known one is outgrown.

        Args:
            name: name of the linear map; one that doesn't read the data itself is left out.
            factor: lower Cholesky factor of this session's covariance, (c, c).
            rows: number of rows that it is a mean over.
            existing: c, the number of the map's columns.

        Returns:
            None where all stays as it is.
        """
        if name not in self._reads_data:
            return None
        old = self.known.get(name)
        if name in self._in_use and old is not None:
            # `factor` is the old one: it can only be noted that there were enough rows for a better one
            return replace(old, outgrown=old.outgrown or rows >= 2 * old.rows)
        # With fewer rows than columns it would be singular; with twice the rows its error is 30 %
        # smaller, which is worth a new factorization.
        if (old is None and rows > existing) or (old is not None and rows >= 2 * old.rows):
            return DataCovariance(factor=factor, rows=rows)
        return None

    def snapshot(self) -> CovarianceSnapshot:
        """State for `restore`."""
        return CovarianceSnapshot(
            known=dict(self.known),
            reads_data=frozenset(self._reads_data),
            in_use=dict(self._in_use),
        )

    def restore(self, snapshot: CovarianceSnapshot) -> None:
        """Bring back the state of `snapshot`; the caller's mapping stays the same object."""
        self.known.clear()
        self.known.update(snapshot.known)
        self._reads_data, self._in_use = set(snapshot.reads_data), dict(snapshot.in_use)
