"""`Grower`: scores changes of a network while it trains, and makes those that pay."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn import functional as F

from senn import _deprecated, pytree
from senn._validate import check_arguments
from senn.candidates.candidate_config import CandidateConfig
from senn.candidates.candidate_set import CandidateSet
from senn.collectives import Communicator, default_communicator
from senn.compilation import uncompiled
from senn.errors import SennError
from senn.events import CandidateList, GrowthEvent, GrowthRound, NetworkState
from senn.events.round_events import round_events
from senn.graph import DependencyGraph
from senn.graph.input_checks import check_module
from senn.grower.ddp_wrapper import stale, unwrapped
from senn.grower.grower_settings import RANGES
from senn.grower.output_growth import OutputGrowth
from senn.kfac.gaussian_nll import joined_gaussian
from senn.kfac.loss_metric import LossMetric
from senn.kfac.output_metric import HessianFunction
from senn.policies import MOVES, BirthKind, Budget, Policy, PricePolicy, check_moves
from senn.pytree import Inputs, Output, Prepare, Targets
from senn.scoring.applied_round import RoundToApply
from senn.scoring.example_inputs import ExampleInputs
from senn.scoring.pool import CandidatePool
from senn.scoring.precision import full_precision
from senn.scoring.rank_checks import analyzed, check_whole, each_batch, number_of_samples
from senn.scoring.round_config import RoundConfig
from senn.scoring.scoring_session import ScoringSession
from senn.scoring.selection import insertion_price, select_candidates
from senn.scoring.unit_scores import PlaceScores, score_units
from senn.scoring.validation_samples import ValidationSamples
from senn.surgery.transaction import UncarriedState

Batch = tuple[Inputs, Targets] | tuple[Inputs, Targets, Tensor] | Sequence[Any]


@_deprecated.aliased
class Grower(OutputGrowth):
    """Grows and prunes a network while it trains.

    What is added begins without an effect, which is verified, and then with as much of its natural step as lowers the
    loss on samples that didn't fit the step.

    It computes in the precision of the parameters, also where its caller has autocast or inference mode open.

    Args:
        model: any module that `senn.analyze` understands, compiled or not; it stays the same object.
        optimizer: what trains it, whose state follows by position: a `torch.optim.Optimizer`, a list of several, or a
            wrapper that holds some; None if there is none. A place whose tensors none of them holds isn't for sale.
        loss: the training loss, `loss(outputs, targets)`, a mean over samples. Targets may be a nesting of tensors.
        policy: rule for when and where to change the network; None for a price on held-out gain.
        samples: number of training samples, for prices; None for that of the first loader's data set, or else the
            number of samples observed.
        max_params: most parameters of the model; None for no limit.
        max_flops: most operations of a forward pass, per sample (`senn.flops.forward_flops`); None for no limit.
        max_width: most units of one layer, or a mapping from places to that; None for no limit.
        round_to: grown widths are multiples of this.
        moves: moves that may happen, of `width`, `depth`, `prune`.
        candidate_config: how candidates are sampled; None for the defaults.
        round_config: how many of the maps a round scores, and how several processes sum; None for the defaults.
        birth: `stepped`, with as much of the natural step as lowers the held-out loss; `silent`, without an effect, as
            in the paper; `plain` or `best`, copied blocks as they are or as is best on held-out rows. None: policy's.
        averaged: averages of the model, which change with it: copies of it, or objects that hold one (`AveragedModel`,
            and those of other libraries).
        on_uncarried_state: what happens where the state of a parameter follows its size by no rule: `refuse`, now or
            after the first step; or `restart` it for that parameter, as if training began.
        ignore: names of modules to leave alone.
        examples: inputs of other calls of the model than those it is trained by (with a mask, with a cache), which must
            go on to work as well. Batches of another structure than the ones before are found by themselves.
        metric: metric of the outputs: `fisher`, or `euclidean` as in the paper, which needs no second derivative.
        loss_hessian: Hessian of each sample's loss in the outputs, `loss_hessian(outputs, targets)`, in place of the
            loss's own: diagonals in the outputs' shape or matrices (samples, m, m), positive semidefinite. For a loss
            that isn't convex, its mean over the model's own labels (the Fisher matrix). None for the loss's own.
        coupled: True for a loss that couples the samples of a batch (pairs, triplets, statistics of the batch). Batches
            are then taken whole and in their order, and a round needs two: steps are fitted on one, valued on the
            other.
        prepare: makes inputs, targets and perhaps weights of a batch that is none such (a mapping, a record); None.
        output: finds, in what the model returns, the tensor that the loss takes. None where that is a tensor or has
            `logits`, or where only one tensor is floating-point.
        seed: seed of everything drawn at random; the global random state is left alone.
        communicator: the processes that grow one model together: all make the same calls, each with its own batches,
            and all end with the same model. None for all of `torch.distributed` where it is initialized with several;
            `Communicator()` for this process alone.

    Arguments may be changed between rounds by assignment (`grower.ignore = ["head"]`), except for the model, the loss,
    its metric and the seed.

    Attributes:
        events: every change so far.
        eta: expansion score of the network in the last round.
        candidate_set: all candidates of the last round, after their gradient ascent.
        last_round: record of the last round: its candidates, accepted and refused, with each decision; None before.
        recompiles: number of changes that dropped compiled code, so that the next step compiled anew.
        rejections: changes that failed their verification and weren't made, one sentence each.

    Raises:
        SennError: an argument is out of range, the optimizer doesn't hold the model's parameters, or the model has no
            place to grow (at the first batch).

    Example:
        >>> import torch, senn
        >>> _ = torch.manual_seed(0)
        >>> x = torch.randn(256, 2)
        >>> y = (x[:, 0] * x[:, 1] > 0).long()
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 1), torch.nn.Tanh(), torch.nn.Linear(1, 2))
        >>> optimizer = torch.optim.Adam(model.parameters())
        >>> grower = senn.Grower(model, optimizer, loss=torch.nn.functional.cross_entropy, moves=["width"])
        >>> events = grower.grow([(x, y)])
        >>> model[0].out_features > 1, events[0].place, events[0].expected_decrease > 0
        (True, '0', True)
    """

    # set by GrowerMemory
    candidate_set: CandidateSet
    last_round: GrowthRound | None

    def __init__(
        self,
        model: nn.Module,
        optimizer: Any = None,
        loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
        policy: Policy | None = None,
        *,
        samples: int | None = None,
        max_params: int | None = None,
        max_flops: int | None = None,
        max_width: int | Mapping[str, int] | None = None,
        round_to: int = 1,
        moves: Sequence[str] = (*MOVES,),
        candidate_config: CandidateConfig | None = None,
        round_config: RoundConfig | None = None,
        birth: BirthKind | None = None,
        averaged: Sequence[Any] = (),
        on_uncarried_state: UncarriedState = "refuse",
        ignore: Sequence[str] = (),
        examples: Sequence[Inputs] = (),
        metric: Literal["fisher", "euclidean"] = "fisher",
        loss_hessian: HessianFunction | None = None,
        coupled: bool = False,
        prepare: Prepare | None = None,
        output: Output | None = None,
        seed: int = 0,
        communicator: Communicator | None = None,
    ) -> None:
        check_module(model)
        model = uncompiled(model)
        model, self._wrapper = unwrapped(model)
        check_arguments(RANGES, locals())
        super().__init__(model, samples=samples, seed=seed)
        self.moves = check_moves(moves)
        self.on_uncarried_state = on_uncarried_state
        self.optimizer = optimizer
        self.policy: Policy = policy if policy is not None else PricePolicy()
        self.budget = Budget(max_params, max_width, round_to, max_flops)
        self.candidate_config = candidate_config or CandidateConfig()
        self.round_config = round_config or RoundConfig()
        self.averaged, self.birth = tuple(averaged), birth
        loss, output, loss_hessian = joined_gaussian(loss, output, loss_hessian, metric)
        self.prepare, self.output = prepare, output
        self.ignore, self._examples = tuple(ignore), ExampleInputs(examples)
        self.metric = LossMetric(loss, metric, loss_hessian=loss_hessian, coupled=coupled)
        self.communicator = communicator if communicator is not None else default_communicator()

    graph = OutputGrowth.graph
    unreadable_maps = OutputGrowth.unreadable_maps
    architecture = OutputGrowth.architecture

    @full_precision
    def observe(self, inputs: Inputs, targets: Targets, weights: Tensor | None = None) -> float:
        """Add one batch to the statistics of the next round; call `grow()` without arguments after some of them.

        Runs the model in eval mode, once (on the first batch a few times more, for some of its samples), with two
        backward passes. No `.grad`, mode, hook, buffer or random state changes.

        Args:
            inputs: (samples, ...), or any nesting of such tensors that the model takes.
            targets: (samples, ...) as the loss takes them, or any nesting of such tensors for a loss that takes it.
            weights: (samples,) sample weights; None for ones.

        Returns:
            the batch's mean loss, in the loss's own unit.

        Raises:
            SennError: the batch doesn't fit the model or the loss, or the model has no place to grow.
        """
        with self.communicator.fail_together("observe a batch"):
            count = pytree.count_samples(inputs, targets)
            check_whole(self.model)
            self._look_at_optimizer()
        self._look_at(inputs, count)
        if self._session is None:
            self._session = self._new_session(self.graph)
        return self._session.add_batch(inputs, targets, weights)

    @full_precision
    def score_candidates(self, batches: Iterable[Batch] | None = None) -> CandidateList:
        """Score every candidate on the batches, and on those observed before; the model stays as it is.

        Args:
            batches: tuples of inputs, targets and perhaps weights; None for the observed ones alone.

        Returns:
            the best candidates of each kind at each place, largest held-out gain first: a list, in notebooks a table.
        """
        pool = self._pool(batches)
        return CandidateList(sorted(pool.candidates(), key=lambda one: -one.held_out_gain))

    @full_precision
    def score_units(self, batches: Iterable[Batch] | None = None) -> dict[str, PlaceScores]:
        """Score every candidate unit that was drawn, and show the factors behind it; the model stays as it is.

        Args:
            batches: as of `score_candidates`.

        Returns:
            by place, the scores of all of its units; each is a table in notebooks.
        """
        return score_units(self._pool(batches))

    @full_precision
    def grow(
        self,
        batches: Iterable[Batch] | None = None,
        moves: Sequence[str] | None = None,
        validation: Batch | None = None,
    ) -> list[GrowthEvent]:
        """Run one round: score candidates, let the policy decide, change the model.

        A change that fails its verification isn't made: a warning says why, its place is refused from then on, and the
        other changes go on.

        Args:
            batches: tuples of inputs, targets and perhaps weights, in addition to those observed before; None for none.
            moves: moves of the grower's that may happen in this round; None for all. In a round of removals alone,
                `("prune",)`, a policy may demand more of a unit.
            validation: a batch of samples that the model isn't trained on, on which removals must not raise the loss;
                None to measure them on the batches alone.

        Returns:
            one event for each change; empty if nothing pays, or if none of the moves may happen.

        Raises:
            Exception: whatever `batches` or the loss raise; everything is as it was, statistics and random state too.
        """
        wanted = check_moves(moves, self.moves)
        if not wanted:
            return []
        held_out = ValidationSamples.of(self.communicator, validation, self.prepare)
        restore = self._snapshot()
        try:
            # A session that is opened for this round samples candidates for these moves alone.
            self._round_moves = wanted
            pool = self._pool(batches)
            policy = self.policy.for_pruning_round() if set(wanted) <= {"prune"} else self.policy
            session = self._session
            assert session is not None
            growth_round = select_candidates(
                session,
                pool,
                policy,
                number=self.rounds + 1,
                moves=wanted,
                realized=self._realized_decreases(),
            )
        except BaseException:  # an interrupt as well: half a round would be observed twice
            restore()
            raise
        finally:
            self._round_moves = None
        # From here on the round counts, whether or not a change succeeds.
        self.rounds += 1
        self._session = None
        self.last_round = replace(growth_round, samples_known=self.samples is not None)
        return self._apply(pool, session, growth_round.eta, held_out) if pool.accepted else []

    def reset(self) -> None:
        """Forget the batches observed since the last round."""
        self._session = None

    add_outputs = OutputGrowth.add_outputs
    resize_token_embeddings = OutputGrowth.resize_token_embeddings
    state_dict = OutputGrowth.state_dict
    load_state_dict = OutputGrowth.load_state_dict

    # -- inside

    def _pool(self, batches: Iterable[Batch] | None) -> CandidatePool:
        """Observe the batches, and score the candidates."""
        if batches is not None:
            if self.samples is None:
                self.samples = number_of_samples(batches)
            for one in each_batch(self.communicator, batches, self.prepare):
                self.observe(*one)
        if self._session is None or not self._session.samples:
            raise SennError("no batch has been observed: give batches, or call observe first")
        samples = self.samples or self._session.samples
        pool = self._session.pool(samples, self.budget, self.policy)
        self.eta, self.candidate_set = pool.eta, pool.candidate_set
        self._realize(self._session, pool)
        return pool

    def _look_at(self, inputs: Inputs, count: int) -> None:
        """Analyze the model, on the first batch and on the first one of another structure."""
        is_new = self._examples.note(self.communicator, self.model, inputs, count)
        if self._graph is not None and not is_new:
            return
        with self.communicator.fail_together("observe a batch"):
            # Only now: an analysis needs inputs, and `import senn` and a constructor should cost nothing.
            given = (self.model, self._examples, self.ignore, self.moves, self._untrained)
            found = analyzed(*given, streams=self.candidate_config.stream_units > 0)
            found = found.without(self._failed)
        if self._graph is None or found.changeable != self._graph.changeable:
            # What was observed may belong to places that can't change after all.
            self._graph, self._session = found, None

    def _new_session(self, graph: DependencyGraph) -> ScoringSession:
        policy, samples = self.policy, self.samples
        return ScoringSession(
            self.model,
            graph,
            metric=self.metric,
            candidate_config=self.candidate_config,
            moves=self.moves if self._round_moves is None else self._round_moves,
            generator=self._generator,
            known=self._known,
            # layers that couldn't pay even if they removed the whole loss aren't scored
            min_gain=functools.partial(insertion_price, policy, samples) if samples else None,
            output=self.output,
            layouts=self._layouts,
            communicator=self.communicator,
            round_config=self.round_config,
            number=self.rounds,
            takes_whole_batches=self._examples.are_whole,
        )

    def _apply(
        self,
        pool: CandidatePool,
        session: ScoringSession,
        eta_before: float,
        validation: ValidationSamples | None,
    ) -> list[GrowthEvent]:
        """Change the model as decided, and record it."""
        former, number = self.graph, self.rounds
        before = NetworkState(eta=eta_before, loss=session.loss_before, widths=self._widths())
        applied = RoundToApply(
            pool=pool,
            session=session,
            optimizer=self.optimizer,
            on_uncarried_state=self.on_uncarried_state,
            averaged=self.averaged,
            ignore=self.ignore,
            examples=[*self._examples],
            rejections=self.rejections,
            failed=self._failed,
            birth=self.birth,
            policy=self.policy,
            validation=validation,
        ).apply()
        if applied is None:
            self._graph = former.without(self._failed)
            return []
        self._graph = applied.graph
        self.recompiles += applied.receipt.recompiles
        if self._wrapper is not None:
            # DistributedDataParallel still reduces gradients of the former sizes.
            self._wrapper.register_forward_pre_hook(stale)

        def undo() -> None:
            applied.receipt.undo()
            self._graph, self._session, self._open_round = former, None, None
            self._new_entries = []
            self.events = [event for event in self.events if event.round != number]

        for event in self.events:  # they would keep all former data alive
            event.forget()
        events = round_events(
            applied.accepted,
            applied.receipt,
            number=number,
            before=before,
            after=NetworkState(eta=pool.eta, loss=applied.loss_after, widths=self._widths()),
            policy=self.policy,
            decrease=applied.decrease,
            step_length=applied.step_length,
            undo=undo,
        )
        self.events += events
        self._open_round, self._new_entries = number, applied.new_entries
        return events
