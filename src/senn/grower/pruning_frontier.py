"""Accuracy against size, from one trained network: a copy of it is pruned by the score, and never trained."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from senn._validate import Rule, a_seed, check_arguments, fraction
from senn.batch_norms import renew_batch_norms
from senn.candidates.candidate_config import CandidateConfig
from senn.collectives import Communicator
from senn.compilation import uncompiled
from senn.errors import SennError
from senn.events.frontier_records import Frontier, FrontierPoint
from senn.graph import DependencyGraph
from senn.graph.input_checks import check_module
from senn.graph.model_copy import copy_model
from senn.kfac.batch_layout import BatchLayout
from senn.kfac.gaussian_nll import joined_gaussian
from senn.kfac.loss_metric import LossMetric
from senn.kfac.recorder import forward
from senn.policies import Budget
from senn.preserve import ModelState
from senn.pytree import Output, Prepare
from senn.scoring.data_covariance import DataCovariance
from senn.scoring.pool import CandidatePool
from senn.scoring.precision import without_autocast
from senn.scoring.pruning_costs import hold_weights
from senn.scoring.rank_checks import analyzed, each_batch
from senn.scoring.scoring_session import ScoringSession
from senn.surgery import transaction

Figures = Mapping[str, float]

_RANGES: Mapping[str, Rule] = {
    "step": fraction(open_low=True),
    "most": fraction(open_low=True),
    "seed": a_seed(),
}


@torch.inference_mode(False)  # tensors that are made in inference mode have no gradients
def frontier(
    model: nn.Module,
    loss: Callable[[Tensor, Tensor], Tensor],
    batches: Iterable[Any],
    evaluate: Callable[[nn.Module], Figures],
    *,
    step: float = 0.1,
    most: float = 0.9,
    ignore: Sequence[str] = (),
    prepare: Prepare | None = None,
    output: Output | None = None,
    seed: int = 0,
) -> Frontier:
    """Measure a trained network at smaller and smaller sizes, without training it again.

    A copy is pruned block by block. In each block the units go that cost least by the optimal brain surgeon's formula,
    one after the other, while the columns that stay take over what they can; between blocks all factors are estimated
    anew. Running statistics of batch norms are renewed on the batches before a smaller network is evaluated. The model
    itself, its gradients, hooks, modes and buffers and the global random state are left alone.

    Args:
        model: any trained module that `senn.analyze` understands.
        loss: the training loss, `loss(outputs, targets)`, a mean over samples.
        batches: tuples of inputs, targets and perhaps weights to score on, training rows; a few thousand are enough.
            They are all held, and run once for each size.
        evaluate: returns figures of a network on validation rows, `loss` and at most one score, of which larger is
            better, by its name. It is called in eval mode and without gradients, once for each size.
        step: share of the units that goes in one block, above 0.
        most: share of the units that is removed at the end; every layer keeps a unit.
        ignore: names of modules to leave alone.
        prepare: makes inputs, targets and perhaps weights of a batch that is none such; None.
        output: finds, in what the model returns, the tensor that the loss takes; None as in `Grower`.
        seed: seed of everything drawn at random.

    Returns:
        The sizes, the network as it was given first.

    Raises:
        SennError: an argument is out of range, there is no batch, or the model has no unit that could be removed.

    Example:
        >>> import torch, senn
        >>> from torch.nn.functional import mse_loss
        >>> _ = torch.manual_seed(0)
        >>> x = torch.randn(200, 3)
        >>> y = x.sum(1, keepdim=True)
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
        >>> def figures(net):
        ...     return {"loss": mse_loss(net(x), y).item()}
        >>> found = senn.frontier(model, mse_loss, [(x, y)], figures, step=0.25)
        >>> [point.parameters for point in found.points], model[0].out_features
        ([41, 31, 21, 11], 8)
    """
    check_arguments(_RANGES, locals())
    check_module(model)
    copied = copy_model(uncompiled(model))
    copied.zero_grad(set_to_none=True)
    loss, output, _ = joined_gaussian(loss, output, None, "fisher")
    devices = ModelState([copied]).devices
    with torch.random.fork_rng(devices), torch.enable_grad(), without_autocast(copied):
        held = [*each_batch(Communicator(), batches, prepare)]
        if not held:
            raise SennError("no batch was given: a frontier is scored on some training rows")
        graph = analyzed(copied, [held[0][0]], ignore, ("prune",))
        pruning = _Pruning(copied, graph, LossMetric(loss), held, output, seed)
        return pruning.run(evaluate, step, most)


class _Pruning:
    """A network on its way to smaller sizes."""

    def __init__(
        self,
        model: nn.Module,
        graph: DependencyGraph,
        metric: LossMetric,
        batches: Sequence[Any],
        output: Output | None,
        seed: int,
    ) -> None:
        self.model, self.graph, self.metric = model, graph, metric
        self.batches, self.output = batches, output
        self.removed, self.expected_rise = 0, 0.0
        self._generator = torch.Generator().manual_seed(seed)
        self._known: dict[str, DataCovariance] = {}
        self._layouts: dict[str, BatchLayout | str] = {}

    def run(self, evaluate: Callable[[nn.Module], Figures], step: float, most: float) -> Frontier:
        """Prune block by block until `most` of the units are gone, or none can go any more."""
        first = self._point(evaluate)
        pool = self._pool()
        places = {one.place for one in pool.candidates()}
        units = sum(group.width for group in self.graph.groups if group.name in places)
        points, block = [first], 1
        while pool.candidates() and round(block * step * units) <= round(most * units):
            # steps of less than a unit: the block waits for a whole one
            if self._prune(pool, round(block * step * units)):
                points.append(self._point(evaluate))
                pool = self._pool()
            block += 1
        names = [name for name in first.figures if name != "loss"]
        return Frontier(
            points=tuple(points), units=units, score_name=names[0] if len(names) == 1 else None
        )

    def _pool(self) -> CandidatePool:
        """Score what could be removed from the network as it is now."""
        session = ScoringSession(
            self.model,
            self.graph,
            metric=self.metric,
            candidate_config=CandidateConfig(),
            moves=("prune",),
            generator=self._generator,
            known=self._known,
            output=self.output,
            layouts=self._layouts,
            communicator=Communicator(),
        )
        for batch in self.batches:
            session.add_batch(*batch)
        pool = session.pool(session.samples, Budget())
        for name, costs in pool.removals.costs.items():
            hold_weights(costs, self.model, pool.maps[name], pool.layer_gains[name])
        return pool

    def _prune(self, pool: CandidatePool, wanted: int) -> bool:
        """Remove the cheapest units until `wanted` are gone in all; False if that takes none."""
        before = self.removed
        while self.removed < wanted:
            offered = pool.candidates()
            if not offered:
                break
            cheapest = max(offered, key=lambda one: one.gain / one.units)
            pool.commit(cheapest)
            self.removed += cheapest.units
            # eta's unit is twice the loss's
            self.expected_rise -= cheapest.gain / 2
        if self.removed == before:
            return False
        graph = transaction(self.model, pool.to_moves(), self.graph).graph
        assert graph is not None, "after a removal the graph follows by index arithmetic"
        self.graph = graph
        self._renew_statistics()
        return True

    def _point(self, evaluate: Callable[[nn.Module], Figures]) -> FrontierPoint:
        self.model.eval()
        with torch.no_grad():
            figures = {name: float(value) for name, value in evaluate(self.model).items()}
        if "loss" not in figures:
            raise SennError(f"evaluate must return the loss, and it returned {[*figures]}")
        return FrontierPoint(
            parameters=sum(p.numel() for p in self.model.parameters()),
            removed=self.removed,
            widths={group.name: group.width for group in self.graph.groups},
            figures=figures,
            expected_rise=self.expected_rise,
        )

    def _renew_statistics(self) -> None:
        """Measure the running statistics of batch norms anew, as means over the batches."""

        def run() -> None:
            for batch in self.batches:
                forward(self.model, batch[0], self.output)

        renew_batch_norms(self.model, run)
