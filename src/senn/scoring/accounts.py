"""What a round knows of the linear maps: this rank has the gains and costs of those that it owns, and eta of all."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from senn.kfac.factors import FactorInverse
from senn.scoring.batch_statistics import FoldStatistics
from senn.scoring.column_layout import ColumnLayout
from senn.scoring.data_covariance import DataCovariance, DataCovariances
from senn.scoring.gains import LayerGains
from senn.scoring.joint_folds import join_folds
from senn.scoring.network_score import joint_score
from senn.scoring.owners import Owners
from senn.scoring.pruning_costs import PruningCosts
from senn.scoring.stream import StreamCandidates, StreamKey

ACTION = "score the candidates"


@dataclass(frozen=True, eq=False, kw_only=True)
class Accounts:
    """Accounts of all linear maps.

    Attributes:
        owners: which rank keeps which.
        layer_gains: gains of the columns of each map that this rank owns.
        pruning_costs: and the costs of removing its columns, where these are priced.
        priced: all maps whose costs some rank has; none offers no removal.
        stream: candidates that would be added to a residual stream.
        eta_by_map: expansion score of every map.
        folds: joint statistics of the maps that this rank owns, of both folds.
    """

    owners: Owners
    layer_gains: Mapping[str, LayerGains]
    pruning_costs: Mapping[str, PruningCosts]
    priced: Collection[str]
    stream: StreamCandidates
    eta_by_map: Mapping[str, float]
    folds: Sequence[FoldStatistics]

    @classmethod
    def build(
        cls,
        owners: Owners,
        statistics: Sequence[FoldStatistics],
        *,
        columns: Mapping[str, ColumnLayout],
        stream_columns: Mapping[StreamKey, ColumnLayout],
        covariances: DataCovariances,
        weights: Mapping[str, Callable[[], Tensor]],
        reduce_dtype: torch.dtype | None = None,
    ) -> Accounts:
        """Add up what all ranks have seen, and compute the gains of the maps that this rank owns.

        Args:
            owners: which rank keeps which account.
            statistics: of this rank's samples, of the fold that steps are fitted on and of the other.
            columns: layout of each map's columns.
            stream_columns: and of each candidate for a residual stream.
            covariances: known covariances of the data, which are brought up to date on all ranks.
            weights: for each map whose columns could be removed, what returns its weights [W | b].
            reduce_dtype: floating-point type in which gradients are sent; None for that of the model.
        """
        folds = join_folds(owners, statistics, reduce_dtype)
        fit, held_out = folds
        on_both = {
            key: layout
            for key, layout in stream_columns.items()
            if all(key in one.streams for one in statistics)
        }
        layer_gains, pruning_costs = dict[str, LayerGains](), dict[str, PruningCosts]()
        new = dict[str, DataCovariance]()

        def compute() -> dict[str, list[float | bool]]:
            """For each map eta, and what is new of its covariance of the data: its rows, if it is outgrown."""
            found = dict[str, list[float | bool]]()
            for name in filter(owners.owns, columns):
                gains = LayerGains(
                    fit.maps[name],
                    held_out.maps[name],
                    columns[name].existing,
                    covariances.factor(name),
                )
                layer_gains[name], found[name] = gains, [gains.eta]
                if name in weights:
                    # Where the weights are going counts, not where they are: training moves them anyway.
                    going = gains.next_weights(weights[name]())
                    pruning_costs[name] = PruningCosts(gains.inverse, going, gains.locations)
                update = _of_data(covariances, name, gains)
                if update is not None:
                    new[name] = update
                    found[name] += [update.rows, update.outgrown]
            return found

        by_map = dict[str, list[float | bool]]()
        for one in owners.communicator.all_gather_result(ACTION, compute):
            by_map |= one
        for name in columns:
            _, *about = by_map[name]
            if about:
                _remember(owners, covariances, name, new.get(name), about)
        return cls(
            owners=owners,
            layer_gains=layer_gains,
            pruning_costs=pruning_costs,
            priced=weights.keys(),
            stream=StreamCandidates.from_folds(on_both, fit.streams, held_out.streams),
            eta_by_map={name: by_map[name][0] for name in columns},
            folds=folds,
        )

    def eta(self, score_limit: float, *, joint: bool) -> float:
        """Expansion score of the network.

        Args:
            score_limit: lambda.
            joint: True for the network's own (`joint_score`), False for the sum over its maps.
        """
        total = sum(self.eta_by_map.values())
        if not joint:
            return total
        return joint_score(
            self.owners.communicator,
            self.layer_gains,
            [one.maps for one in self.folds],
            slope=total,
            score_limit=score_limit,
        )


def _of_data(covariances: DataCovariances, name: str, gains: LayerGains) -> DataCovariance | None:
    """What is new of the covariance of a map that reads the data itself."""
    # A Woodbury inverse has no factor to keep: there were fewer rows than columns.
    if type(gains.inverse) is not FactorInverse:
        return None
    rows = sum(fold.factors.rows for fold in gains.folds)
    return covariances.update(name, gains.inverse.factor, rows=rows, existing=gains.existing)


def _remember(
    owners: Owners,
    covariances: DataCovariances,
    name: str,
    update: DataCovariance | None,
    about: Sequence[float | bool],
) -> None:
    """Keep a covariance for later sessions on all ranks: any of them may own the map then."""
    rows, outgrown = about
    if covariances.factor(name) is None:

        def own() -> list[Tensor]:
            assert update is not None
            return [update.factor]

        (factor,) = owners.share(ACTION, name, own)
    else:  # the known one goes on
        factor = covariances.known[name].factor
    covariances.known[name] = DataCovariance(factor=factor, rows=rows, outgrown=bool(outgrown))
