"""A net with its optimizer and what grows it: single steps and single rounds."""

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

# Learning rates that suit small nets on standardised tables, by optimizer; others start from torch's own default.
_LR = {"adam": 5e-3, "adamw": 4e-3, "nadam": 5e-3, "radam": 5e-3, "rmsprop": 2e-3, "sgd": 0.1}
# These need a closure, sparse gradients or matrices only.
_UNSUITED = {"lbfgs", "sparseadam", "muon"}
NATURAL_GRADIENT = "natural-gradient"


def loss_function(task: Task) -> Callable[..., Tensor]:
    """The loss of a task, as in `torch.nn.functional`: mean over samples, `reduction` as a keyword."""
    return F.cross_entropy if task == "classification" else F.mse_loss


def build_model(features: int, outputs: int, recipe: TrainConfig) -> MLP:
    """A fresh net whose output weights are zero, so that it starts from the mean prediction."""
    model = MLP(features, recipe.hidden, outputs, activation=recipe.activation, shortcut=recipe.shortcut)
    last = [module for module in model.body.modules() if isinstance(module, nn.Linear)][-1]
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return model


def build_optimizer(model: nn.Module, recipe: TrainConfig, loss: Callable[..., Tensor]) -> torch.optim.Optimizer:
    """The optimizer a recipe names, over the parameters of `model`."""
    name = recipe.optimizer.lower().replace("_", "-")
    options: dict[str, Any] = dict(recipe.optimizer_options)
    for key, value in (("lr", recipe.lr or _LR.get(name)), ("weight_decay", recipe.weight_decay)):
        if value is not None:
            options[key] = value
    try:
        if name == NATURAL_GRADIENT:
            return NaturalGradient(model, loss=loss, **options)
        cls = _optimizer_class(name)
        accepted = inspect.signature(cls).parameters
        defaults: dict[str, Any] = {"betas": (0.9, 0.99), "fused": True, "momentum": 0.9 if name == "sgd" else 0.0}
        if name == "adamw":
            defaults["weight_decay"] = 0.15
        defaults = {key: value for key, value in defaults.items() if key in accepted and key not in options}
        return cls(model.parameters(), **defaults, **options)
    except (TypeError, ValueError) as error:
        if isinstance(error, SennError):
            raise
        raise SennError(f"The optimizer {recipe.optimizer!r} cannot be made: {error}.") from error


def _optimizer_class(name: str) -> type[torch.optim.Optimizer]:
    known = {
        key.lower(): value
        for key, value in vars(torch.optim).items()
        if isinstance(value, type) and issubclass(value, torch.optim.Optimizer) and value is not torch.optim.Optimizer
    }
    if name in _UNSUITED:
        raise UnsupportedError(
            f"The optimizer {name!r} cannot be used here: it needs other steps than this loop makes."
        )
    if name not in known:
        raise SennError(
            f"Unknown optimizer {name!r}; known are {', '.join(sorted(known.keys() - _UNSUITED))}, {NATURAL_GRADIENT}."
        )
    return known[name]


