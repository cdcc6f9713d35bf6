"""A round's decisions carried out on the model, all or nothing, on all ranks."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from senn.errors import SurgeryError, warn
from senn.graph import DependencyGraph, Refusal, ResidualBlock
from senn.graph.trained_places import without_untrained
from senn.policies import BirthKind, Candidate, Policy, price_of
from senn.pytree import Inputs
from senn.scoring.birth_steps import ParameterEntries
from senn.scoring.births import Birth
from senn.scoring.gradient_moments import gradient_moments
from senn.scoring.pool import CandidatePool
from senn.scoring.rank_checks import agree_on_weights
from senn.scoring.scoring_session import ScoringSession
from senn.scoring.selection import with_removals
from senn.scoring.stream_births import ablated_entries, all_birth_steps
from senn.scoring.validation_samples import ValidationSamples, check_rise
from senn.surgery import Append, Move, Prune, Receipt, make_plain, transaction
from senn.surgery.moves import place_of, tensors_of
from senn.surgery.optimizer_layers import untrained
from senn.surgery.transaction import UncarriedState
from senn.verification import analyze


class _UnprofitableError(SurgeryError):
    """Additions don't lower the held-out loss."""


@dataclass(frozen=True, eq=False, kw_only=True)
class AppliedRound:
    """A round that was carried out.

    Attributes:
        accepted: the candidates that were carried out.
        receipt: what the surgery did, and the way back.
        graph: what in the model can change now.
        loss_after: loss on the last batch right after the change.
        new_entries: weights through which what was added reaches the outputs.
        step_length: how much of their step these were given.
        decrease: decrease of the held-out loss by the best part of that step, in the loss's own unit; None where no
            step is known.
    """

    accepted: list[Candidate]
    receipt: Receipt
    graph: DependencyGraph
    loss_after: float
    new_entries: list[ParameterEntries]
    step_length: float
    decrease: float | None


