"""`RankAllocator`: lets the ranks of LoRA adapters grow and shrink by what they are worth, under one budget."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn import functional as F

from senn._validate import (
    Rule,
    callable_,
    check_arguments,
    each,
    number,
    one_of,
    text,
    whole,
)
from senn.collectives import Communicator, default_communicator
from senn.compilation import uncompiled
from senn.errors import SennError, UnsupportedError, warn
from senn.graph.input_checks import check_module
from senn.kfac.factors import DENSE_OUTPUTS
from senn.kfac.loss_metric import LossMetric
from senn.peft.allocation import PairScores, RankChange, allocate
from senn.peft.pairs import LowRankPair, find_pairs, pair_graph
from senn.peft.rank_records import RankEvent, RankRound
from senn.peft.round_samples import Layouts, RoundSamples
from senn.peft.scored_pairs import ScoredPair, score_pairs
from senn.policies import BirthKind
from senn.pytree import Output, Prepare
from senn.scoring.balance import existing_ratio, rescale
from senn.scoring.births import Birth
from senn.scoring.precision import full_precision
from senn.surgery import Receipt, transaction
from senn.surgery.optimizer_layers import check_holds

RANGES: Mapping[str, Rule] = {
    "loss": callable_("a function loss(outputs, targets)"),
    "max_params": whole(low=1),
    "max_rank": whole(low=1).or_none(),
    "adapter": text().or_none(),
    "ignore": each(text()),
    "prepare": callable_("a function that makes inputs and targets of a batch").or_none(),
    "output": callable_("a function that finds the outputs in what the model returns").or_none(),
    "birth": one_of("stepped", "silent"),
    "damping": number(low=0, open_low=True),
    "swap_margin": number(low=1),
    "on_uncarried_state": one_of("refuse", "restart"),
}


class RankAllocator:
    """Gives the adapters of a LoRA model their ranks while they train.

    The rank of `LoraConfig` is the start. A round finds the best new directions of each adapter in closed form, values
    them on other samples, and accepts the best by their decrease of the loss for each parameter, until the budget is
    used up; later on, new directions take the place of units that are worth less. What is added begins with as much of
    its natural step as lowers the held-out loss; outputs are compared, the optimizer's state follows by position, and
    `save_pretrained` writes a configuration with which PEFT loads the model.

    The frozen model is neither copied nor analyzed. A round costs a forward and two backward passes on its samples and
    a dozen forward passes on half of them; for each adapted layer it holds two moments as large as its squared inputs
    and outputs, and one as large as its weight.

    Args:
        model: a model of PEFT with LoRA layers; it stays the same object.
        optimizer: what trains the adapters, as of `senn.Grower`; None if there is none.
        loss: the training loss, `loss(outputs, targets)`, a mean over samples.
        max_params: the budget, most parameters of all adapters together (`uniform_params` counts those of one rank).
        max_rank: most units of one adapter; None for no limit.
        adapter: name of the adapter; None for the one that is active.
        ignore: full names of layers whose ranks stay, which aren't counted either.
        averaged: averages of the model, which change with it, as of `senn.Grower`.
        prepare: makes inputs, targets and perhaps weights of a batch; None if a batch is a tuple of these.
        output: finds, in what the model returns, the tensor that the loss takes; None for its `logits`.
        birth: `stepped`, new units begin with a part of their natural step; or `silent`, without an effect.
        damping: relative damping of both factors where directions are sought: more of it prefers directions in which
            the inputs vary much.
        swap_margin: how many times what leaves has to be worth before something takes its place.
        on_uncarried_state: as of `senn.Grower`.

    Attributes:
        rounds: a record of each round.

    Raises:
        SennError: an argument is out of range, the optimizer doesn't hold the adapters, or a rank can't change.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Any = None,
        loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
        *,
        max_params: int,
        max_rank: int | None = None,
        adapter: str | None = None,
        ignore: Collection[str] = (),
        averaged: Sequence[Any] = (),
        prepare: Prepare | None = None,
        output: Output | None = None,
        birth: BirthKind = "stepped",
        damping: float = 1.0,
        swap_margin: float = 2.0,
        on_uncarried_state: Literal["refuse", "restart"] = "refuse",
    ) -> None:
        check_module(model)
        check_arguments(RANGES, locals())
        if not default_communicator().is_single:
            raise UnsupportedError(
                "a RankAllocator works in one process: several grow a model together by senn.Grower"
            )
        self.model, self.optimizer, self.averaged = uncompiled(model), optimizer, tuple(averaged)
        self.metric = LossMetric(loss, "fisher")
        self.max_params, self.max_rank = max_params, max_rank
        self.adapter, self.ignore = adapter, tuple(ignore)
        self.prepare, self.output, self.birth = prepare, output, birth
        self.damping, self.swap_margin = damping, swap_margin
        self.on_uncarried_state: Literal["refuse", "restart"] = on_uncarried_state
        self.rounds: list[RankRound] = []
        self._layouts: Layouts | None = None
        if optimizer is not None:
            check_holds(optimizer, self.model)
        least = sum(pair.per_rank for pair in self.pairs())
        if max_params < least:
            raise SennError(
                f"max_params is {max_params:,}, and a rank of 1 everywhere has {least:,} parameters"
            )

    def pairs(self) -> list[LowRankPair]:
        """Return the low-rank pairs as they are now."""
        found = find_pairs(self.model, self.adapter, self.ignore)
        wide = next((one for one in found if one.outputs > DENSE_OUTPUTS), None)
        if wide is not None:
            raise UnsupportedError(
                f"'{wide.name}' has {wide.outputs:,} outputs, more than {DENSE_OUTPUTS:,}: "
                f"ignore=[{wide.name!r}] leaves its rank as it is"
            )
        return found

    def ranks(self) -> dict[str, int]:
        """Return the rank of each adapted layer."""
        return {pair.name: pair.rank for pair in self.pairs()}

    @full_precision
    def score(self, batches: Iterable[Any]) -> dict[str, PairScores]:
        """Score all units that could come or go; the model stays as it is.

        Args:
            batches: tuples of inputs, targets and perhaps weights, or what `prepare` makes them of.

        Returns:
            By name of the adapted layer.

        Raises:
            SennError: the batches don't fit the model or the loss.
        """
        return {name: one.scores for name, one in self._scored(self._samples(batches)).items()}

    @full_precision
    def adapt(self, batches: Iterable[Any], max_params: int | None = None) -> list[RankEvent]:
        """Run one round: score, choose under the budget, change the adapters and their optimizer, all or nothing.

        Args:
            batches: tuples of inputs, targets and perhaps weights, or what `prepare` makes them of. Their first halves
                fit the directions, the second halves value them.
            max_params: a smaller budget for this round; None for the whole.

        Returns:
            One event for each adapter that changed.

        Raises:
            Exception: whatever the batches or the loss raise; everything is as it was.
        """
        budget = self.max_params if max_params is None else min(max_params, self.max_params)
        samples = self._samples(batches)
        scored = self._scored(samples)
        by_pair = {name: one.scores for name, one in scored.items()}
        # Quadratic models say what leaves costs; where they were wrong, additions are tried alone.
        for swap_margin in (self.swap_margin, math.inf):
            changes = allocate(by_pair, budget, swap_margin)
            if not changes:
                return []
            is_over = sum(one.params for one in by_pair.values()) > budget
            found = self._carry_out(samples, scored, changes, may_rise=is_over)
            if found is not None:
                self.rounds.append(found)
                return [*found.events]
        warn(
            "no ranks changed: the step of the new units doesn't lower the loss on held-out samples"
        )
        return []

    # -- inside

    def _samples(self, batches: Iterable[Any]) -> RoundSamples:
        return RoundSamples.of(
            self.model, self.metric, batches, prepare=self.prepare, output=self.output
        )

    def _scored(self, samples: RoundSamples) -> dict[str, ScoredPair]:
        pairs = self.pairs()
        if self._layouts is None:
            self._layouts = samples.layouts(pairs)
        return score_pairs(
            self.model,
            samples,
            pairs,
            self._layouts,
            damping=self.damping,
            max_rank=self.max_rank,
        )

    def _carry_out(
        self,
        samples: RoundSamples,
        scored: Mapping[str, ScoredPair],
        changes: Mapping[str, RankChange],
        *,
        may_rise: bool,
    ) -> RankRound | None:
        """Change the model and its optimizer; None, with everything as it was, if the loss rises too much."""
        before = samples.loss()
        receipt = transaction(
            self.model,
            [move for name, one in changes.items() for move in scored[name].moves(one)],
            pair_graph([one.pair for one in scored.values()]),
            optimizer=self.optimizer,
            on_uncarried_state=self.on_uncarried_state,
            averaged=self.averaged,
            probe=samples.probe,
            rehearses=False,
            tentative=True,
        )
        try:
            birth = Birth(
                model=self.model,
                steps=[
                    scored[name].step(receipt, one) for name, one in changes.items() if one.added
                ],
                groups={},
                communicator=Communicator(),
            )
            receipt.first_undo(birth.silence)
            length, decrease = birth.perform(samples.loss, stepped=self.birth == "stepped")
            _balance(receipt)
            after = samples.loss()
            receipt.refresh()
            costs = sum(scored[name].cost(one) for name, one in changes.items())
            # As of all removals: twice what the quadratic model says, and rounding, is still believed.
            most = math.inf if may_rise else before + 2 * costs + 1e-4 * abs(before)
            # Written so that NaN fails: it compares as False.
            if (birth.steps and not decrease > 0) or not after <= most:
                receipt.undo()
                return None
            receipt.keep()
            if self.optimizer is not None:
                receipt.warm_second_moments(self.optimizer, samples.gradient_moments)
        except BaseException:  # all or nothing, for an interrupt too
            receipt.refresh()
            receipt.undo()
            raise
        return RankRound(
            events=tuple(scored[name].event(one) for name, one in changes.items()),
            loss_before=before,
            loss_after=after,
            decrease=decrease,
            step_length=length,
        )


def _balance(receipt: Receipt) -> None:
    """Give new units as long rows beside their columns as existing units have, as in `senn.scoring.balance`.

    B A stays what it is in any model: nothing is between the two factors, so no loss need be asked.
    """
    for positions in receipt.new_positions.values():
        rescale(positions, existing_ratio(positions))