class TrainStep:
    """Takes steps with a net and lets it grow.

    Args:
        model: the net, in training mode from now on.
        recipe: optimizer, averaging and growth.
        task: decides on the loss.
        samples: rows that training has at hand (the price of a parameter depends on it).
        communicator: processes that take the same steps together, each on its part of a batch that all of them have; by
            default this one alone.

    Attributes:
        averaged: average of the weights, or None.
        stopping: whether one of several processes has asked for an end, as all of them know since the last step.
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
            raise UnsupportedError("Steps of natural-gradient are taken by one process: choose another optimizer.")
        self._peak = [group["lr"] for group in self.optimizer.param_groups]
        self.averaged = _averaged(model, recipe)
        self._grower = self._build_grower(recipe) if recipe.grow else None
        self.samples = samples

    def _build_grower(self, recipe: TrainConfig) -> Grower:
        return Grower(
            self.model,
            self.optimizer,
            loss=self._loss,
            policy=resolve_policy(recipe.policy),
            max_params=recipe.max_params,
            max_width=recipe.max_width,
            round_to=recipe.round_to,
            moves=recipe.moves,
            candidate_config=CandidateConfig(units=recipe.candidates_per_layer),
            averaged=() if self.averaged is None else (self.averaged,),
            seed=recipe.seed,
            communicator=self.communicator,
        )

    @property
    def samples(self) -> int:
        """Rows that training has at hand."""
        return self._samples

    @samples.setter
    def samples(self, samples: int) -> None:
        self._samples = samples
        if self._grower is not None:
            self._grower.samples = samples

    def set_lr(self, factor: float) -> None:
        """Set every group's learning rate to a fraction of its peak."""
        for group, peak in zip(self.optimizer.param_groups, self._peak, strict=True):
            group["lr"] = peak * factor

    def step(self, x: Tensor, y: Tensor, weight: Tensor | None = None, *, stop: bool = False) -> Tensor:
        """One step on a batch: (rows, features), targets, (rows,) weights. Returns the loss before it, detached.

        With several processes all have the whole batch, and `stop` of one of them makes all of them `stopping`.

        Raises:
            DivergenceError: the natural gradient is not finite; with other optimizers the loss itself says so.
        """
        if self._natural is not None:
            return torch.tensor(self._natural.step(x, y, weight))
        for group in self.optimizer.param_groups:  # a tenth of zero_grad's cost, which small nets feel
            for parameter in group["params"]:
                parameter.grad = None
        if self.communicator.is_single:
            loss = self.loss(self.model(x), y, weight)
            loss.backward()  # type: ignore[no-untyped-call]
        else:
            loss = self._shared(x, y, weight, stop)
        self.optimizer.step()
        return loss.detach()

    def _shared(self, x: Tensor, y: Tensor, weight: Tensor | None, stop: bool) -> Tensor:
        """The loss of a batch and its gradient, of which this process computes its part; one sum over all of them.

        Running statistics of normalisations become the mean of those that the processes have after their parts.
        """
        part = self.communicator.local_slice(len(x))
        share = (part.stop - part.start) / len(x)
        loss = torch.zeros(())
        if share:
            loss = share * self.loss(self.model(x[part]), y[part], None if weight is None else weight[part])
            loss.backward()
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        buffers = [buffer for buffer in self.model.buffers() if buffer.is_floating_point()]
        known = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        known += [buffer * share if share else torch.zeros_like(buffer) for buffer in buffers]  # infinity * 0 is NaN
        loss = loss.detach().to(parameters[0])
        known.append(torch.stack([loss, torch.full_like(loss, float(stop))]))
        *sums, told = self.communicator.all_reduce("take a step", known, meet=False)
        for parameter, gradient in zip(parameters, sums, strict=False):
            parameter.grad = gradient
        for buffer, value in zip(buffers, sums[len(parameters) :], strict=True):
            buffer.copy_(value)
        self.stopping = bool(told[1])
        return told[0]

    def loss(self, output: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        """Mean loss of a batch, samples weighted: a scalar."""
        if weight is None:
            return self._loss(output, target)
        losses = self._loss(output, target, reduction="none")
        return (losses.flatten(1).mean(1) * weight).mean() if losses.dim() > 1 else (losses * weight).mean()

    def grow(self, batches: list[Batch], moves: Sequence[str]) -> list[GrowthEvent]:
        """One round of these moves on a probe; the events, none for a fixed net."""
        if self._grower is None:
            return []
        if not self.communicator.is_single:
            batches = [tuple(x[self.communicator.local_slice(len(x))] for x in batch) for batch in batches]  # type: ignore[misc]
        return self._grower.grow(batches, moves)

    @property
    def last_round(self) -> GrowthRound | None:
        """The last round, with all candidates and what was said of them."""
        return None if self._grower is None else self._grower.last_round

    @property
    def rejections(self) -> list[str]:
        """Removals so far that failed their verification and were not done, one sentence for each round."""
        return [] if self._grower is None else self._grower.rejections

    @property
    def architecture(self) -> tuple[int, ...]:
        """Widths of the model's hidden layers, as its records have them."""
        return architecture(self.model)

    @property
    def events(self) -> list[GrowthEvent]:
        """Every change of size so far."""
        return [] if self._grower is None else self._grower.events

    def state_dict(self) -> State:
        """All that steps and rounds change: nested plain values and tensors, copies.

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
        """Go on where `state_dict` was taken: by a learner of the same recipe, whose net may still be small.

        Raises:
            SennError: it isn't the state of such a learner.
        """
        with reading_state("this isn't the state of such a learner"):
            load_model_state(self.model, state["model"])
            load_optimizer_state(self.optimizer, self.model, state["optimizer"])
            if self.averaged is not None:
                load_model_state(self.averaged.module, state["averaged"])
                self.averaged.n_averaged.fill_(state["n_averaged"])
            if self._grower is not None:
                self._grower.load_state_dict(state["grower"])
            self.samples = int(state["samples"])

    def update_average(self) -> None:
        """Take the weights as they are now into the average."""
        if self.averaged is not None:
            self.averaged.update_parameters(self.model)


def resolve_policy(policy: Policy | str | None) -> Policy:
    """A policy object from an object, a name (`price`, `paper`) or None (price)."""
    named: dict[str, type[PricePolicy] | type[PaperPolicy]] = {"price": PricePolicy, "paper": PaperPolicy}
    if policy is None:
        return PricePolicy()
    if not isinstance(policy, str):
        return policy
    if policy not in named:
        raise SennError(f"Unknown policy {policy!r}; known are {', '.join(sorted(named))}.")
    return named[policy]()


def _averaged(model: nn.Module, recipe: TrainConfig) -> AveragedModel | None:
    if recipe.average is None:
        return None
    function = get_ema_multi_avg_fn(recipe.average_decay) if recipe.average == "ema" else _mean  # type: ignore[no-untyped-call]
    return AveragedModel(model, multi_avg_fn=function, use_buffers=True)


def _mean(averaged: _Tensors, current: _Tensors, number: Tensor | int) -> None:
    """The mean of all weights so far; of counts (a normalisation's batches) there is none, they are as they are now."""
    if averaged[0].is_floating_point():
        get_swa_multi_avg_fn()(averaged, current, number)  # type: ignore[no-untyped-call]
        return
    for old, new in zip(averaged, current, strict=True):
        old.copy_(new)
