"""The state of a run between two steps: all that decides what follows, so that nothing is lost by a break."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Protocol

import torch

from senn.errors import SennError
from senn.persistence.state import State, load_model_state, model_state
from senn.ranks import Ranks
from senn.training.recipe import Plan
from senn.training.run import Record

if TYPE_CHECKING:
    from senn.training.loop import Training


class Keeper(Protocol):
    """Keeps a run's state where a kill can't reach it.

    Attributes:
        state: where the run goes on; None for one that begins.
        ranks: processes that make the same run together.
    """

    state: Mapping[str, Any] | None
    ranks: Ranks

    def record(self, record: Record) -> None:
        """Hear of one more record of the history."""

    def restart(self, history: list[Record]) -> None:
        """Hear with which history the run goes on."""

    def due(self) -> bool:
        """Whether the state is wanted now: asked between steps."""

    @property
    def stopping(self) -> bool:
        """Whether the run is to end, with its state kept."""

    def save(self, state: State) -> None:
        """Keep the state.

        Raises:
            SennError, OSError: it can't be kept; what was kept before still is.
        """

    def end(self) -> None:
        """Hear that training has come to its end, so that nothing is to be interrupted any more."""


def captured(run: Training) -> State:
    """The state of a run, as nested plain values and tensors that training doesn't change any more.

    Raises:
        SennError: a parameter isn't finite: that is no state to go on from.
    """
    return {
        "step": run.step,
        "epoch": run.epoch,
        "at": run.at,
        "losses": torch.stack(run.losses) if run.losses else None,
        "before_order": run.before_order,
        "generator": run.generator.get_state(),
        "global": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(run.device) if run.device.type == "cuda" else None,
        "plan": asdict(run.plan),
        "reason": run.reason,
        "rounds": run.rounds.state_dict(),
        "seconds": time.perf_counter() - run.started,
        "history": [*run.history],
        "best": {"model": model_state(run.best.model), **_figures(run)},
        "learner": run.learner.state_dict(),
    }


def _figures(run: Training) -> State:
    return {"epoch": run.best.epoch, "validation": dict(run.best.validation)}


def restore(run: Training, state: Mapping[str, Any]) -> None:
    """Bring a run that has only just been set up to where the state was captured.

    Raises:
        SennError: it isn't the state of such a run.
    """
    try:
        best = copy.deepcopy(run.model)
        load_model_state(best, state["best"]["model"])
        run.learner.load_state_dict(state["learner"])
        run.best = type(run.best)(best, int(state["best"]["epoch"]), dict(state["best"]["validation"]))
        plan = Plan(**state["plan"])
        if plan.batches != run.plan.batches:
            raise SennError(f"this isn't the state of such a run: its epochs have {plan.batches} steps")
        run.plan, run.reason = plan, str(state["reason"])
        run.rounds.load_state_dict(state["rounds"])
        run.step, run.epoch, run.at = int(state["step"]), int(state["epoch"]), int(state["at"])
        losses = state["losses"]
        run.losses = [] if losses is None else [*losses.to(run.device)]
        run.history = [dict(record) for record in state["history"]]
        grown = [record for record in run.history if record["event"] == "growth"]
        run.growth = [*zip(run.learner.events, grown, strict=True)]
        run.before_order = state["before_order"]
        run.generator.set_state(state["generator"])
        torch.set_rng_state(state["global"])
        if state["cuda"] is not None and run.device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda"], run.device)
        run.started = time.perf_counter() - float(state["seconds"])
    except SennError:
        raise
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise SennError(f"this isn't the state of such a run: {type(error).__name__}: {error}") from error
