"""Ways in which a model's forward pass is run: each example input, in evaluation and in training mode.

A forward pass may take another path with a mask, with a cache, or in training (auxiliary heads, masks of dropout). What
only one of them runs holds units like everything else, so each one is traced and tried.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from senn import pytree
from senn.errors import in_one_line
from senn.graph.source_lines import is_own
from senn.graph.types import Refusal
from senn.preserve import note_writer, preserve_model_state
from senn.pytree import Inputs


@dataclass(frozen=True, kw_only=True, eq=False)
class ForwardPass:
    """One way to run a model.

    Attributes:
        inputs: what its forward takes.
        training: True for training mode, False for evaluation mode.
    """

    inputs: Inputs
    training: bool = False

    def run(self, model: nn.Module) -> list[Tensor]:
        """Run a model without gradients and return the floating-point tensors of its outputs.

        Args:
            model: any module; modes, buffers and random state are left as they were.
        """
        # Unfused, as in a traced pass: what is compared is what was read.
        with torch.no_grad(), preserve_model_state(model, fused=False, training=self.training):
            found = pytree.tensor_leaves(pytree.call(model, pytree.clone(self.inputs)))
        return [tensor for tensor in found if tensor.is_floating_point()]

    def differentiate(self, model: nn.Module) -> list[Tensor]:
        """Run a model as `run` does, but with gradients, and then backwards, as a training step does.

        Args:
            model: a copy, whose parameters' gradients are written to and dropped.
        """
        with torch.enable_grad(), preserve_model_state(model, fused=False, training=self.training):
            found = pytree.tensor_leaves(pytree.call(model, pytree.clone(self.inputs)))
            outputs = [leaf.detach().clone() for leaf in found if leaf.is_floating_point()]
            # Squares, since a sum of logarithms of probabilities, say, may have no gradient.
            parts = [leaf.abs().square().sum() for leaf in found if leaf.requires_grad]
            try:
                if parts:
                    torch.stack([part.double() for part in parts]).sum().backward()  # type: ignore[no-untyped-call]
            finally:
                model.zero_grad(set_to_none=True)
        return outputs

    @property
    def mode(self) -> str:
        """Name of the mode, for messages."""
        return "training" if self.training else "evaluation"


@contextmanager
def watch_randomness(model: nn.Module) -> Iterator[list[bool]]:
    """Note for each run of a model inside the context whether it drew from the global random generators.

    Args:
        model: any module.
    """
    states = _random_states()
    drew: list[bool] = []

    def compare(*_: object) -> None:
        pairs = zip(states, _random_states(), strict=True)
        drew.append(any(not torch.equal(old, new) for old, new in pairs))

    # At the end of the pass: the generators' states are restored after it.
    handle = model.register_forward_hook(compare)
    try:
        yield drew
    finally:
        handle.remove()


def _random_states() -> list[Tensor]:
    """States of the global generators that a pass may draw from."""
    states = [torch.get_rng_state()]
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        states += torch.cuda.get_rng_state_all()
    return states


def examples_of(inputs: Inputs) -> list[Inputs]:
    """Return the example inputs: the items of a list, else the inputs themselves.

    Args:
        inputs: of one call, or a list of those of several.
    """
    return list(inputs) if isinstance(inputs, list) else [inputs]


def forward_passes(
    model: nn.Module, examples: Sequence[Inputs], original: nn.Module
) -> tuple[list[ForwardPass], list[Refusal]]:
    """Return the passes to look at: every example in evaluation mode, then each in training mode if it runs there.

    Args:
        model: a copy, which a forward pass may change.
        examples: inputs of one call each.
        original: the model itself, which is noted if a forward pass writes to parameters.

    Returns:
        The passes, and one entry if training mode can't be looked at.
    """
    passes = [ForwardPass(inputs=inputs) for inputs in examples]
    reasons = []
    versions = _versions(model)
    for inputs in examples:
        one = ForwardPass(inputs=inputs, training=True)
        try:
            one.run(model)
        except Exception as error:  # one sample is too few for BatchNorm; targets may be missing
            reasons.append(failure(error))
        else:
            passes.append(one)
    for one in passes[: len(examples)]:
        with suppress(Exception):  # the traced pass says what is wrong
            one.run(model)
    if _versions(model) != versions:
        note_writer(original)
    if not reasons:
        return passes, []
    reason = f"what only training runs isn't known: in training mode the forward pass fails ({reasons[0]})"
    return passes, [Refusal(place="", reason=reason)]


def _versions(model: nn.Module) -> list[int]:
    """Numbers of writes to each parameter."""
    return [parameter._version for parameter in model.parameters()]


def failure(error: BaseException) -> str:
    """Describe why a forward pass failed, with the line of the model's code where it did.

    Args:
        error: what it raised.

    Returns:
        Class and first line of the error, and the last source line on the way that isn't torch's or senn's.
    """
    text = in_one_line(error) if isinstance(error, Exception) else type(error).__name__
    own = None
    for frame in traceback.extract_tb(error.__traceback__):
        if is_own(frame.filename):
            own = frame
    if own is None or not own.line:
        return text
    return f"{text}, at {os.path.basename(own.filename)}:{own.lineno}, `{own.line.strip()}`"
