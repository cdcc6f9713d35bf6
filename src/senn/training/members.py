"""Networks of the size that a run has found, trained beside its network, so that their predictions can be averaged.

Each member is trained from scratch, all of them in one tensor. Where the run has drawn its validation rows, every other
member holds out other rows: together they are trained on all rows (cross-fitting), and each row has a prediction by a
member that has never seen it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn import functional as F

from senn.errors import SennError
from senn.nn import MLP
from senn.policies import PaperPolicy
from senn.training.batches import Inputs, Rows
from senn.training.builders import ELEMENTWISE, build_optimizer, loss_function
from senn.training.metric import as_metric
from senn.training.train_config import Task, TrainConfig
from senn.training.validation import monitored, output_scale, rank

MOST_MEMBERS = 8
"""Members of an ensemble whose number isn't given; what they bring is in docs/results.md (`benchmarks/tables.py`)."""

MANY_ROWS = 20_000
"""Rows up to which that many are trained; up to five times as many rows have half of them, larger tables none."""

GAIN = 0.02
"""Share by which the validation loss falls with the learning rate in runs whose members are trained twice as long."""


@dataclass(frozen=True, kw_only=True)
class MemberPlan:
    """How many networks are averaged, and which rows they hold out.

    Attributes:
        count: number of networks, the run's own included.
        cross_fits: True to let each hold out other rows for its validation; False for those of the run.
        allows_linear: True to keep a linear model instead, and alone, where that is better.
        begun: networks that go on beside the run's own, `count` less one of one size; empty for fresh ones.
    """

    count: int = 1
    cross_fits: bool = False
    allows_linear: bool = False
    begun: tuple[MLP, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainedMembers:
    """Networks trained beside the one of a run.

    Attributes:
        models: the networks, in eval mode.
        outputs: (n, outputs) for rows that the network whose outputs they are has not been trained on.
        targets: (n, ...) those of these rows.
    """

    models: list[nn.Module]
    outputs: Tensor
    targets: Tensor


def plan_members(recipe: TrainConfig, rows: int, *, cross_fits: bool) -> MemberPlan:
    """Choose how many networks of a table are averaged.

    Args:
        recipe: their number, if it says one. A net whose size is limited or chosen by hand stays one by itself.
        rows: training and validation rows.
        cross_fits: True where training draws the validation rows.

    Raises:
        SennError: more than one is asked for with an optimizer or an average that several networks can't share.
    """
    obstacle = _obstacle(recipe)
    limits = (recipe.max_params, recipe.max_flops, recipe.max_width)
    is_paper = recipe.policy == "paper" or isinstance(recipe.policy, PaperPolicy)
    is_free = recipe.grow and not is_paper and all(one is None for one in limits)
    allows_linear = recipe.linear and is_free and "prune" in recipe.moves_of(is_table=True)
    if recipe.members is not None:
        if recipe.members > 1 and obstacle:
            raise SennError(f"members={recipe.members} can't be combined with {obstacle}")
        count = recipe.members
    else:
        is_limited = not is_free or recipe.max_seconds is not None
        count = MOST_MEMBERS if rows <= MANY_ROWS else MOST_MEMBERS // 2
        if obstacle or is_limited or rows > 5 * MANY_ROWS:
            return MemberPlan(allows_linear=allows_linear)
    return MemberPlan(count=count, cross_fits=cross_fits, allows_linear=allows_linear)


def continued_members(
    networks: Sequence[MLP], recipe: TrainConfig, *, cross_fits: bool
) -> MemberPlan:
    """Plan that networks of an ensemble go on beside its first one.

    Args:
        networks: those behind the first, of one size.
        recipe: of the run.
        cross_fits: True where training draws the validation rows.

    Raises:
        SennError: the optimizer, or an average, is one that several networks can't share.
    """
    if networks and (obstacle := _obstacle(recipe)) is not None:
        raise SennError(f"an ensemble can't go on with {obstacle}")
    return MemberPlan(count=1 + len(networks), cross_fits=cross_fits, begun=tuple(networks))


def member_epochs(history: Sequence[Mapping[str, Any]], planned: int) -> int:
    """Choose how many passes over the data members make: twice as many as the run, where that shows that it pays.

    At a constant learning rate validation losses are too noisy to tell whether a run is over. But a network that gains
    when the rate falls wasn't fitted to its rows too closely yet, and gains from a longer run as well; one that doesn't
    was at its best long before.

    Args:
        history: records of the run.
        planned: epochs of the run.
    """
    epochs = [one for one in history if one["event"] == "epoch"]
    if not epochs or any(one["validation_loss"] is None for one in epochs):
        return planned
    peak = max(one["lr"] for one in epochs)
    at_peak = [one["validation_loss"] for one in epochs if one["lr"] > 0.999 * peak]
    falling = [one["validation_loss"] for one in epochs if one["lr"] <= 0.999 * peak]
    gains = bool(falling) and min(falling) < (1 - GAIN) * min(at_peak)
    return 2 * planned if gains else planned


def _obstacle(recipe: TrainConfig) -> str | None:
    """Return what several networks in one tensor can't share; None for nothing."""
    if recipe.optimizer.lower().replace("_", "-") not in ELEMENTWISE:
        return f"the optimizer {recipe.optimizer!r}"
    return None if recipe.average is None else f"average={recipe.average!r}"


def train_members(
    model: MLP,
    rows: Rows,
    held_out: Rows | None,
    plan: MemberPlan,
    *,
    task: Task,
    recipe: TrainConfig,
    epochs: int,
    batches: int,
    pause: Callable[[], None],
) -> TrainedMembers:
    """Train further networks of one size, each from weights, and on an order of rows, of its own.

    Of each the best epoch on its own validation rows is kept, as of the first one.

    Args:
        model: the network of the run, which stays as it is.
        rows: rows that it was trained on.
        held_out: rows that it was validated on; None for none.
        plan: number of networks, `model` included, and whether they hold out other rows than it does.
        task: `classification` or `regression`.
        recipe: optimizer, schedule of the learning rate, figure that makes an epoch the best, and seed.
        epochs: passes over the data, over which the learning rate goes through its schedule.
        batches: optimizer steps of an epoch.
        pause: called between steps; it may raise an interruption.
    """
    together = _Members(model, rows, held_out, plan, task=task, recipe=recipe)
    steps, step = epochs * batches, 0
    for epoch in range(epochs):
        for part in torch.tensor_split(together.orders(epoch), batches, dim=1):
            together.step(part, recipe.lr_factor(step / steps))
            step += 1
            pause()
        together.end_epoch()
    return together.result()


class _Members:
    """Several networks in one tensor for each of their parameters."""

    def __init__(
        self,
        model: MLP,
        rows: Rows,
        held_out: Rows | None,
        plan: MemberPlan,
        *,
        task: Task,
        recipe: TrainConfig,
    ) -> None:
        self.task, self.recipe, self.count = task, recipe, plan.count - 1
        self.generator = torch.Generator().manual_seed(recipe.seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed + 1)  # other weights than those that the run began with
            self.models = [copy.deepcopy(one) for one in plan.begun] or [
                fresh_copy(model) for _ in range(self.count)
            ]
        self.skeleton = copy.deepcopy(self.models[0]).to("meta").train()
        # Activations without numbers of their own are applied to all members at once.
        self.is_plain = all(
            isinstance(layer, nn.Linear) or not [*layer.parameters(), *layer.buffers()]
            for layer in self.skeleton.body.children()
        )
        parameters, self.buffers = stack_module_state(self.models)
        self.parameters: dict[str, Tensor] = {
            name: nn.Parameter(one) for name, one in parameters.items()
        }
        holder = nn.ParameterList(self.parameters.values())
        self.optimizer = build_optimizer(holder, recipe, loss_function(task))
        self.peak = self.optimizer.param_groups[0]["lr"]
        self.rows = rows if held_out is None or not plan.cross_fits else _joined(rows, held_out)
        self.kept_rows, self.folds = self._split(len(rows), held_out, plan)
        self.best: list[tuple[float, float] | None] = [None] * self.count
        self.kept = {name: one.detach().clone() for name, one in self.parameters.items()}
        self.monitor = monitored(recipe, self.folds[0])
        self.end_epoch()

    def _split(
        self, rows: int, held_out: Rows | None, plan: MemberPlan
    ) -> tuple[Tensor, list[Rows | None]]:
        """Choose the rows of each member to train on, equally many, and its validation rows."""
        if held_out is None or not plan.cross_fits:
            return torch.arange(rows).expand(self.count, -1), [held_out] * self.count
        # Classes in proportion: dealt out in the order of their classes.
        order = torch.randperm(rows, generator=self.generator)
        if self.task == "classification":
            order = order[torch.argsort(self.rows.y[:rows].cpu()[order], stable=True)]
        dealt = [order[number :: self.count] for number in range(self.count)]
        used = torch.ones(self.count, len(self.rows), dtype=torch.bool)
        for number, fold in enumerate(dealt):
            used[number, fold] = False
        fewest = int(used.sum(1).min())
        kept = torch.stack([one.nonzero()[:, 0][-fewest:] for one in used])
        return kept, [self.rows.take(fold) for fold in dealt]

    def orders(self, epoch: int) -> Tensor:
        """Draw the order of each member's rows in an epoch, (members, rows)."""
        generator = torch.Generator().manual_seed((self.recipe.seed + 1_000_003 * epoch) % 2**63)
        shape = self.kept_rows.shape
        shuffled = torch.rand(shape, generator=generator).argsort(1)
        return self.kept_rows.gather(1, shuffled)

    def outputs(self, x: Tensor, *, training: bool) -> Tensor:
        """Compute (members, rows, outputs) for inputs (members, rows, features)."""
        self.skeleton.train(training)
        if self.is_plain:
            return self._plain_outputs(x)

        def one(parameters: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor) -> Tensor:
            output: Tensor = functional_call(self.skeleton, (parameters, buffers), (x,))
            return output

        found: Tensor = vmap(one, randomness="different")(self.parameters, self.buffers, x)
        return found

    def _plain_outputs(self, x: Tensor) -> Tensor:
        """Compute the same by products of stacked matrices, in half the time that vmap takes."""
        hidden = x
        for name, layer in self.skeleton.body.named_children():
            linear = isinstance(layer, nn.Linear)
            hidden = self._product(f"body.{name}", hidden) if linear else layer(hidden)
        if self.skeleton.shortcut is None:
            return hidden
        return hidden + self._product("shortcut", x)

    def _product(self, name: str, x: Tensor) -> Tensor:
        weight, bias = self.parameters[f"{name}.weight"], self.parameters.get(f"{name}.bias")
        if bias is None:
            return torch.bmm(x, weight.mT)
        return torch.baddbmm(bias.unsqueeze(1), x, weight.mT)

    def step(self, order: Tensor, lr_factor: float) -> None:
        """Take one optimizer step of each member on rows (members, rows of a batch)."""
        self.optimizer.param_groups[0]["lr"] = self.peak * lr_factor
        order = order.to(self.rows.x.device)
        losses = _row_losses(self.outputs(self.rows.x[order], training=True), self.rows.y[order])
        if self.rows.weight is not None:
            losses = losses * self.rows.weight[order]
        self.optimizer.zero_grad()
        # The sum over members: each has the gradient of its own mean.
        losses.mean(1).sum().backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()

    @torch.no_grad()
    def end_epoch(self) -> None:
        """Keep the weights of each member that is better on its validation rows than before."""
        for number, outputs in enumerate(self._validation_outputs()):
            fold = self.folds[number]
            found = None if fold is None else rank(self._figures(outputs, fold), self.monitor)
            former = self.best[number]
            if found is None or former is None or found < former:
                self.best[number] = found
                for name, kept in self.kept.items():
                    kept[number] = self.parameters[name][number]

    def _validation_outputs(self) -> list[Tensor]:
        """Compute each member's outputs for its validation rows; empty ones without such rows."""
        folds = [fold for fold in self.folds if fold is not None]
        if not folds:
            return [torch.empty(0)] * self.count
        # Folds differ by a row at most: the last one is repeated.
        longest = max(len(fold) for fold in folds)
        x = torch.stack([fold.x[torch.arange(longest).clamp(max=len(fold) - 1)] for fold in folds])
        found = self.outputs(x, training=False)
        return [one[: len(fold)] for one, fold in zip(found, folds, strict=True)]

    def _figures(self, outputs: Tensor, fold: Rows) -> dict[str, float]:
        losses = _row_losses(outputs[None], fold.y[None])[0]
        weight = torch.ones_like(losses) if fold.weight is None else fold.weight
        figures = {"loss": float((losses * weight).sum() / weight.sum())}
        if self.task == "classification":
            hit = (outputs.argmax(1) == fold.y).to(weight)
            figures["accuracy"] = float((hit * weight).sum() / weight.sum())
        metric = as_metric(self.recipe.monitor)
        if metric is not None:
            figures[metric.name] = metric(outputs, fold.y, fold.weight)
        return figures

    @torch.no_grad()
    def result(self) -> TrainedMembers:
        """Give each member the weights that were kept, and scale the outputs of classifiers."""
        outputs, targets = [], []
        for number, (model, fold) in enumerate(zip(self.models, self.folds, strict=True)):
            for name, parameter in model.named_parameters():
                parameter.copy_(self.kept[name][number])
            model.eval()
            if fold is None:
                continue
            if self.task == "classification" and self.recipe.calibrate:
                model.scale_outputs(output_scale(model, fold, Inputs()))
            outputs.append(model(fold.x))
            targets.append(fold.y)
        nothing = self.rows.y[:0]
        return TrainedMembers(
            models=[*self.models],
            outputs=torch.cat(outputs) if outputs else nothing,
            targets=torch.cat(targets) if targets else nothing,
        )


def fresh_copy(model: MLP) -> MLP:
    """Return a network of the same layers, with weights as those of a new one.

    Args:
        model: the network, which stays as it is.
    """
    fresh = copy.deepcopy(model)
    for module in fresh.modules():
        reset = getattr(module, "reset_parameters", None)
        if callable(reset):
            reset()
    # As of `senn.training.builders.build_model`: it begins by predicting the mean.
    last = [one for one in fresh.body.modules() if isinstance(one, nn.Linear)][-1]
    makers = [last] if fresh.shortcut is None else [last, fresh.shortcut]
    for parameter in (one for maker in makers for one in maker.parameters()):
        nn.init.zeros_(parameter)
    return fresh


def _joined(first: Rows, second: Rows) -> Rows:
    """Put rows together."""
    weights: Sequence[Tensor | None] = (first.weight, second.weight)
    known = [weight for weight in weights if weight is not None]
    return Rows(
        x=torch.cat([first.x, second.x]),
        y=torch.cat([first.y, second.y]),
        weight=torch.cat(known) if len(known) == 2 else None,
    )


def _row_losses(outputs: Tensor, targets: Tensor) -> Tensor:
    """Compute the loss of each row, (members, rows), of outputs (members, rows, outputs)."""
    if targets.is_floating_point():
        return (outputs - targets).square().mean(2)
    flat = F.cross_entropy(outputs.flatten(0, 1), targets.flatten(), reduction="none")
    return flat.view(targets.shape)
