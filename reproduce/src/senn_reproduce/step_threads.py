"""The number of threads of an experiment's own loop: it follows the work of a step, as in `senn.training`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from senn.flops import forward_flops
from senn.training.threads import RunThreads
from senn_reproduce.results import Record


class StepThreads:
    """Keeps the number of threads of a run up to date.

    Args:
        threads: of the run.
        model: the network, which grows.
        example: (1, ...) an input.
        rows: rows of a step.
    """

    def __init__(self, threads: RunThreads, model: nn.Module, example: Tensor, rows: int) -> None:
        self._threads, self._model, self._example, self._rows = threads, model, example, rows

    def follow(self, step: int) -> None:
        """Choose again, after the network may have changed size.

        Args:
            step: number of steps taken.
        """
        self._threads.choose(
            lambda: forward_flops(self._model, self._example) * self._rows, self._model, step
        )

    @property
    def record(self) -> list[Record]:
        """Numbers of threads in order, for `results.json`, as in `senn.training.threads.RunThreads`."""
        return [dict(change) for change in self._threads.changes]


@contextmanager
def step_threads(model: nn.Module, example: Tensor, rows: int) -> Iterator[StepThreads]:
    """Context in which steps are computed by as many threads as their work deserves.

    Args:
        model: the network as it begins.
        example: (1, ...) an input.
        rows: rows of a step.
    """
    with RunThreads(None, example.device) as threads:
        following = StepThreads(threads, model, example, rows)
        following.follow(0)
        yield following
