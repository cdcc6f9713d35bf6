"""Proof of insertion points: a copy of the model with a layer in each place must run, and compute the same.

A layer goes into a `Sequential` under the name of the linear map that it is put before. A forward pass that reads the
map's attributes (`hidden.to(self.out.weight.dtype)`) doesn't find them there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from senn.graph.forward_passes import ForwardPass, failure
from senn.graph.types import DependencyGraph, InsertionPoint, Refusal
from senn.surgery import Insert, apply_moves
from senn.surgery.trials import TrialRun, is_close

NO_LAYER = "no layer can stand before it"
"""Beginning of the reasons of refused insertion points."""


def verify_insertions(
    model: nn.Module, passes: Sequence[ForwardPass], graph: DependencyGraph
) -> DependencyGraph:
    """Keep only the insertion points that a copy with layers there confirms; refuse the others by name.

    Args:
        model: a copy, which is as before afterwards.
        passes: how it is run.
        graph: as its traced forward passes show it.

    Returns:
        The graph with fewer insertion points and more refusals.
    """
    if not graph.insertion_points:
        return graph
    # Forwards only: an empty layer gives back the very tensor that it is given, which autograd doesn't notice.
    before = [TrialRun.forwards(model, one) for one in passes]
    refused = _bisect(model, before, graph.insertion_points)
    places = {refusal.place for refusal in refused}
    points = tuple(point for point in graph.insertion_points if point.module not in places)
    return replace(graph, insertion_points=points, refusals=(*graph.refusals, *refused))


def _bisect(
    trial: nn.Module, before: Sequence[TrialRun], points: Sequence[InsertionPoint]
) -> list[Refusal]:
    """Return refusals of the points that fail: by halves, since one run confirms all points of most models."""
    reason = _objection(trial, before, points)
    if reason is None:
        return []
    if len(points) == 1:
        place = points[0].module
        return [Refusal(place=place, reason=f"{NO_LAYER}: {reason}")]
    half = len(points) // 2
    return _bisect(trial, before, points[:half]) + _bisect(trial, before, points[half:])


def _objection(
    trial: nn.Module, before: Sequence[TrialRun], points: Sequence[InsertionPoint]
) -> str | None:
    """Say why the model doesn't run with layers in these places, or computes something else; None if it does."""
    # Empty layers: what is tried is the place, not what a layer computes.
    moves = [Insert(point.module, nn.Identity()) for point in points]
    graph = DependencyGraph(linear_maps=(), groups=(), insertion_points=tuple(points))
    log = apply_moves(trial, moves, graph)
    try:
        for old in before:
            try:
                new = old.again(trial)
            except Exception as error:
                return f"the forward pass fails with one there ({failure(error)})"
            if not is_close(trial, old, new):
                return "the outputs are others with an empty one there"
    finally:
        log.undo()
    return None
