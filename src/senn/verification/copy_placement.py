"""Where a copy of a residual block can go, found by running one there."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from senn import pytree
from senn.graph.forward_passes import ForwardPass, failure
from senn.graph.types import Refusal, ResidualBlock, SizeAttribute
from senn.surgery.repeat import (
    counts_of,
    function_preserving_copy,
    have_positions,
    insert_copy_after,
)
from senn.surgery.trials import outputs_close
from senn.verification.module_calls import ForwardError, first_tensor, floating_outputs

NOT_REPEATED = "nothing like it can be put after it"
"""Beginning of the reasons of refused blocks."""


def place_copies(
    trial: nn.Module, passes: Sequence[ForwardPass], blocks: Sequence[ResidualBlock]
) -> tuple[list[ResidualBlock], list[Refusal]]:
    """Find where copies of residual blocks go.

    Args:
        trial: a copy of the model, in eval mode; it is as before afterwards.
        passes: how it is run, first in evaluation mode.
        blocks: found in it.

    Returns:
        Blocks with the place of their copies (`in_module_list`, `depth_attributes`), and refusals of the others.
    """
    before = floating_outputs(trial, passes[0].inputs)
    lists: dict[str, list[ResidualBlock]] = defaultdict(list)
    for block in blocks:
        lists[block.module.rpartition(".")[0]].append(block)
    found: dict[str, ResidualBlock | str] = {}
    for several in lists.values():
        found |= _placed_in_list(trial, passes, several, before)
    placed: list[ResidualBlock] = []
    refused: list[Refusal] = []
    for block in blocks:
        result = found[block.module]
        if isinstance(result, ResidualBlock):
            placed.append(result)
        else:
            refused.append(Refusal(place=block.module, reason=f"{NOT_REPEATED}: {result}"))
    return placed, refused


def _placed_in_list(
    trial: nn.Module,
    passes: Sequence[ForwardPass],
    blocks: Sequence[ResidualBlock],
    before: list[Tensor],
) -> dict[str, ResidualBlock | str]:
    """Place the blocks of one list, by name; or say why one has no place."""
    # Only the first and the last are tried, or a model of a hundred layers would run a hundred times. The first one
    # moves all others up: where that does no harm and the last can go in too, so can those between.
    ends = (blocks[0], blocks[-1])
    found = {block.module: _placed(trial, passes, block, before) for block in dict.fromkeys(ends)}
    ways: set[tuple[bool, tuple[SizeAttribute, ...]]] = set()
    for end in found.values():
        if isinstance(end, ResidualBlock):
            ways.add((end.in_module_list, end.depth_attributes))
        else:
            ways.add((False, ()))
    in_list, attributes = next(iter(ways))
    alike = len(ways) == 1 and in_list
    for block in blocks:
        if block.module not in found:
            if alike:
                found[block.module] = replace(
                    block, in_module_list=True, depth_attributes=attributes
                )
            else:
                found[block.module] = _placed(trial, passes, block, before)
    return found


def _placed(
    trial: nn.Module, passes: Sequence[ForwardPass], block: ResidualBlock, before: list[Tensor]
) -> ResidualBlock | str:
    """Return the block with the place of its copy, in its list of layers or else behind it; or why there is none."""
    path = block.module.rpartition(".")[0]
    options = []
    if isinstance(trial.get_submodule(path), nn.ModuleList | nn.Sequential):
        configured, own = counts_of(trial, path)
        # A number of layers is left alone unless it is read: by the forward pass; or by a cache, in models whose layers
        # know their places in it, which a short pass without a cache wouldn't show.
        counts: list[tuple[SizeAttribute, ...]] = [()]
        counts += [(count,) for count in configured]
        counts += [(count,) for count in own]
        if have_positions(trial, path):
            counts = [(count,) for count in configured] + counts
        options = [replace(block, in_module_list=True, depth_attributes=some) for some in counts]
    reason = ""
    for option in (*options, block):
        objection = _objection(trial, passes, option, before)
        if objection is None:
            return option
        reason = reason or objection  # the first option's says most
    return reason


def _objection(
    trial: nn.Module, passes: Sequence[ForwardPass], block: ResidualBlock, before: list[Tensor]
) -> str | None:
    """Say why a copy doesn't run right after the block with the same outputs; None if it does."""
    original, twin = trial.get_submodule(block.module), function_preserving_copy(trial, block)
    made: list[Tensor | None] = []
    read: list[Tensor] = []

    def leave(_module: nn.Module, _args: Any, output: Any) -> None:
        made.append(first_tensor(output))

    def enter(_module: nn.Module, args: Any, kwargs: Any) -> None:
        read.append(pytree.tensor_leaves([args, kwargs])[0].clone())

    swaps = insert_copy_after(trial, [(block, twin)])
    with ExitStack() as stack:
        stack.callback(original.register_forward_hook(leave).remove)
        stack.callback(twin.register_forward_pre_hook(enter, with_kwargs=True).remove)
        for held, key, old, new in swaps:
            stack.callback(held.__setitem__, key, old)
            held[key] = new
        try:
            after = floating_outputs(trial, passes[0].inputs)
        except ForwardError as error:
            return f"the forward pass fails with it ({error})"
        recorded = len(made), len(read)
        for one in passes[1:]:
            try:
                one.run(trial)
            except Exception as error:
                return f"the forward pass fails with it in {one.mode} mode ({failure(error)})"
        del made[recorded[0] :], read[recorded[1] :]
    # Equal outputs are no proof: a forward pass that goes over the first n layers doesn't see one more.
    once = len(made) == len(read) == 1
    if not once or made[0] is None or not torch.equal(made[0], read[0]):
        return "the forward pass doesn't run what stands there"
    return None if outputs_close(before, after) else "the outputs depend on the number of layers"
