"""Input covariances of maps that read the data itself, kept between rounds since training doesn't change them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor


@dataclass(frozen=True, eq=False)
class DataCovariance:
    """Input covariance of a linear map that reads the data itself.

    Attributes:
        factor: lower Cholesky factor of the damped covariance, (c, c).
        rows: that it is a mean over.
        outgrown: a later session held at least twice as many rows; the next one of that size takes its place.
    """

    factor: Tensor
    rows: float
    outgrown: bool = False


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
        """Cholesky factor of a map's covariance where this session uses a known one, (c, c)."""
        return self._in_use.get(name)

    def note(self, name: str) -> None:
        """Note that a map reads the data itself."""
        self._reads_data.add(name)

    def use(self, name: str, rows: int) -> None:
        """Use a map's known covariance in this session, unless a batch of `rows` rows has outgrown it.

        Decided before anything of the map is summed: one session's sums all have the same columns.
        """
        past = self.known.get(name)
        if name in self._reads_data and past is not None and not past.outgrown and rows < 2 * past.rows:
            self._in_use[name] = past.factor

    def remember(self, name: str, factor: Tensor, rows: float, existing: int) -> None:
        """Keep a covariance for later sessions if there is none of as many rows; or note that it is outgrown.

        Args:
            name: of the linear map; one that doesn't read the data itself is left out.
            factor: lower Cholesky factor of this session's covariance, (c, c).
            rows: that it is a mean over.
            existing: c, the number of the map's columns.
        """
        if name not in self._reads_data:
            return
        old = self.known.get(name)
        if name in self._in_use and old is not None:
            self.known[name] = replace(old, outgrown=old.outgrown or rows >= 2 * old.rows)
        elif (old is None and rows > existing) or (old is not None and rows >= 2 * old.rows):
            self.known[name] = DataCovariance(factor, rows)

    def snapshot(self) -> tuple[dict[str, DataCovariance], set[str], dict[str, Tensor]]:
        """State for `restore`."""
        return dict(self.known), set(self._reads_data), dict(self._in_use)

    def restore(self, snapshot: tuple[dict[str, DataCovariance], set[str], dict[str, Tensor]]) -> None:
        """Bring back the state of `snapshot`; the caller's mapping stays the same object."""
        known, reads_data, in_use = snapshot
        self.known.clear()
        self.known.update(known)
        self._reads_data, self._in_use = set(reads_data), dict(in_use)
