"""One training step, and one round of growth, of a network."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, get_swa_multi_avg_fn

from senn._records import reading_state
from senn.checkpoint.model_state import State, load_model_state, model_state
from senn.checkpoint.optimizer_names import load_optimizer_state, optimizer_state
from senn.collectives import Communicator
from senn.errors import UnsupportedError
from senn.events import GrowthEvent, GrowthRound
from senn.grower import Grower
from senn.optim import NaturalGradient
from senn.training.builders import build_grower, build_optimizer, loss_function, mean_loss
from senn.training.data_parallel import joint_gradient
from senn.training.train_config import Task, TrainConfig
from senn.training.train_result import architecture, layer_names

_Tensors = tuple[Tensor, ...] | list[Tensor]
Batch = tuple[Tensor, Tensor] | tuple[Tensor, Tensor, Tensor]


class TrainStep:
    """Takes optimizer steps with a network and lets it grow.

    Args:
        model: the network, in training mode from now on.
        recipe: optimizer, averaging and growth.
        task: `classification` or `regression`; decides on the loss.
        samples: number of training rows, for the price of a parameter.
        communicator: processes that take the same steps together, each on its part of a batch that all of them have;
            None for this one alone.

    Attributes:
        averaged: average of the weights, or None.
        stopping: True once one of several processes has asked for an end; all of them learn it in the same step.

    Raises:
        SennError: the optimizer or the policy is unknown.
        UnsupportedError: several processes with the natural gradient.
    """

    def __init__(
        self,
        model: nn.Module,
        recipe: TrainConfig,
        task: Task,
        samples: int,
        communicator: Communicator | None = None,
    ) -> None:
        self.communicator = communicator if communicator is not None else Communicator()
        self.stopping = False
        self.model = model.train()
        self._loss = loss_function(task)
        self.optimizer = build_optimizer(model, recipe, self._loss)
        self._natural = self.optimizer if isinstance(self.optimizer, NaturalGradient) else None
        if self._natural is not None and not self.communicator.is_single:
            raise UnsupportedError(
                "steps of natural-gradient are taken by one process: choose another optimizer"
            )
        # The schedule scales each group's own rate; groups may have different ones.
        self._peak = [group["lr"] for group in self.optimizer.param_groups]
        self.averaged = _averaged(model, recipe)
        self._grower: Grower | None = None
        if recipe.grow:
            averaged = () if self.averaged is None else (self.averaged,)
            self._grower = build_grower(
                model,
                self.optimizer,
                recipe,
                loss=self._loss,
                averaged=averaged,
                communicator=self.communicator,
            )
        self.samples = samples

    @property
    def samples(self) -> int:
        """Number of training rows, for the price of a parameter."""
        return self._samples

    @samples.setter
    def samples(self, samples: int) -> None:
        self._samples = samples
        if self._grower is not None:
            self._grower.samples = samples or None  # 0 before any row was seen

    def set_lr(self, factor: float) -> None:
        """Set the learning rate of every parameter group to a fraction of its peak."""
        for group, peak in zip(self.optimizer.param_groups, self._peak, strict=True):
            group["lr"] = peak * factor

    def step(
        self, x: Tensor, y: Tensor, weight: Tensor | None = None, *, stop: bool = False
    ) -> Tensor:
        """Take one optimizer step on a batch.

        Args:
            x: (rows, ...) inputs; with several processes all of them have the whole batch.
            y: (rows,) classes, or (rows, k) numbers.
            weight: (rows,) with mean 1; None for equal weights.
            stop: True to ask all processes for an end; they are `stopping` after the step.

        Returns:
            Loss before the step, a detached scalar.

        Raises:
            DivergenceError: the natural gradient is not finite; with other optimizers the loss itself says so.
        """
        if self._natural is not None:
            return torch.tensor(self._natural.step(x, y, weight))
        # A tenth of the cost of zero_grad, which small networks feel.
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None
        if self.communicator.is_single:
            loss = self.loss(self.model(x), y, weight)
            loss.backward()  # type: ignore[no-untyped-call]
        else:
            loss = self._joint_step(x, y, weight, stop)
        self.optimizer.step()
        return loss.detach()

    def _joint_step(self, x: Tensor, y: Tensor, weight: Tensor | None, stop: bool) -> Tensor:
        """Compute the loss of a batch and its gradient together with the other processes."""

        def local_loss(part: slice) -> Tensor:
            return self.loss(self.model(x[part]), y[part], None if weight is None else weight[part])

        loss, self.stopping = joint_gradient(
            self.model, local_loss, rows=len(x), communicator=self.communicator, stop=stop
        )
        return loss

    def loss(self, output: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        """Compute the mean loss of a batch.

        Args:
            output: (rows, outputs).
            target: (rows,) classes, or (rows, outputs) numbers.
            weight: (rows,) with mean 1; None for equal weights.

        Returns:
            A scalar.
        """
        return mean_loss(self._loss, output, target, weight)

    @torch.no_grad()
    def is_sound(self, batch: Batch) -> bool:
        """Return True if the loss of the network itself is finite on a batch."""
        self.model.eval()
        loss = self.loss(self.model(batch[0]), *batch[1:])
        self.model.train()
        return bool(loss.isfinite())

    def grow(
        self, batches: list[Batch], moves: Sequence[str], validation: Batch | None = None
    ) -> list[GrowthEvent]:
        """Run one round of growth.

        Args:
            batches: what candidates are scored on; with several processes all of them have all rows.
            moves: moves that may happen.
            validation: what removals are verified on as well; None for none.

        Returns:
            Changes of size; none for a fixed network.

        Raises:
            SurgeryError: a change failed its verification; everything is as it was.
            DivergenceError: a loss or a covariance is not finite.
        """
        if self._grower is None:
            return []
        if not self.communicator.is_single:
            # The grower joins the parts of all processes.
            batches = [self._local_part(batch) for batch in batches]
            validation = None if validation is None else self._local_part(validation)
        return self._grower.grow(batches, moves, validation)

    def _local_part(self, batch: Batch) -> Batch:
        part: Batch = tuple(x[self.communicator.local_slice(len(x))] for x in batch)  # type: ignore[assignment]
        return part

    @property
    def moves(self) -> tuple[str, ...]:
        """Moves that the network may make; none for a fixed one."""
        return () if self._grower is None else tuple(self._grower.moves)

    @property
    def last_round(self) -> GrowthRound | None:
        """Last round, with all candidates and the decisions on them; None before the first."""
        return None if self._grower is None else self._grower.last_round

    @property
    def rejections(self) -> list[str]:
        """Removals that failed their verification so far and were not done, one sentence for each round."""
        return [] if self._grower is None else self._grower.rejections

    @property
    def architecture(self) -> tuple[int, ...]:
        """Widths of the model's hidden layers, as they go into the records."""
        return architecture(self.model)

    @property
    def layer_names(self) -> tuple[str, ...]:
        """Names of the layers that have these widths."""
        return layer_names(self.model)

    @property
    def events(self) -> list[GrowthEvent]:
        """All changes of size so far."""
        return [] if self._grower is None else self._grower.events

    def state_dict(self) -> State:
        """Return all that steps and rounds change: nested plain values and tensors, copies.

        Raises:
            SennError: a parameter isn't finite.
        """
        averaged = self.averaged
        return {
            "model": model_state(self.model),
            # torch's own state_dict shares its tensors with the optimizer.
            "optimizer": copy.deepcopy(optimizer_state(self.optimizer, self.model)),
            "averaged": None if averaged is None else model_state(averaged.module),
            "n_averaged": 0 if averaged is None else int(averaged.n_averaged),
            "grower": None if self._grower is None else self._grower.state_dict(),
            "samples": self.samples,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken; the network may still be as small as it began.

        Raises:
            SennError: it isn't the state of such a training.
        """
        with reading_state("this isn't the state of such a training"):
            # The model first: the optimizer's state has the shapes of its parameters.
            load_model_state(self.model, state["model"])
            load_optimizer_state(self.optimizer, self.model, state["optimizer"])
            if self.averaged is not None:
                load_model_state(self.averaged.module, state["averaged"])
                self.averaged.n_averaged.fill_(state["n_averaged"])
            if self._grower is not None:
                self._grower.load_state_dict(state["grower"])
            self.samples = int(state["samples"])

    def update_average(self) -> None:
        """Take the current weights into the average, if there is one."""
        if self.averaged is not None:
            self.averaged.update_parameters(self.model)


def _averaged(model: nn.Module, recipe: TrainConfig) -> AveragedModel | None:
    if recipe.average is None:
        return None
    # With buffers: running statistics of batch norms belong to the weights that they were measured with.
    function = _running_mean
    if recipe.average == "ema":
        function = get_ema_multi_avg_fn(recipe.average_decay)  # type: ignore[no-untyped-call]
    return AveragedModel(model, multi_avg_fn=function, use_buffers=True)


def _running_mean(averaged: _Tensors, current: _Tensors, number: Tensor | int) -> None:
    """Update the mean of all weights so far.

    Counts, such as a batch norm's number of batches, have no mean: the average takes them as they are.
    """
    if averaged[0].is_floating_point():
        get_swa_multi_avg_fn()(averaged, current, number)  # type: ignore[no-untyped-call]
        return
    for old, new in zip(averaged, current, strict=True):
        old.copy_(new)
