"""One scoring session: candidates sampled once, statistics summed over all batches observed until a decision."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from senn import pytree
from senn.candidates.candidate_config import CandidateConfig
from senn.candidates.candidate_set import CandidateSet
from senn.candidates.gain_ascent import GainObjective, optimize_candidates
from senn.candidates.recorded_samples import SCALE_SAMPLES
from senn.candidates.sampling import sample_candidates
from senn.collectives import Communicator
from senn.errors import SennError
from senn.graph import DependencyGraph, LinearMap, get_tensor
from senn.kfac.batch_layout import BatchLayout
from senn.kfac.capture import labels
from senn.kfac.loss_metric import LossMetric
from senn.kfac.recorder import forward
from senn.policies import Budget, Policy
from senn.preserve import preserve_model_state
from senn.pytree import Inputs, Output, Targets
from senn.scoring.accounts import Accounts
from senn.scoring.batch_recorder import BatchRecorder
from senn.scoring.batch_statistics import (
    BatchPart,
    BatchStatistics,
    FoldStatistics,
    SessionSnapshot,
    batch_parts,
    joint_sums,
    most_samples,
    whole_batch,
    with_own_tables,
)
from senn.scoring.candidate_copies import CandidateCopies
from senn.scoring.changes import Prices
from senn.scoring.column_layout import ColumnLayout, build_column_layout
from senn.scoring.data_covariance import DataCovariance, DataCovariances
from senn.scoring.dormant_copy import DormantCopy
from senn.scoring.global_batch import GlobalBatch, Samples
from senn.scoring.loss_checks import calibrated, check_loss
from senn.scoring.owners import Owners
from senn.scoring.pool import CandidatePool
from senn.scoring.pruning_costs import priced_weights
from senn.scoring.rank_checks import agree_on_model
from senn.scoring.readable_maps import check_plain_maps, find_readable_maps
from senn.scoring.round_config import RoundConfig
from senn.scoring.stream import StreamKey
from senn.scoring.turns import maps_in_turn

PROBE = 1024
"""Samples on which a change is verified, and from which new BatchNorm channels take their statistics, to 3 %."""


class ScoringSession:
    """Candidates of one round and the statistics gathered about them.

    Args:
        model: the model, read only.
        graph: what in it can change.
        metric: the loss.
        candidate_config: how candidates are sampled.
        moves: moves to score candidates for, of `width`, `depth`, `prune`.
        generator: source of randomness.
        known: covariances of the data, as of `DataCovariances`.
        min_gain: least decrease of the loss, in nats per sample, with which so many parameters of a new layer could be
            accepted; None to score every layer.
        output: finds the outputs in what the model returns.
        layouts: by linear map, how its rows belong to samples, or why that can't be told; filled in by the first
            session and kept by the caller.
        communicator: the processes that score together; None for this one alone.
        round_config: how much is scored, and how it is summed.
        number: number of rounds before this one.
        takes_whole_batches: True if a batch can't be cut into samples (a graph): it is run whole, in its order.

    Attributes:
        maps: the linear maps that are read, by name.
        samples: number of samples observed so far, by all ranks.
        loss_before: loss on the last batch, of all ranks, when it was observed.
    """

    def __init__(
        self,
        model: nn.Module,
        graph: DependencyGraph,
        *,
        metric: LossMetric,
        candidate_config: CandidateConfig,
        moves: Sequence[str],
        generator: torch.Generator,
        known: dict[str, DataCovariance],
        min_gain: Callable[[int], float] | None = None,
        output: Output | None = None,
        layouts: dict[str, BatchLayout | str] | None = None,
        communicator: Communicator | None = None,
        round_config: RoundConfig | None = None,
        number: int = 0,
        takes_whole_batches: bool = False,
    ) -> None:
        self.model, self.graph, self.metric = model, graph, metric
        self.candidate_config, self.moves, self.min_gain = candidate_config, tuple(moves), min_gain
        self.generator, self.output = generator, output
        self.round_config, self.number = round_config or RoundConfig(), number
        self._is_whole = takes_whole_batches
        self.layouts = {} if layouts is None else layouts
        self.communicator = communicator if communicator is not None else Communicator()
        self.maps, self.samples, self._batches = dict[str, LinearMap](), 0, 0
        self.loss_before = float("nan")
        self.candidate_set: CandidateSet | None = None
        self._loss_sum = self._score_limit_sum = 0.0
        self._label_sum = 0.0
        self._gradient_square = self._curvature_trace = 0.0  # sums over samples
        self._covariances = DataCovariances(known)
        self._copies = CandidateCopies(model, graph)
        self._columns: dict[str, ColumnLayout] = {}
        self._stream_columns: dict[StreamKey, ColumnLayout] = {}
        self._fit, self._held_out = FoldStatistics(), FoldStatistics()
        self.last_batch: GlobalBatch | None = None
        self._stand_in: Samples = (torch.empty(0), torch.empty(0), None)

    @property
    def loss(self) -> float:
        """Mean loss over the samples observed, in the loss's own unit."""
        return self._loss_sum / max(self.samples, 1)

    def add_batch(self, inputs: Inputs, targets: Targets, weights: Tensor | None = None) -> float:
        """Add the statistics of one batch; the model is left as it was.

        Args:
            inputs: (samples, ...) or any nesting of such tensors.
            targets: (samples, ...) or any nesting of such tensors.
            weights: (samples,) sample weights; None for ones.

        Returns:
            the batch's mean loss, of all ranks.
        """
        state, given = self.generator.get_state(), (inputs, targets, weights)
        try:
            agree_on_model(self.communicator, "observe a batch", self.model)
            batch, candidates, parts = self._record(given)
            keeps_all = self.metric.coupled or self._is_whole
            if not keeps_all and (used := batch.used(parts)) is not None:
                self.generator.set_state(state)
                given = pytree.index_batch(given, used, pytree.count(targets))
                batch, candidates, parts = self._record(given)
        except BaseException:
            if not self.communicator.is_single:  # one rank may have drawn more numbers than another
                self.generator.set_state(state)
            raise
        self.candidate_set = candidates  # only now: a batch that was refused leaves nothing behind
        for part in parts:
            self._fit.add(part.fit)
            self._held_out.add(part.held_out)
            self._stream_columns.update(part.stream_columns)
        labels = self.metric.count_labels(parts[0].output, batch.targets) * batch.count
        total_loss, total_limit, labels, *squares = joint_sums(self.communicator, parts, labels)
        self._label_sum += labels
        self._gradient_square += squares[0]
        self._curvature_trace += squares[1]
        self.samples, self._batches = self.samples + batch.share.total, self._batches + 1
        self._loss_sum, loss = self._loss_sum + total_loss, total_loss / batch.share.total
        self._score_limit_sum += total_limit
        self.last_batch, self.loss_before = batch, loss
        return loss

    def _record(self, given: Samples) -> tuple[GlobalBatch, CandidateSet, list[BatchStatistics]]:
        """Permute a batch and record its parts, with candidates that are sampled from the first batch."""
        batch = GlobalBatch.permuted(
            self.communicator,
            *given,
            generator=self.generator,
            keeps_order=self.metric.coupled,
            is_whole=self._is_whole,
        )
        with self.communicator.fail_together("observe a batch"):
            if (candidates := self.candidate_set) is None:
                whole = self._is_whole
                check_loss(self.metric, self.communicator, self._forward, given, is_whole=whole)
                candidates = self._sample_candidates(batch)
            recorder = self._recorder(candidates, batch)
            parts = [recorder.record(part, batch, past=self._fit) for part in self._parts(batch)]
        return batch, candidates, parts

    @property
    def probe_inputs(self) -> Inputs:
        """The first inputs of the last batch, of all ranks; each call gathers them anew."""
        assert self.last_batch is not None
        return self.last_batch.first(PROBE)[0]

    def probe_loss(self, *, held_out: bool = False) -> float:
        """Loss of the model, as it is now, on the last batch of all ranks.

        Args:
            held_out: True for the samples on which steps are valued alone, if the batch can be cut into samples.
        """
        assert self.last_batch is not None
        is_cut = held_out and not (self._is_whole or self.metric.coupled)
        start = self.last_batch.share.total // 2 if is_cut else 0
        return self.last_batch.loss(self.model, self.metric, self.output, start)

    def pool(self, samples: int, budget: Budget, policy: Policy | None = None) -> CandidatePool:
        """Score the candidates by the statistics of all batches.

        Args:
            samples: number of training samples, for prices.
            budget: limits of the network's size.
            policy: says which figures it needs: eta of the network as a whole (`joint_score`), counted operations.
        """
        assert self.candidate_set is not None
        assert self.last_batch is not None
        if not self._held_out.maps:
            raise SennError(
                "a loss that couples samples needs two batches a round at least, one to fit steps on and one to value "
                "them on"
            )
        accounts = Accounts.build(
            self._owners(),
            (self._fit, self._held_out),
            columns=self._columns,
            stream_columns=self._stream_columns,
            covariances=self._covariances,
            weights=priced_weights(self.model, self.graph, self.maps) if self._prunes else {},
            reduce_dtype=self.round_config.reduce_dtype,
        )
        score_limit = self._score_limit_sum / self.samples
        joint = policy is not None and policy.uses_joint_score
        if joint and self.round_config.n_turns > 1:
            raise SennError(
                "the policy compares gains with the score of the whole network, which needs all maps in every round: "
                "maps_per_round must be 1"
            )
        return CandidatePool(
            model=self.model,
            graph=self.graph,
            maps=self.maps,
            candidate_set=self.candidate_set,
            accounts=accounts,
            columns=self._columns,
            prices=Prices(
                samples=samples,
                loss_per_nat=self.metric.nats(self.loss, self._label_sum / self.samples),
                dispersion=self.metric.dispersion(self._gradient_square, self._curvature_trace),
                eta=accounts.eta(score_limit, joint=joint),
                score_limit=score_limit,
            ),
            budget=budget,
            sample=functools.partial(self.last_batch.first, 1),
            counts_flops=getattr(policy, "uses_flops", False),
        )

    def snapshot(self) -> SessionSnapshot:
        """State of the session, for `restore`.

        Folds, layouts and copies are only ever replaced, never written to, so the snapshot holds them as they are. It
        copies what is written to: sums of folds, tables and the generator.
        """
        written = {"_fit", "_held_out", "_covariances", "layouts"}
        attributes = {name: value for name, value in vars(self).items() if name not in written}
        return SessionSnapshot(
            attributes=with_own_tables(attributes),
            fit=self._fit.copy(),
            held_out=self._held_out.copy(),
            covariances=self._covariances.snapshot(),
            generator=self.generator.get_state(),
        )

    def restore(self, snapshot: SessionSnapshot) -> None:
        """Bring back the state of `snapshot`, with the known covariances and the generator."""
        # Tables are copied again: a snapshot may be restored more than once.
        vars(self).update(with_own_tables(snapshot.attributes))
        self._fit, self._held_out = snapshot.fit.copy(), snapshot.held_out.copy()
        self._covariances.restore(snapshot.covariances)
        self.generator.set_state(snapshot.generator)

    # -- inside

    @property
    def _prunes(self) -> bool:
        return "prune" in self.moves

    @property
    def _layouts(self) -> dict[str, BatchLayout]:
        return {
            name: found for name, found in self.layouts.items() if isinstance(found, BatchLayout)
        }

    def _labels(self) -> list[tuple[str, str]]:
        """Name of each map with the labels of its groups, which are scored one by one."""
        return [
            (name, label)
            for name in self.maps
            for label in labels(name, self._layouts[name].groups)
        ]

    def _owners(self) -> Owners:
        """Spread the accounts of all maps over the ranks."""
        outputs = {
            label: get_tensor(self.model, self.maps[name].weight).shape[self.maps[name].out_dim]
            for name, label in self._labels()
        }
        blocks = dict.fromkeys(key.place for key in self._stream_columns if key.output)
        return Owners.assign(self.communicator, self._columns, outputs, blocks)

    def _forward(self, inputs: Inputs) -> Tensor:
        with torch.no_grad(), preserve_model_state(self.model):
            return forward(self.model, pytree.clone(inputs), self.output)  # it may write to them

    def _sample_candidates(self, batch: GlobalBatch) -> CandidateSet:
        """Find the maps that can be read and sample the candidates, from the first samples."""
        # A loss that couples samples isn't defined on some of a batch.
        total, coupled = batch.share.total, self.metric.coupled
        inputs, targets, weights = batch.first(total if coupled else SCALE_SAMPLES)
        # only the fold that steps are fitted on: the other one stays unseen
        fitted = functools.partial(batch.first, total if coupled else total // 2)
        self.metric = calibrated(self.metric, self._forward, inputs, targets)
        # A rank without samples of a part runs this one instead, so that collectives stay in step.
        first, label = pytree.index_batch((inputs, targets), slice(0, 1), pytree.count(targets))
        self._stand_in = first, label, None if weights is None else weights[:1]
        # Candidates are only sampled where they can be scored.
        given = (self.model, self.graph, self.layouts, inputs, self.output)
        readable = find_readable_maps(*given, whole=total if self._is_whole else None)
        n_turns = self.round_config.n_turns
        self.maps, places = maps_in_turn(self.model, self.graph, readable, n_turns, self.number)
        candidates = sample_candidates(
            model=self.model,
            graph=places,
            maps=readable,
            inputs=inputs,
            targets=targets,
            fitted=fitted,
            metric=self.metric,
            config=self.candidate_config,
            moves=self.moves,
            min_gain=self.min_gain,
            generator=self.generator,
            output=self.output,
            readings=self._layouts,
            whole=self._is_whole,
        )
        columns = build_column_layout(self.model, self.graph, self.maps, candidates)
        self._columns = {label: columns[name] for name, label in self._labels()}
        if not self.candidate_config.ascent_steps or not candidates.widen:
            return candidates
        check_plain_maps(self.model, self.maps, self._layouts)
        inputs, targets, weights = fitted()
        objective = GainObjective(
            model=self.model,
            graph=self.graph,
            candidates=candidates,
            inputs=inputs,
            targets=targets,
            metric=self.metric,
            generator=self.generator,
            weights=None if weights is None else weights / weights.mean(),
        )
        return optimize_candidates(objective, candidates, self.candidate_config)

    def _parts(self, batch: GlobalBatch) -> list[BatchPart]:
        """Parts of a batch that pass through the model one after the other, on all ranks alike."""
        if self.metric.coupled:
            return [whole_batch(batch.share.total, held_out=self._batches % 2 == 1)]
        most = math.inf if self._is_whole else most_samples(self.model, self.maps, self._layouts)
        return batch_parts(batch.share.total, most / batch.share.largest)

    def _recorder(self, candidates: CandidateSet, batch: GlobalBatch) -> BatchRecorder:
        return BatchRecorder(
            model=self.model,
            graph=self.graph,
            maps=self.maps,
            layouts={name: self._layouts[name] for name in self.maps},
            all_layouts=self._layouts,
            labels=self._labels(),
            columns=self._columns,
            candidate_set=candidates,
            metric=self.metric,
            covariances=self._covariances,
            generator=self.generator,
            output=self.output,
            stand_in=self._stand_in,
            dormant_copy=lambda samples: self._dormant_copy(candidates, batch, samples),
            stream_copy=lambda: self._copies.streams(candidates),
        )

    def _dormant_copy(
        self, candidates: CandidateSet, batch: GlobalBatch, samples: slice
    ) -> DormantCopy:
        """The dormant copy, calibrated on samples of the batch where it has to be made anew."""
        count = min(PROBE, samples.stop - samples.start)
        return self._copies.dormant(candidates, lambda: batch.first(count, samples.start)[0])
