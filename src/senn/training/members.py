"""Networks of the size that a run has found, trained beside its network, so that their predictions can be averaged.

Each member is trained from scratch, all of them in one tensor. Where the run has drawn its validation rows, every other
member holds out other rows: together they are trained on all rows (cross-fitting), and each row has a prediction by a
member that has never seen it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn import functional as F

from senn.nn import MLP
from senn.training.batches import Inputs, Rows
from senn.training.builders import build_optimizer, loss_function
from senn.training.member_plan import MemberPlan
from senn.training.metric import as_metric
from senn.training.train_config import Task, TrainConfig
from senn.training.validation import monitored, output_scale, rank

SMOOTHING = 0.03
"""Share of a class target that is spread over all classes. Chosen among 0, .02, .03, .05 and .1 on tuning rows."""

TIMED = 20
"""Steps after which the number of epochs is settled where time is limited."""


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
    clock: Callable[[], float],
    seconds: float | None = None,
    fewest: int = 1,
) -> TrainedMembers | None:
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
        clock: says what time it is, in seconds since any moment.
        seconds: most that they may take; None for no limit. With less than the epochs need, fewer are made.
        fewest: epochs for which there must be time.

    Returns:
        The networks; None where there is no time for so many epochs.
    """
    began = clock()
    if seconds is not None and seconds <= 0:
        return None
    together = _Members(model, rows, held_out, plan, task=task, recipe=recipe)
    time_limit = None if seconds is None else _TimeLimit(began + seconds, clock)
    steps, step, epoch = epochs * batches, 0, 0
    while epoch < epochs:
        for part in torch.tensor_split(together.orders(epoch), batches, dim=1):
            together.step(part, recipe.lr_factor(step / steps))
            step += 1
            pause()
            if time_limit is not None and step == TIMED:
                epochs = min(epochs, time_limit.affordable(together, step=step, batches=batches))
                if epochs < fewest:
                    return None
                steps = epochs * batches
        together.end_epoch()
        epoch += 1
        if time_limit is not None and time_limit.is_over:
            break
    return together.result()


class _TimeLimit:
    """Says how many epochs there is time for.

    Args:
        end: moment at which the networks must be there.
        clock: says what time it is.
    """

    def __init__(self, end: float, clock: Callable[[], float]) -> None:
        self.clock, self.end, self.began = clock, end, clock()

    def affordable(self, together: _Members, *, step: int, batches: int) -> int:
        """Return the number of epochs of so many batches, those that the steps so far belong to included."""
        now = self.clock()
        pace = (now - self.began) / step
        together.validation_outputs()
        validation = self.clock() - now
        return (
            step + int((self.end - now - validation) / (pace + validation / batches))
        ) // batches

    @property
    def is_over(self) -> bool:
        """True once the time is over."""
        return self.clock() >= self.end


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
        self.shares = class_shares(self.rows, model) if task == "classification" else None
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
        losses = self._losses(self.outputs(self.rows.x[order], training=True), self.rows.y[order])
        if self.rows.weight is not None:
            losses = losses * self.rows.weight[order]
        self.optimizer.zero_grad()
        # The sum over members: each has the gradient of its own mean.
        losses.mean(1).sum().backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()

    def _losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Compute the loss of each row as it is trained on: of classes, with label smoothing."""
        losses = _row_losses(outputs, targets)
        if self.shares is None:
            return losses
        # Szegedy et al. 2016, arXiv 1512.00567, section 7. Spread as the classes are, so that a rare one stays rare.
        spread = -(outputs.log_softmax(2) @ self.shares)
        return torch.lerp(losses, spread, SMOOTHING)

    @torch.no_grad()
    def end_epoch(self) -> None:
        """Keep the weights of each member that is better on its validation rows than before."""
        for number, outputs in enumerate(self.validation_outputs()):
            fold = self.folds[number]
            found = None if fold is None else rank(self._figures(outputs, fold), self.monitor)
            former = self.best[number]
            if found is None or former is None or found < former:
                self.best[number] = found
                for name, kept in self.kept.items():
                    kept[number] = self.parameters[name][number]

    @torch.no_grad()
    def validation_outputs(self) -> list[Tensor]:
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


def class_shares(rows: Rows, model: MLP) -> Tensor:
    """Return the share of the weight that each class has among some rows, (outputs,).

    Args:
        rows: rows with classes.
        model: network whose outputs they are.
    """
    outputs = [one for one in model.body.modules() if isinstance(one, nn.Linear)][-1].out_features
    totals = torch.bincount(rows.y, weights=rows.weight, minlength=outputs).to(rows.x)
    return totals / totals.sum()


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
