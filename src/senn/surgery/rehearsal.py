"""Rehearsal of a change on a copy of a model: what training and other calls run must still run after it.

The comparison of outputs on the probe batch sees one call in evaluation mode. A training step takes another path, and
so may a call with a mask. They are run on a copy before anything is exchanged in the model, so a change that would
break the next step is never begun.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as tree

from senn import pytree
from senn.errors import SurgeryError
from senn.graph.forward_passes import ForwardPass, failure
from senn.graph.model_copy import copy_model
from senn.pytree import Inputs
from senn.surgery.apply import prepare
from senn.surgery.outputs import calibrate_batch_norm, former_outputs, output_change
from senn.surgery.plan_types import SurgeryPlan
from senn.surgery.trials import TrialRun, is_close

_SAMPLES = 2
"""Samples of the probe batch that are run: two, since BatchNorm can't train on one. They bound the cost, together with
one copy of the model, to less than a round's first batch."""


def rehearse(
    model: nn.Module,
    todo: SurgeryPlan,
    probe: Inputs,
    examples: Sequence[Inputs],
    *,
    keeps: bool,
    tolerance: float | None = None,
) -> None:
    """Carry a plan out on a copy of a model, and run that in both modes, on the probe and every other example.

    What doesn't run before the change isn't asked to run after it.

    Args:
        model: isn't changed.
        todo: the plan.
        probe: what its forward takes.
        examples: inputs of other calls, which may take other paths.
        keeps: True if the change is to keep the function, so that outputs are compared as well.
        tolerance: largest relative change of outputs; None for what rounding explains.

    Raises:
        SennError: the plan doesn't fit, or the model can't be copied.
        SurgeryError: a pass fails with the change, or gives other outputs.
    """
    copied = copy_model(model)
    before = _runs(copied, probe, examples)
    log = prepare(copied, todo)
    log.commit()
    calibrate_batch_norm(copied, log, probe)
    for old in before:
        mode = old.one.mode
        try:
            new = old.again(copied)
        except Exception as error:
            raise SurgeryError(
                f"with it the model would fail in {mode} mode: {failure(error)}"
            ) from error
        new = replace(new, outputs=former_outputs(old.outputs, new.outputs, todo.new_outputs))
        if keeps and not is_close(copied, old, new):
            change = output_change(old.outputs, new.outputs)
            if tolerance is None or change > tolerance:
                raise SurgeryError(
                    f"it changed the outputs by {change:.2g} of their size in {mode} mode"
                )


def _runs(copied: nn.Module, probe: Inputs, examples: Sequence[Inputs]) -> list[TrialRun]:
    """Run a copy on a few samples of the probe batch, and on each example of another kind; return what runs."""
    few = pytree.head(probe, _SAMPLES)
    found = _in_both_modes(copied, few)
    if all(run.one.training for run in found):  # it takes no fewer samples, as with a graph's edges
        few = probe
        found = _in_both_modes(copied, probe)
    kinds = [_kind(few)]
    for inputs in examples:
        if _kind(inputs) not in kinds:
            kinds.append(_kind(inputs))
            found += _in_both_modes(copied, inputs)
    return found


def _in_both_modes(copied: nn.Module, inputs: Inputs) -> list[TrialRun]:
    found = []
    for training in (False, True):
        with suppress(Exception):  # targets may be missing in training mode
            found.append(TrialRun.of(copied, ForwardPass(inputs=inputs, training=training)))
    return found


def _kind(inputs: Inputs) -> Any:
    """Return what tells inputs apart that may take different paths: all but the entries of tensors."""
    leaves, nesting = tree.tree_flatten(pytree.arguments(inputs))
    kinds = [
        (leaf.shape, leaf.dtype) if isinstance(leaf, Tensor) else repr(leaf) for leaf in leaves
    ]
    return str(nesting), kinds
