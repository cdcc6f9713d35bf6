"""One training step, and one round of growth, of a network."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, get_swa_multi_avg_fn

from senn._records import reading_state
from senn.candidates.candidate_config import CandidateConfig
from senn.checkpoint.model_state import State, load_model_state, model_state
from senn.checkpoint.optimizer_names import load_optimizer_state, optimizer_state
from senn.collectives import Communicator
from senn.errors import SennError, UnsupportedError
from senn.events import GrowthEvent, GrowthRound
from senn.grower import Grower
from senn.nn import MLP
from senn.optim import NaturalGradient
from senn.policies import PaperPolicy, Policy, PricePolicy
from senn.training.train_config import Task, TrainConfig
from senn.training.train_result import architecture

_Tensors = tuple[Tensor, ...] | list[Tensor]
Batch = tuple[Tensor, Tensor] | tuple[Tensor, Tensor, Tensor]

# Learning rates that suit small networks on standardized tables, by optimizer; others keep torch's own default.
_LR = {"adam": 5e-3, "adamw": 4e-3, "nadam": 5e-3, "radam": 5e-3, "rmsprop": 2e-3, "sgd": 0.1}
_ADAMW_WEIGHT_DECAY = 0.15
_BETAS = (0.9, 0.99)
"""Of the Adam family. Runs have about 1,500 steps: torch's 0.999 would average over most of them."""

# These need a closure, sparse gradients or matrices only.
_UNSUITED = {"lbfgs", "sparseadam", "muon"}
NATURAL_GRADIENT = "natural-gradient"


def loss_function(task: Task) -> Callable[..., Tensor]:
    """Return the loss of a task, a function of `torch.nn.functional`: mean over samples, `reduction` as a keyword."""
    return F.cross_entropy if task == "classification" else F.mse_loss


def build_model(features: int, outputs: int, recipe: TrainConfig) -> MLP:
    """Build a fresh network that predicts the mean.

    Args:
        features: number of inputs.
        outputs: number of outputs.
        recipe: widths, activation and shortcut.

    Raises:
        SennError: the activation is unknown.
    """
    model = MLP(features, recipe.hidden, outputs, activation=recipe.activation, shortcut=recipe.shortcut)
    linear = [module for module in model.body.modules() if isinstance(module, nn.Linear)]
    # Output weights of zero, as those of units that grow: with standardized targets the start is the mean prediction,
    # and fixed networks start from the same loss (docs/deficit.md).
    nn.init.zeros_(linear[-1].weight)
    nn.init.zeros_(linear[-1].bias)
    return model


def build_optimizer(model: nn.Module, recipe: TrainConfig, loss: Callable[..., Tensor]) -> torch.optim.Optimizer:
    """Build the optimizer that a configuration names.

    Args:
        model: its parameters are optimized.
        recipe: name and options of the optimizer.
        loss: training loss, for the natural gradient.

    Raises:
        SennError: the optimizer is unknown, or doesn't take the options.
        UnsupportedError: the optimizer needs other steps than those of a `TrainStep`.
    """
    name = recipe.optimizer.lower().replace("_", "-")
    options: dict[str, Any] = dict(recipe.optimizer_options)
    lr = recipe.lr or _LR.get(name)
    if lr is not None:
        options["lr"] = lr
    if recipe.weight_decay is not None:
        options["weight_decay"] = recipe.weight_decay
    try:
        if name == NATURAL_GRADIENT:
            return NaturalGradient(model, loss=loss, **options)
        cls = _optimizer_class(name)
        return cls(model.parameters(), **{**_default_options(name, cls), **options})
    except (TypeError, ValueError) as error:
        if isinstance(error, SennError):
            raise
        raise SennError(f"the optimizer {recipe.optimizer!r} cannot be made: {error}") from error


def _default_options(name: str, cls: type[torch.optim.Optimizer]) -> dict[str, Any]:
    """Choose options, where they differ from torch's, among those that the optimizer takes."""
    defaults: dict[str, Any] = {"betas": _BETAS, "fused": True, "momentum": 0.9 if name == "sgd" else 0.0}
    if name == "adamw":
        defaults["weight_decay"] = _ADAMW_WEIGHT_DECAY
    accepted = inspect.signature(cls).parameters
    return {key: value for key, value in defaults.items() if key in accepted}


