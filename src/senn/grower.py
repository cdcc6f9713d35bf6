"""`Grower`: looks at a network while it trains, and changes its size where that pays."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel

from senn import _deprecated, pytree
from senn._validate import check_arguments
from senn.candidates.candidate_config import CandidateConfig
from senn.candidates.candidate_set import CandidateSet
from senn.collectives import Communicator, default_communicator
from senn.errors import SennError, SurgeryError
from senn.events import CandidateList, GrowthEvent, GrowthRound, NetworkState
from senn.graph import DependencyGraph
from senn.graph.input_checks import check_module
from senn.kfac.batch_layout import BatchLayout
from senn.kfac.loss_metric import LossMetric
from senn.policies import MOVES, Budget, Candidate, Policy, PricePolicy, check_moves
from senn.pytree import Inputs, Output
from senn.scoring.data_covariance import DataCovariance
from senn.scoring.pool import CandidatePool
from senn.scoring.precision import full_precision
from senn.scoring.rank_checks import agree_on_weights, analyzed, check_whole, each_batch, stale
from senn.scoring.scoring_session import ScoringSession
from senn.scoring.selection import select_candidates, with_removals
from senn.scoring.settings import RANGES
from senn.surgery import Prune, transaction
from senn.surgery.moves import tensors_of
from senn.surgery.optimizer_state import check_holds, unwrap
from senn.verification import analyze

Batch = tuple[Inputs, Tensor] | tuple[Inputs, Tensor, Tensor] | Sequence[Any]


@_deprecated.aliased
class Grower:
    """Grows and prunes a network while it trains, without changing its function at the moment of growth.

    It computes in the precision of the parameters, also where its caller has autocast or inference mode open.

    Args:
        model: any module that `senn.graph.analyze` understands; it stays the same object.
        optimizer: the optimizer that trains it, or None; its state follows by position.
        loss: the training loss, `loss(outputs, targets)`, a mean over samples.
        policy: when and where; by default a price on held-out gain.
        samples: number of training samples, for prices; by default that of the first loader's data set, else the number
            of samples looked at.
        max_params: most parameters of the model.
        max_width: most units of one layer.
        round_to: grown widths are multiples of this.
        moves: which of `width`, `depth`, `prune` may happen.
        candidate_config: how candidates are drawn.
        averaged: `AveragedModel`s of the model, which change with it.
        ignore: names of modules to leave alone.
        metric: `fisher`, or `euclidean` as in the paper.
        output: finds, in what the model returns, the tensor that the loss takes; not needed for a tensor, for anything
            with `logits`, and where only one tensor is floating-point.
        seed: of everything drawn at random; the global random state is left alone.
        communicator: the processes that grow one model together: all make the same calls, each with its own batches,
            and all end with the same model. By default all of `torch.distributed` where it is initialised with several;
            `Communicator()` for this process alone.

    Attributes:
        events: every change so far.
        eta: the expansion score at the last consideration.
        candidate_set: all candidates of the last consideration, after their ascent.
        last_round: the last round: its candidates, accepted and refused, each with its verdict; None before.
        rejections: removals that failed their verification and were not done, one sentence each.

    Raises:
        SennError: an argument is out of range, the optimizer doesn't hold the model's parameters, or the model has no
            place to grow (at the first batch).
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None = None,
        loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
        policy: Policy | None = None,
        *,
        samples: int | None = None,
        max_params: int | None = None,
        max_width: int | None = None,
        round_to: int = 1,
        moves: Sequence[str] = (*MOVES,),
        candidate_config: CandidateConfig | None = None,
        averaged: Sequence[AveragedModel] = (),
        ignore: Sequence[str] = (),
        metric: Literal["fisher", "euclidean"] = "fisher",
        output: Output | None = None,
        seed: int = 0,
        communicator: Communicator | None = None,
    ) -> None:
        check_module(model)
        self._wrapper = model if type(model).__name__ == "DistributedDataParallel" else None
        if self._wrapper is not None:
            model = self._wrapper.module  # type: ignore[assignment]
        check_arguments(RANGES, locals())
        self.moves = check_moves(moves)
        if optimizer is not None:
            check_holds(unwrap(optimizer), model)
        self.model = model
        self.optimizer = optimizer
        self.policy: Policy = policy if policy is not None else PricePolicy()
        self.budget = Budget(max_params, max_width, round_to)
        self.samples = samples
        self.candidate_config = candidate_config if candidate_config is not None else CandidateConfig()
        self.averaged = tuple(averaged)
        self.output = output
        self.ignore = tuple(ignore)
        self.metric = LossMetric(loss, metric)
        self.events: list[GrowthEvent] = []
        self.rejections: list[str] = []
        self.eta = float("nan")
        self.candidate_set = CandidateSet()
        self.last_round: GrowthRound | None = None
        self.rounds = 0
        self.communicator = communicator if communicator is not None else default_communicator()
        self._generator = torch.Generator().manual_seed(seed)
        self._graph: DependencyGraph | None = None
        self._session: ScoringSession | None = None
        self._known: dict[str, DataCovariance] = {}
        self._layouts: dict[str, BatchLayout | str] = {}
        self._open: int | None = None  # number of the round whose events are not realised yet

    @property
    def graph(self) -> DependencyGraph:
        """What in the model can change size; known after the first batch."""
        if self._graph is None:
            raise SennError("the model's structure is known after the first batch: call observe or grow first")
        return self._graph

    @property
    def unreadable_maps(self) -> dict[str, str]:
        """Linear maps that can't be read, and why: no gain through them counts. Known after the first batch."""
        return {name: found for name, found in self._layouts.items() if isinstance(found, str)}

    @property
    def architecture(self) -> tuple[int, ...]:
        """Widths of the spaces that can change, in order of use."""
        return tuple(self._widths().values())

    @full_precision
    def observe(self, inputs: Inputs, targets: Tensor, weights: Tensor | None = None) -> float:
        """Look at one batch and add it to the statistics of the next consideration; returns its loss.

        Runs the model in eval mode, once (on the first batch a few times more, for some of its samples), with two
        backward passes; no `.grad`, mode, hook, buffer or random state changes. Then `grow()` without arguments.
        """
        with self.communicator.fail_together("look at a batch"):
            if not pytree.tensor_leaves(inputs) or not isinstance(targets, Tensor):
                raise SennError(
                    "a batch's inputs must be tensors (or a tuple or mapping of them), and its targets a tensor"
                )
            check_whole(self.model)
            if self._graph is None:
                self._graph = analyzed(self.communicator, self.model, inputs, self.ignore)
        if self._session is None:
            self._session = self._new_session(self._graph)
        loss = self._session.add_batch(inputs, targets, weights)
        for event in self._unrealised():
            event.realized_decrease = (event.loss_after - loss) / event.loss_per_nat
        self._open = None
        return loss

    @full_precision
    def score_candidates(self, batches: Iterable[Batch] | None = None) -> CandidateList:
        """Score every candidate on the batches (and those observed before); changes nothing.

        Returns:
            the best candidates of each kind at each place, best first by held-out gain: a list, in notebooks a table.
        """
        pool = self._pool(batches)
        return CandidateList(sorted(pool.candidates(), key=lambda c: -c.held_out_gain))

    @full_precision
    def grow(self, batches: Iterable[Batch] | None = None, moves: Sequence[str] | None = None) -> list[GrowthEvent]:
        """One round: consider, decide, change the model. Empty when nothing pays.

        Args:
            batches: to look at, beside those observed before.
            moves: which of the grower's may happen in this round; if none of them may, nothing is looked at. In one of
                removals alone, `("prune",)`, a policy may ask more of a unit to stay.

        Raises:
            SurgeryError: a change failed its verification; everything is as it was.
            Exception: whatever `batches` or the loss raise; everything is as it was, window and random state too.
        """
        every, wanted = self.moves, check_moves(moves, self.moves)
        if not wanted:
            return []
        back = self._back()
        try:
            self.moves = wanted
            pool = self._pool(batches)
            policy = self.policy.for_pruning_round() if set(wanted) <= {"prune"} else self.policy
            session = self._session
            assert session is not None
            realized = next((one.realized_decrease for one in self.events[-1:] if one.round == self.rounds), None)
            growth_round = select_candidates(
                session, pool, policy, number=self.rounds + 1, moves=wanted, realized=realized
            )
        except BaseException:
            back()
            raise
        finally:
            self.moves = every
        self.rounds += 1
        self._session = None
        self.last_round = growth_round
        return self._carry_out(pool, session, growth_round.eta) if pool.accepted else []

    def reset(self) -> None:
        """Forget the batches looked at since the last round."""
        self._session = None

    def state_dict(self) -> dict[str, Any]:
        """What a grower of the same model and settings needs to go on: nested plain values and tensors, all copies.

        Between rounds it is complete: with the model and the optimizer brought back to the same numbers, all that
        follows is bit for bit the same. Batches observed since the last round aren't in it, nor are `draw` and `undo`.
        """
        return {
            "rounds": self.rounds,
            "samples": self.samples,
            "eta": self.eta,
            "generator": self._generator.get_state(),
            "known": {name: asdict(one) for name, one in self._known.items()},
            "events": [event.state() for event in self.events],
            "open": [number for number, event in enumerate(self.events) if event.round == self._open],
            "rejections": [*self.rejections],
            "last_round": None if self.last_round is None else self.last_round.state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken; the model's structure is analysed anew at the next batch.

        Args:
            state: of a grower with the same settings, whose model had the sizes that this one's has now.

        Raises:
            SennError: it isn't such a state; nothing is changed.
        """
        try:
            place = next((parameter.device for parameter in self.model.parameters()), torch.device("cpu"))
            known = {
                name: DataCovariance(**{**one, "factor": one["factor"].to(place, copy=True)})
                for name, one in state["known"].items()
            }
            events = [GrowthEvent.from_state(one) for one in state["events"]]
            opened = [events[number].round for number in state["open"]]
            last = state["last_round"] if "last_round" in state else state["consideration"]  # as senn 0.1 called it
            growth_round = None if last is None else GrowthRound.from_state(last)
            generator = torch.Generator()
            generator.set_state(state["generator"].cpu())
            rounds, samples, eta = int(state["rounds"]), state["samples"], float(state["eta"])
            rejections = [str(text) for text in state["rejections"]]
        except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise SennError(f"this isn't the state of a Grower: {type(error).__name__}: {error}") from error
        self._generator.set_state(generator.get_state())
        self._known.clear()
        self._known.update(known)
        self._layouts.clear()
        self._graph = self._session = None
        self.candidate_set = CandidateSet()
        self.rounds, self.samples, self.eta = rounds, samples, eta
        self._open = opened[-1] if opened else None
        self.events, self.rejections, self.last_round = events, rejections, growth_round

    # -- inside

    def _back(self) -> Callable[[], None]:
        """A function that undoes all that is noted while batches are looked at."""
        session, generator = self._session, self._generator.get_state()
        snapshot = None if session is None else session.snapshot()
        known = dict(self._known)
        realized = [(event, event.realized_decrease) for event in self._unrealised()]
        kept = {"samples": self.samples, "eta": self.eta, "candidate_set": self.candidate_set, "_open": self._open}

        def undo() -> None:
            self._session = session
            self._generator.set_state(generator)
            self._known.clear()
            self._known.update(known)
            if session is not None and snapshot is not None:
                session.restore(snapshot)
            for event, former in realized:
                event.realized_decrease = former
            vars(self).update(kept)

        return undo

    def _pool(self, batches: Iterable[Batch] | None) -> CandidatePool:
        if batches is not None:
            if self.samples is None and hasattr(getattr(batches, "dataset", None), "__len__"):
                self.samples = len(batches.dataset)  # type: ignore[attr-defined]
            for one in each_batch(self.communicator, batches):
                self.observe(*one)
        if self._session is None or not self._session.samples:
            raise SennError("no batch has been looked at: give batches, or call observe first")
        samples = self.samples or self._session.samples
        pool = self._session.pool(samples, self.budget, uses_joint_score=self.policy.uses_joint_score)
        self.eta, self.candidate_set = pool.eta, pool.candidate_set
        return pool

    def _new_session(self, graph: DependencyGraph) -> ScoringSession:
        """A new session; layers that couldn't pay even if they removed the whole loss aren't scored in it."""
        policy, samples = self.policy, self.samples
        return ScoringSession(
            self.model,
            graph,
            metric=self.metric,
            candidate_config=self.candidate_config,
            moves=self.moves,
            generator=self._generator,
            known=self._known,
            min_gain=(lambda parameters: policy.min_decrease("insert", parameters, samples)) if samples else None,
            output=self.output,
            layouts=self._layouts,
            communicator=self.communicator,
        )

    def _carry_out(self, pool: CandidatePool, session: ScoringSession, eta_before: float) -> list[GrowthEvent]:
        """Change the model as decided; if removals fail their verification, with the first half of them, and so on."""
        removals = sum(c.kind == "prune" for c in pool.accepted)
        while True:
            accepted = with_removals(pool.accepted, removals)
            try:
                return self._operate(pool, session, eta_before, accepted, removals) if accepted else []
            except SurgeryError as error:
                if not removals:
                    raise
                self.rejections.append(str(error))
                removals //= 2

    def _operate(
        self, pool: CandidatePool, session: ScoringSession, eta_before: float, accepted: list[Candidate], removals: int
    ) -> list[GrowthEvent]:
        with self.communicator.fail_together("change the model"):
            moves, probe = pool.to_moves(removals), session.probe_inputs
            self.communicator.broadcast("send the decision", tensors_of(moves))
        cost = sum(-c.gain / 2 for c in accepted if c.kind == "prune")
        before = NetworkState(eta=eta_before, loss=session.loss_before, widths=self._widths())
        previous, receipt = self.graph, None
        try:
            with self.communicator.fail_together("change the model"):
                receipt = transaction(
                    self.model, moves, self.graph, optimizer=self.optimizer, averaged=self.averaged, probe=probe,
                    loss=session.probe_loss if any(isinstance(move, Prune) for move in moves) else None,
                    loss_limit=2 * cost + 1e-4 * abs(session.loss) + 1e-6,
                )  # fmt: skip
                self._graph = receipt.graph
                if self._graph is None:  # something was inserted
                    self._graph = analyze(self.model, pytree.head(probe), ignore=self.ignore)
                loss_after = session.probe_loss()
            agree_on_weights(self.communicator, "compare the changed model", self.model)
        except BaseException:  # all or nothing: an interrupt too
            if receipt is not None:
                receipt.undo()
            self._graph = previous
            raise
        if self._wrapper is not None:
            self._wrapper.register_forward_pre_hook(stale)

        number = self.rounds

        def undo() -> None:
            receipt.undo()
            self._graph, self._session, self._open = previous, None, None
            self.events = [event for event in self.events if event.round != number]

        after = NetworkState(eta=pool.eta, loss=loss_after, widths=self._widths())
        events = GrowthEvent.from_round(
            accepted, receipt, number=number, before=before, after=after, policy=self.policy, undo=undo
        )
        for event in self.events:  # they would keep every former parameter alive
            event.forget()
        self.events += events
        self._open = number
        return events

    def _widths(self) -> dict[str, int]:
        """Width of each space, in order of use."""
        return {group.name: group.width for group in self.graph.groups}

    def _unrealised(self) -> list[GrowthEvent]:
        """Events of which it isn't known yet what came of them: those of the last round, until a batch is looked at."""
        return [event for event in self.events if event.round == self._open]
