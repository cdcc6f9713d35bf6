"""What of a run is saved between two steps, and how it goes on from there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from senn._records import reading_state
from senn.checkpoint.model_state import State
from senn.errors import SennError
from senn.schedule import GrowthSchedule
from senn.training.round_records import RoundRecorder
from senn.training.run_state import Checkpointer, RunState
from senn.training.threads import RunThreads
from senn.training.train_step import TrainStep


class ResumableRun:
    """Part of a run that is saved, stopped and resumed.

    Attributes:
        state: position of the run.
        learner: takes the steps and holds the rounds.
    """

    state: RunState
    learner: TrainStep
    rounds: GrowthSchedule
    recorder: RoundRecorder
    threads: RunThreads
    generator: torch.Generator
    checkpointer: Checkpointer | None
    device: torch.device
    _before_round: State | None = None

    def pause(self, *, saves: bool = True) -> None:
        """Save the state between two steps if that is due, and stop the run if that is wanted.

        Args:
            saves: False where the state is what it was: then it is saved if the run stops alone.

        Raises:
            KeyboardInterrupt: the run is to stop; its state is saved.
        """
        if self.checkpointer is None:
            return
        # Of several processes all must stop after the same step: they know from the step itself.
        stopping = (
            self.checkpointer.stopping
            if self.learner.communicator.is_single
            else self.learner.stopping
        )
        if stopping or (saves and self.checkpointer.is_due()):
            self.keep()
            if stopping:
                raise KeyboardInterrupt

    def state_dict(self) -> State:
        """Return all that decides what follows: nested plain values and tensors that training doesn't change any more.

        Raises:
            SennError: a parameter isn't finite, so there is nothing to go on from.
        """
        return {
            **self.state.state_dict(),
            "generator": self.generator.get_state(),
            "global": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
            "rounds": self.rounds.state_dict(),
            "learner": self.learner.state_dict(),
            "threads": self.threads.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken; for a run that has only just been set up.

        Raises:
            SennError: it isn't the state of such a run.
        """
        with reading_state("this isn't the state of such a run"):
            self.learner.load_state_dict(state["learner"])
            self.state.load_state_dict(state, self.device)
            self.rounds.load_state_dict(state["rounds"])
            self.recorder.resume(self.state.history)
            self.threads.load_state_dict(state.get("threads"), self.state.step)
            # Random states last, since what comes before may draw.
            self.generator.set_state(state["generator"])
            torch.set_rng_state(state["global"])
            if state["cuda"] is not None and self.device.type == "cuda":
                torch.cuda.set_rng_state(state["cuda"], self.device)

    def keep(self, state: State | None = None) -> None:
        """Save a state, by default the current one; training goes on if that fails."""
        assert self.checkpointer is not None
        try:
            self.checkpointer.save(state or self.state_dict())
        except (SennError, OSError) as error:
            self.tell_fault(f"no checkpoint was written: {error}")

    def tell_fault(self, text: str) -> None:
        """Record what went wrong and was left out."""
        raise NotImplementedError