@dataclass(frozen=True, eq=False, kw_only=True)
class RoundToApply:
    """Decisions of a round, and everything that changes with them.

    Attributes:
        pool: the pool, whose model is changed in place.
        session: the session that the pool was scored in.
        optimizer: what the loop calls its optimizer, or None.
        on_uncarried_state: as in `transaction`.
        averaged: averages of the model, which change with it.
        ignore: names of modules that a new analysis leaves alone.
        examples: inputs of other calls of the model, which must go on to work.
        rejections: one sentence is appended for each failed attempt.
        failed: an entry is appended for each place whose change failed.
        birth: `stepped`, `silent` or `plain`; None leaves it to the policy.
        policy: the policy that accepted them.
        validation: samples that the model isn't trained on, which removals are verified on as well; None for none.
    """

    pool: CandidatePool
    session: ScoringSession
    optimizer: Any
    on_uncarried_state: UncarriedState
    averaged: Sequence[Any]
    ignore: Sequence[str]
    examples: Sequence[Inputs]
    rejections: list[str]
    failed: list[Refusal]
    birth: BirthKind | None
    policy: Policy
    validation: ValidationSamples | None

    def apply(self) -> AppliedRound | None:
        """Carry out what the pool has accepted, and verify it on the session's last batch.

        If removals fail their verification, half of them are tried, those that cost least, and so on. An addition that
        fails is left out, and the others are carried out. If no length of their joint step lowers the held-out loss,
        those at the first place are tried alone, which the policy wanted most, and then all additions are left out.

        Returns:
            what was carried out; None if all of it fails.
        """
        removals = sum(one.kind == "prune" for one in self.pool.accepted)
        added: set[str] | None = None  # places of the additions that are made; None for all
        tried = False  # whether each of them was made by itself
        while with_removals(self.pool.accepted, removals):
            moves = [
                move
                for move in self.pool.to_moves(removals)
                if isinstance(move, Prune) or added is None or place_of(move) in added
            ]
            if not moves:
                return None
            try:
                return self._attempt(moves, removals)
            except _UnprofitableError as error:
                self.rejections.append(str(error))
                # What pays alone may not pay together: several maps may have counted one decrease.
                first = self._first_place()
                places = {place_of(move) for move in moves if not isinstance(move, Prune)}
                added = {first} if first in places and len(places) > 1 else set()
            except SurgeryError as error:
                if removals:
                    self.rejections.append(str(error))
                    # Costs of removals are the quadratic model's; fewer of them stay where that holds.
                    removals //= 2
                elif not tried:
                    added = {place_of(move) for move in self._without_failing(moves, error)}
                    tried = True
                else:  # each of them could be made, but not all of them are
                    raise
        return None

    def _first_place(self) -> str:
        """Place of the first addition that was accepted."""
        return next(one.place for one in self.pool.accepted if one.kind != "prune")

    def _without_failing(self, moves: list[Move], error: SurgeryError) -> list[Move]:
        """Return the additions that can be made together; note the others as failed."""
        good: list[Move] = []
        for move in moves:
            # One after the other on top of those before: two may fail only together. The last one of a single
            # addition needs no new attempt, it is the one that has failed.
            reason = error if len(moves) == 1 else self._objection([*good, move])
            if reason is None:
                good.append(move)
                continue
            self.rejections.append(str(reason))
            self.failed.append(Refusal(place=place_of(move), reason=f"a change failed: {reason}"))
            warn(f"{reason}; other changes go on")
        return good

    def _objection(self, moves: list[Move]) -> SurgeryError | None:
        """Say why moves can't be made; None, with everything as it was, if they can."""
        try:
            self._transaction(moves).undo()
        except SurgeryError as error:
            return error
        return None

    def _transaction(self, moves: list[Move], **limits: Any) -> Receipt:
        """Make moves, all or nothing, on all ranks or on none."""
        communicator, probe = self.session.communicator, self.session.probe_inputs
        receipt = None
        try:
            with communicator.fail_together("change the model"):
                receipt = transaction(
                    self.pool.model,
                    moves,
                    self.pool.graph,
                    optimizer=self.optimizer,
                    on_uncarried_state=self.on_uncarried_state,
                    averaged=self.averaged,
                    probe=probe,
                    examples=self.examples,
                    tentative=True,  # what holds autograd's nodes (DistributedDataParallel) outlives a failed round
                    **limits,
                )
        except BaseException:
            if receipt is not None:  # another rank has failed
                receipt.undo()
            raise
        return receipt

    def _attempt(self, moves: list[Move], removals: int) -> AppliedRound:
        """Carry out moves, among them the first so many removals, all or nothing."""
        session, model = self.session, self.pool.model
        communicator = session.communicator
        places = {(type(move) is Prune, place_of(move)) for move in moves}
        accepted = [
            one
            for one in with_removals(self.pool.accepted, removals)
            if (one.kind == "prune", one.place) in places
        ]
        with communicator.fail_together("change the model"):
            # Ranks computed the same values up to rounding: the first one's count.
            communicator.broadcast("send the decision", tensors_of(moves))
        # A quadratic model says what removals cost; twice that, and rounding, is still believed. Where it is more, the
        # model was wrong, and half as many removals are tried.
        cost = sum(-one.gain / 2 for one in accepted if one.kind == "prune")
        removes = any(isinstance(move, Prune) for move in moves)
        validation = self._validation_losses() if removes else torch.empty(0)
        receipt, blocks = None, self._blocks(moves)
        try:
            receipt = self._transaction(
                moves,
                loss=session.probe_loss if removes else None,
                loss_limit=2 * cost + 1e-4 * abs(session.loss) + 1e-6,
            )
            if len(validation):
                check_rise(validation, self._validation_losses())
            with communicator.fail_together("change the model"):
                graph = receipt.graph
                if graph is None:  # something was inserted, which index arithmetic can't follow
                    graph = analyze(model, [*self.examples], ignore=self.ignore)
                    graph = without_untrained(graph, untrained(self.optimizer, model))
                steps = all_birth_steps(self.pool, receipt)
                birth = Birth(
                    model=model,
                    steps=steps,
                    communicator=communicator,
                    groups={
                        name: positions
                        for name, positions in receipt.new_positions.items()
                        if name not in self.pool.candidate_set.streams
                    },
                )
                receipt.first_undo(birth.silence)
                silent = session.probe_loss(held_out=True) if self._may_be_plain(blocks) else None
                length, decrease = birth.perform(
                    session.probe_loss, stepped=self._birth() != "silent"
                )
                by_plain = None if silent is None else self._plain_birth(blocks, receipt, silent)
            if steps:
                self._check_profit(accepted, max(decrease, by_plain or 0.0))
            if by_plain is not None:  # nothing of the step is left
                length, decrease = 0.0, by_plain
            with communicator.fail_together("change the model"):
                if self.optimizer is None:
                    receipt.refresh()  # the birth has written to the model
                else:
                    receipt.warm_second_moments(
                        self.optimizer, functools.partial(gradient_moments, session)
                    )
                loss_after = session.probe_loss()
            agree_on_weights(communicator, "compare the changed model", model)
            receipt.keep()
        except BaseException:  # all or nothing, for an interrupt too
            if receipt is not None:
                receipt.refresh()  # a birth may have been on its way
                receipt.undo()
            raise
        return AppliedRound(
            accepted=accepted,
            receipt=receipt,
            graph=graph.without(self.failed),
            loss_after=loss_after,
            new_entries=ablated_entries(self.pool, receipt, steps) if steps else [],
            step_length=length,
            decrease=decrease if steps else None,
        )

    def _blocks(self, moves: Sequence[Move]) -> list[tuple[nn.Module, ResidualBlock]]:
        """Blocks that moves copy, which a copy in their list will give other names."""
        names = [move.block for move in moves if isinstance(move, Append)]
        graph, model = self.pool.graph, self.pool.model
        return [(model.get_submodule(name), graph.block(name)) for name in names]

    def _may_be_plain(self, blocks: Sequence[Any]) -> bool:
        """Return True where copies of blocks may be given what the block adds."""
        return bool(blocks) and self._birth() in ("plain", "best")

    def _plain_birth(
        self, blocks: Sequence[tuple[nn.Module, ResidualBlock]], receipt: Receipt, silent: float
    ) -> float | None:
        """Give copies of blocks the output parameters of the blocks, if that is asked for or is best.

        Neither kind of birth is best for every network: at the scale of characters silent copies win, in large
        language models plain and random ones (Bu, ICML 2026).

        Args:
            blocks: the blocks.
            receipt: of the surgery that has copied them.
            silent: loss on held-out samples with copies that add nothing.

        Returns:
            By how much that has lowered the loss on held-out samples; None where the copies stay as they are.
        """
        added = [new for (new,) in receipt.inserted[len(receipt.inserted) - len(blocks) :]]
        is_plain = self._birth() == "plain"
        before = math.inf if is_plain else self.session.probe_loss(held_out=True)
        back = [
            make_plain(original, block, new)
            for (original, block), new in zip(blocks, added, strict=True)
        ]
        after = self.session.probe_loss(held_out=True)
        # Written so that NaN fails: it compares as False.
        if is_plain or after < before:
            return silent - after
        for undo in back:
            undo()
        return None

    def _validation_losses(self) -> Tensor:
        """Losses of the model, as it is now, on parts of the validation samples; none without any."""
        if self.validation is None:
            return torch.empty(0)
        return self.validation.losses(self.pool.model, self.session.metric, self.session.output)

    def _birth(self) -> BirthKind:
        """How what is added begins: as the policy has it, unless the grower says otherwise."""
        if self.birth is not None:
            return self.birth
        # A policy need not be a subclass of Policy.
        chosen: BirthKind = getattr(self.policy, "birth", "stepped")
        return chosen

    def _check_profit(self, accepted: Sequence[Candidate], decrease: float) -> None:
        """Refuse additions that cost something, if no length of their step lowers the held-out loss.

        The gains by which they were accepted are those of K-FAC's quadratic model, map by map. To ask for the whole
        price here would ask too much: training makes more of a unit than its first step. Small transformers, early in
        training, wouldn't grow at all.

        Raises:
            _UnprofitableError: they bring nothing.
        """
        additions = [one for one in accepted if one.kind != "prune"]
        policy = self.policy
        asks = any(
            policy.min_decrease(one.kind, one.parameters, one.samples) > 0
            or price_of(policy, one) > 0
            for one in additions
        )
        # Written so that NaN fails: it compares as False.
        if asks and not decrease > 0:
            places = ", ".join(dict.fromkeys(one.place for one in additions))
            raise _UnprofitableError(
                f"nothing was added at {places}: no length of the step lowers the loss on held-out samples"
            )