def _optimizer_class(name: str) -> type[torch.optim.Optimizer]:
    base = torch.optim.Optimizer
    known = {
        key.lower(): value
        for key, value in vars(torch.optim).items()
        if isinstance(value, type) and issubclass(value, base) and value is not base
    }
    if name in _UNSUITED:
        raise UnsupportedError(f"the optimizer {name!r} cannot be used here: it needs other steps than this loop makes")
    if name not in known:
        names = ", ".join([*sorted(known.keys() - _UNSUITED), NATURAL_GRADIENT])
        raise SennError(f"unknown optimizer {name!r}; known are {names}")
    return known[name]


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
        self, model: nn.Module, recipe: TrainConfig, task: Task, samples: int, communicator: Communicator | None = None
    ) -> None:
        self.communicator = communicator if communicator is not None else Communicator()
        self.stopping = False
        self.model = model.train()
        self._loss = loss_function(task)
        self.optimizer = build_optimizer(model, recipe, self._loss)
        self._natural = self.optimizer if isinstance(self.optimizer, NaturalGradient) else None
        if self._natural is not None and not self.communicator.is_single:
            raise UnsupportedError("steps of natural-gradient are taken by one process: choose another optimizer")
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
        """Number of training rows."""
        return self._samples

    @samples.setter
    def samples(self, samples: int) -> None:
        self._samples = samples
        if self._grower is not None:
            self._grower.samples = samples

    def set_lr(self, factor: float) -> None:
        """Set the learning rate of every parameter group to a fraction of its peak."""
        for group, peak in zip(self.optimizer.param_groups, self._peak, strict=True):
            group["lr"] = peak * factor

    def step(self, x: Tensor, y: Tensor, weight: Tensor | None = None, *, stop: bool = False) -> Tensor:
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
            loss = self._joint_loss(x, y, weight, stop)
        self.optimizer.step()
        return loss.detach()

    def _joint_loss(self, x: Tensor, y: Tensor, weight: Tensor | None, stop: bool) -> Tensor:
        """Compute the loss of a batch and its gradient, each process on its part, with one sum over all of them.

        Running statistics of batch norms become the mean of those that the processes have after their parts.
        """
        part = self.communicator.local_slice(len(x))
        share = (part.stop - part.start) / len(x)
        loss = torch.zeros(())
        if share:
            weight_part = None if weight is None else weight[part]
            loss = share * self.loss(self.model(x[part]), y[part], weight_part)
            loss.backward()
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        buffers = [buffer for buffer in self.model.buffers() if buffer.is_floating_point()]
        summands = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        # Not buffer * 0 for an empty part: infinity * 0 is NaN.
        summands += [buffer * share if share else torch.zeros_like(buffer) for buffer in buffers]
        # The loss and the wish to stop go along, since each sum costs a round trip.
        loss = loss.detach().to(parameters[0])
        summands.append(torch.stack([loss, torch.full_like(loss, float(stop))]))
        *sums, loss_and_stop = self.communicator.all_reduce("take a step", summands, meet=False)
        for parameter, gradient in zip(parameters, sums, strict=False):
            parameter.grad = gradient
        for buffer, value in zip(buffers, sums[len(parameters) :], strict=True):
            buffer.copy_(value)
        self.stopping = bool(loss_and_stop[1])
        return loss_and_stop[0]

    def loss(self, output: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        """Compute the mean loss of a batch.

        Args:
            output: (rows, outputs).
            target: (rows,) classes, or (rows, outputs) numbers.
            weight: (rows,) with mean 1; None for equal weights.

        Returns:
            A scalar.
        """
        if weight is None:
            return self._loss(output, target)
        losses = self._loss(output, target, reduction="none")
        per_row = losses.flatten(1).mean(1) if losses.dim() > 1 else losses
        return (per_row * weight).mean()

    def grow(self, batches: list[Batch], moves: Sequence[str]) -> list[GrowthEvent]:
        """Run one round of growth.

        Args:
            batches: what candidates are scored on; with several processes all of them have all rows.
            moves: moves that may happen.

        Returns:
            Changes of size; none for a fixed network.

        Raises:
            SurgeryError: a change failed its verification; everything is as it was.
            DivergenceError: a loss or a covariance is not finite.
        """
        if self._grower is None:
            return []
        if not self.communicator.is_single:
            batches = [self._local_part(batch) for batch in batches]
        return self._grower.grow(batches, moves)

    def _local_part(self, batch: Batch) -> Batch:
        part: Batch = tuple(x[self.communicator.local_slice(len(x))] for x in batch)  # type: ignore[assignment]
        return part

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


def build_grower(model: nn.Module, optimizer: torch.optim.Optimizer, recipe: TrainConfig, **arguments: Any) -> Grower:
    """Build the grower that a configuration describes.

    Args:
        model: the model.
        optimizer: holds its parameters.
        recipe: policy, budgets, moves, candidates and seed.
        arguments: further keyword arguments of `Grower`, which don't depend on the configuration.

    Raises:
        SennError: an argument is out of range, or the optimizer doesn't hold the model's parameters.
    """
    return Grower(
        model,
        optimizer,
        policy=resolve_policy(recipe.policy),
        max_params=recipe.max_params,
        max_width=recipe.max_width,
        round_to=recipe.round_to,
        moves=recipe.moves,
        candidate_config=CandidateConfig(units=recipe.candidates_per_layer),
        seed=recipe.seed,
        **arguments,
    )


def resolve_policy(policy: Policy | str | None) -> Policy:
    """Return the policy that a setting means: an object, a name (`price`, `paper`), or None for the price policy.

    Raises:
        SennError: no policy has that name.
    """
    named: dict[str, type[PricePolicy] | type[PaperPolicy]] = {"price": PricePolicy, "paper": PaperPolicy}
    if policy is None:
        return PricePolicy()
    if not isinstance(policy, str):
        return policy
    if policy not in named:
        raise SennError(f"unknown policy {policy!r}; known are {', '.join(sorted(named))}")
    return named[policy]()


def _averaged(model: nn.Module, recipe: TrainConfig) -> AveragedModel | None:
    if recipe.average is None:
        return None
    function = get_ema_multi_avg_fn(recipe.average_decay) if recipe.average == "ema" else _running_mean  # type: ignore[no-untyped-call]
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
