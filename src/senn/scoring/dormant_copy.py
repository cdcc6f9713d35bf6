"""A copy of the model in which all candidate units are dormant: it computes the same function."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from senn.candidates.candidate_set import CandidateSet
from senn.graph import DependencyGraph
from senn.kfac.batch_layout import BatchLayout
from senn.kfac.capture import labels, layer_inputs, layout_of
from senn.kfac.layer_inputs import LayerInput
from senn.kfac.recorder import forward, record_linear_calls
from senn.preserve import preserve_model_state
from senn.pytree import Inputs, Output
from senn.surgery import apply_moves
from senn.surgery.outputs import model_digest


@dataclass(frozen=True, eq=False)
class DormantCopy:
    """A widened copy of a model.

    Attributes:
        model: the copy.
        digest: digest of the numbers of the model that it was copied from.
    """

    model: nn.Module
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
        copied = copy.deepcopy(model)
        # BatchNorm's new channels need running statistics, which only data has.
        has_statistics = any(
            getattr(module, "running_mean", None) is not None for module in copied.modules()
        )
        apply_moves(
            copied,
            list(candidate_set.widen.values()),
            graph,
            probe=probe() if has_statistics else None,
        )
        return cls(copied, digest(model))

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
        with (
            # Gradients come from the model itself, which computes the same function.
            torch.no_grad(),
            preserve_model_state(self.model),
            record_linear_calls(self.model, [*layouts]) as calls,
        ):
            forward(self.model, inputs, output)
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
