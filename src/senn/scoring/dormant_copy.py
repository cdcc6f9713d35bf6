"""A copy of the model in which all candidate units are dormant: it computes the same function."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from senn.candidates.candidate_set import CandidateSet
from senn.graph import DependencyGraph
from senn.graph.model_copy import copy_model
from senn.kfac.batch_layout import BatchLayout
from senn.kfac.capture import labels, layer_inputs, layout_of
from senn.kfac.layer_inputs import LayerInput
from senn.kfac.recorder import LinearCall, forward, record_linear_calls
from senn.preserve import preserve_model_state
from senn.pytree import Inputs, Output
from senn.surgery import apply_moves
from senn.surgery.outputs import model_digest


@dataclass(frozen=True, eq=False)
class DormantCopy:
    """Widened copies of a model.

    Where the units of a group are locations to a map (channels, to one that mixes tokens), candidate units would be
    further locations, without a gradient. Such maps are read in a copy in which that group stays as it is.

    Attributes:
        models: copies, by the names of the groups that aren't widened.
        maps: for each copy, names of the maps that are read there.
        digest: digest of the numbers of the model that they were copied from.
    """

    models: Mapping[tuple[str, ...], nn.Module]
    maps: Mapping[tuple[str, ...], set[str]]
    digest: list[int]

    @classmethod
    def of(
        cls,
        model: nn.Module,
        graph: DependencyGraph,
        candidate_set: CandidateSet,
        probe: Callable[[], Inputs],
    ) -> DormantCopy:
        """Copy a model and widen it by all candidate units.

        Args:
            model: the model, which stays as it is.
            graph: what in it can change.
            candidate_set: the candidates.
            probe: gives the samples from which new BatchNorm channels take their statistics; called only if there are
                any, since several processes have to gather them.
        """
        maps: dict[tuple[str, ...], set[str]] = {}
        for one in graph.linear_maps:
            kept = tuple(name for name in one.located_in if name in candidate_set.widen)
            if one.has_factors:
                maps.setdefault(kept, set()).add(one.name)
        # BatchNorm's new channels need running statistics, which only data has.
        has_statistics = any(
            getattr(module, "running_mean", None) is not None for module in model.modules()
        )
        samples = probe() if has_statistics else None
        models = {}
        for kept in maps:
            moves = [move for name, move in candidate_set.widen.items() if name not in kept]
            models[kept] = copy_model(model)
            apply_moves(models[kept], moves, graph, probe=samples)
        return cls(models, maps, digest(model))

    def layer_inputs(
        self, layouts: Mapping[str, BatchLayout], inputs: Inputs, output: Output | None, count: int
    ) -> dict[str, list[LayerInput]]:
        """Inputs of each linear map, candidate units among them.

        Args:
            layouts: how the rows of each map belong to samples.
            inputs: inputs of the model, (samples, ...).
            output: finds the outputs in what the model returns.
            count: number of samples.

        Returns:
            one entry for each application, by map or by group of one.
        """
        calls: dict[str, list[LinearCall]] = {}
        for kept, model in self.models.items():
            names = [name for name in layouts if name in self.maps[kept]]
            if not names:
                continue
            with (
                # Gradients come from the model itself, which computes the same function.
                torch.no_grad(),
                preserve_model_state(model),
                record_linear_calls(model, names) as seen,
            ):
                forward(model, inputs, output)
            calls |= seen
        # A map that is applied twice reads twice, each with rows of its own.
        found: dict[str, list[LayerInput]] = {}
        for name, several in calls.items():
            for number, call in enumerate(several):
                reads = layer_inputs(name, call, layout_of(layouts, name, number), count)
                for label, read in zip(labels(name, len(reads)), reads, strict=True):
                    found.setdefault(label, []).append(read)
        return found


def digest(model: nn.Module) -> list[int]:
    """Digest of all numbers of a model."""
    return model_digest([*model.parameters(), *model.buffers()])
