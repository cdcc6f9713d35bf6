"""Copies of a model that hold a session's candidates, made anew where the model or the candidates have changed."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from senn.candidates.candidate_set import CandidateSet
from senn.graph import DependencyGraph
from senn.pytree import Inputs
from senn.scoring.dormant_copy import DormantCopy, digest
from senn.scoring.stream_rows import StreamCopy


class CandidateCopies:
    """The copies of one session.

    Args:
        model: the model, which changes in training.
        graph: what in it can change.
    """

    def __init__(self, model: nn.Module, graph: DependencyGraph) -> None:
        self.model, self.graph = model, graph
        self._candidates: CandidateSet | None = None
        self._dormant: DormantCopy | None = None
        self._streams: StreamCopy | None = None

    def dormant(self, candidates: CandidateSet, probe: Callable[[], Inputs]) -> DormantCopy:
        """The copy in which all candidate units of groups without norms are dormant.

        Args:
            candidates: the candidates.
            probe: gives samples to calibrate on, where it has to be made.
        """
        self._forget(candidates)
        # A digest costs far less than a copy, and sees a step of any optimizer.
        if self._dormant is None or self._dormant.digest != digest(self.model):
            self._dormant = DormantCopy.of(self.model, self.graph, candidates, probe)
        return self._dormant

    def streams(self, candidates: CandidateSet) -> StreamCopy:
        """The copy whose streams are wider by all candidate units.

        Args:
            candidates: the candidates.
        """
        self._forget(candidates)
        if self._streams is None or self._streams.digest != digest(self.model):
            self._streams = StreamCopy.of(self.model, self.graph, candidates.streams)
        return self._streams

    def _forget(self, candidates: CandidateSet) -> None:
        if self._candidates is not candidates:
            self._candidates, self._dormant, self._streams = candidates, None, None
