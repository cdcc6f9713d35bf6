"""Runs of a copy of a model before and after a change: what must be equal, and up to what rounding explains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from senn.graph.forward_passes import ForwardPass, watch_randomness
from senn.surgery.outputs import dtypes_in_pass

# Largest change of an output, relative to the largest output, that rounding explains. It is ten times that of a real
# change (`surgery.outputs.TOLERANCE`): a group that is refused here is lost, while one that passes wrongly still meets
# the comparison of outputs when it grows.
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
_COARSE = 5e-2


@dataclass(frozen=True, kw_only=True, eq=False)
class TrialRun:
    """One run of a copy of a model.

    Attributes:
        one: how it was run.
        outputs: the floating-point tensors of its outputs.
        is_random: True if the pass drew random numbers: then its outputs may change with any size.
        is_differentiable: True if it can also be run backwards.
    """

    one: ForwardPass
    outputs: list[Tensor]
    is_random: bool
    is_differentiable: bool

    @classmethod
    def forwards(cls, copied: nn.Module, one: ForwardPass) -> TrialRun:
        """Run a copy of a model without gradients.

        Args:
            copied: the copy.
            one: how to run it.
        """
        with watch_randomness(copied) as drew:
            outputs = one.run(copied)
        return cls(one=one, outputs=outputs, is_random=any(drew), is_differentiable=False)

    @classmethod
    def of(cls, copied: nn.Module, one: ForwardPass) -> TrialRun:
        """Run a copy of a model, in training mode backwards as well.

        Args:
            copied: the copy; its gradients are dropped afterwards.
            one: how to run it.
        """
        is_differentiable = False
        with watch_randomness(copied) as drew:
            try:
                outputs = _differentiated(copied, one) if one.training else one.run(copied)
                is_differentiable = one.training
            except Exception:  # it may have no backward pass, changed or not
                outputs = one.run(copied)
        return cls(
            one=one, outputs=outputs, is_random=any(drew), is_differentiable=is_differentiable
        )

    def again(self, copied: nn.Module) -> TrialRun:
        """Run the changed copy in the same way.

        Raises:
            Exception: whatever its forward or backward pass raises.
        """
        one = self.one
        outputs = _differentiated(copied, one) if self.is_differentiable else one.run(copied)
        return TrialRun(
            one=one,
            outputs=outputs,
            is_random=self.is_random,
            is_differentiable=self.is_differentiable,
        )


def _differentiated(copied: nn.Module, one: ForwardPass) -> list[Tensor]:
    """Run a copy forwards and backwards; a state that it keeps from the run before may have a history in the way."""
    try:
        return one.differentiate(copied)
    except Exception:
        one.run(copied)
        return one.differentiate(copied)


def is_close(copied: nn.Module, before: TrialRun, after: TrialRun) -> bool:
    """Return True if a change of a copy kept the outputs of a pass, up to rounding.

    Args:
        copied: the changed copy.
        before: the pass before the change.
        after: the same one after it.
    """
    old, new = before.outputs, after.outputs
    if before.is_random and before.one.training:
        # Masks of dropout are drawn for the new units, too.
        return [tensor.shape for tensor in old] == [tensor.shape for tensor in new]
    if outputs_close(old, new):
        return True
    # A step in lower precision on the way (a norm that computes in float32) makes the outputs as coarse as it is.
    dtypes = dtypes_in_pass(copied, after.one)
    tolerance = max((_TOLERANCE.get(dtype, _COARSE) for dtype in dtypes), default=0.0)
    return outputs_close(old, new, at_least=tolerance)


def outputs_close(
    before: Sequence[Tensor], after: Sequence[Tensor], *, at_least: float = 0.0
) -> bool:
    """Return True if outputs are the same up to rounding.

    Args:
        before: outputs of a copy.
        after: outputs of the changed copy on the same inputs.
        at_least: relative tolerance, if it is larger than that of the outputs' dtype.
    """
    if [tensor.shape for tensor in before] != [tensor.shape for tensor in after]:
        return False
    for old, new in zip(before, after, strict=True):
        # Infinities and NaN may be meant (a mask): they must stay where they are, and set no scale.
        magnitudes = old.abs().nan_to_num(0, 0, 0)
        scale = float(magnitudes.max()) if old.numel() else 0.0
        tolerance = max(_TOLERANCE.get(old.dtype, _COARSE), at_least) * scale
        if not torch.allclose(old, new, rtol=0, atol=tolerance, equal_nan=True):
            return False
    return True
