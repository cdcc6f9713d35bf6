"""Which rank keeps the account of which place: one rank has the factors of a map, its inverse and its gains.

Maps that read one group's candidate units belong to one rank, since their gains add unit by unit. Costs of removal add
as well, but they are short vectors: a group that many maps read (a residual stream) ties none of them together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from senn.collectives import Communicator
from senn.kfac.factors import DENSE_OUTPUTS
from senn.policies import Candidate
from senn.scoring.changes import ScoredCandidate
from senn.scoring.column_layout import ColumnLayout
from senn.scoring.stream import StreamKey


@dataclass(frozen=True, eq=False, kw_only=True)
class Owners:
    """Ranks by place.

    Attributes:
        communicator: the processes.
        maps: by linear map, or by group of a grouped one, the rank that keeps its account.
        blocks: by residual block, the rank that scores a copy of it.
    """

    communicator: Communicator
    maps: Mapping[str, int]
    blocks: Mapping[str, int]

    @classmethod
    def assign(
        cls,
        communicator: Communicator,
        columns: Mapping[str, ColumnLayout],
        outputs: Mapping[str, int],
        blocks: Iterable[str],
    ) -> Owners:
        """Spread the places over the ranks so that each has about as much to compute.

        Args:
            communicator: the processes.
            columns: layout of each linear map's columns.
            outputs: number of each map's outputs.
            blocks: residual blocks that a copy could follow.
        """
        together: dict[str, list[str]] = {name: [name] for name in columns}
        first_reader: dict[str, str] = {}
        for name, layout in columns.items():
            for group in layout.groups:
                one, other = together[first_reader.setdefault(group, name)], together[name]
                if one is not other:
                    one += other
                    together |= dict.fromkeys(other, one)
        work = {name: _work(layout, outputs[name]) for name, layout in columns.items()}
        sets = list({id(names): names for names in together.values()}.values())
        loads, maps = [0.0] * communicator.size, dict[str, int]()
        # The largest first, each to the rank that has least: at most 4/3 of the best (Graham 1969).
        for names in sorted(sets, key=lambda names: -sum(work[name] for name in names)):
            rank = loads.index(min(loads))
            loads[rank] += sum(work[name] for name in names)
            maps |= dict.fromkeys(names, rank)
        of_blocks = {block: number % communicator.size for number, block in enumerate(blocks)}
        return cls(communicator=communicator, maps=maps, blocks=of_blocks)

    def owns(self, name: str) -> bool:
        """True if this rank keeps the account of a linear map."""
        return self.maps[name] == self.communicator.rank

    def owns_block(self, block: str) -> bool:
        """True if this rank scores a copy of a block."""
        return self.blocks[block] == self.communicator.rank

    def of_stream(self, key: StreamKey) -> int:
        """Rank that scores a candidate for a residual stream."""
        return self.blocks[key.place] if key.output else self.maps[key.place]

    def share(
        self, action: str, name: str, compute: Callable[[], Sequence[Tensor]]
    ) -> list[Tensor]:
        """Compute tensors from the account of a linear map, on its rank, and send them to all.

        Args:
            action: what it is for.
            name: the map.
            compute: function that returns the tensors.
        """
        return self.communicator.broadcast_result(action, self.maps[name], compute)


ScorePlace = Callable[[], list[ScoredCandidate]]
"""Scores one place on the rank that has its account; returns nothing on others."""


def exchange_scores(
    owners: Owners, *tables: Mapping[str, ScorePlace]
) -> list[dict[str, list[ScoredCandidate]]]:
    """Score places, each on its rank, and tell all ranks.

    Args:
        owners: the processes.
        tables: of each kind of place, what scores it.

    Returns:
        For each table, the candidates of its places, the same on all ranks.
    """
    if owners.communicator.is_single:
        return [{place: score() for place, score in table.items()} for table in tables]

    def own() -> list[dict[str, list[Any]]]:
        return [
            {place: [_to_plain(one) for one in score()] for place, score in table.items()}
            for table in tables
        ]

    by_rank = owners.communicator.all_gather_result("score the candidates", own)
    return [
        {
            place: [_from_plain(one) for of in by_rank for one in of[number][place]]
            for place in table
        }
        for number, table in enumerate(tables)
    ]


def _to_plain(one: ScoredCandidate) -> list[Any]:
    return [asdict(one.candidate), one.units, one.layer]


def _from_plain(one: Sequence[Any]) -> ScoredCandidate:
    candidate, units, layer = one
    return ScoredCandidate(Candidate(**candidate), tuple(units), layer)


def _work(layout: ColumnLayout, outputs: int) -> float:
    """Multiplications that the gains of a map take, about: factorizations, and solutions for its new columns."""
    c, m = layout.existing, outputs
    new = sum(one.numel() for one in (*layout.groups.values(), *layout.layers))
    if m > DENSE_OUTPUTS:  # S is its diagonal
        return c**3 + 6 * c * c * new + 2 * m * c * c
    return c**3 + m**3 / 3 + 6 * c * c * new + 2 * m * c * c + 2 * m * m * (c + new)
