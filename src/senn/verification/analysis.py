"""Analysis of a model: traced, its groups and insertion points tried in copies, its residual blocks searched for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from torch import nn

from senn import _deprecated
from senn.compilation import uncompiled
from senn.graph.forward_passes import examples_of, forward_passes
from senn.graph.input_checks import check_inputs, check_model, ignored_modules
from senn.graph.model_copy import copy_model
from senn.graph.summary import Explanation, render
from senn.graph.trace_graph import shared_memory, trace_graph
from senn.graph.types import DependencyGraph
from senn.pytree import Inputs
from senn.verification.residual_search import find_residual_blocks
from senn.verification.verify_groups import verify_groups
from senn.verification.verify_insertions import verify_insertions


def analyze(
    model: nn.Module,
    inputs: Inputs,
    ignore: Iterable[str] = (),
    proven: DependencyGraph | None = None,
) -> DependencyGraph:
    """Find what in a model can change size.

    Runs the forward of a copy of the model on each of the example inputs, in evaluation and in training mode, without
    gradients, and follows which unit each entry of each tensor belongs to (`senn.graph.tracing`) and what the forward's
    Python code computes with sizes (`senn.graph.sizes`). Then a perturbed copy of the model, widened by one unit in
    every channel group, is run in the same ways, in training mode backwards as well: a group whose size a forward pass
    takes for granted is refused. So is a place where a layer can't stand, by putting an empty one there. Residual
    blocks are found by trying, in another copy, which modules can give back what they are given. The model itself isn't
    run, and left as it was.

    Args:
        model: any module, compiled by `torch.compile` or not. What isn't understood is refused by name, and the rest of
            the model still counts.
        inputs: what `forward` takes, a small batch: a tensor, a tuple of positional arguments, a mapping of keyword
            arguments, or `senn.Arguments`. A list holds the inputs of several calls (`[plain, masked]`), which may take
            different paths: what any of them runs counts. A single argument that is a list is given as `(argument,)`.
        ignore: names of modules whose linear maps must keep their shapes, those inside them included.
        proven: graph of the same modules at other widths: its groups and blocks aren't tried again, and what it refuses
            stays refused. None tries everything, in a few passes through copies.

    Returns:
        The dependency graph. It may hold no group and no insertion point at all.

    Raises:
        SennError: the inputs don't fit the model, or a name in `ignore` is no module of it.
        UnsupportedError: the model or its output is of a kind that can't be followed.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> import senn
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
        >>> graph = senn.analyze(model, torch.zeros(2, 3))
        >>> [(group.name, group.width) for group in graph.groups]
        [('0', 4)]
        >>> graph.refusals[0].place, graph.refusals[0].reason
        ('2', "its units are the model's outputs")
    """
    model = uncompiled(model)
    check_model(model)
    examples = examples_of(inputs)
    for example in examples:
        check_inputs(model, example)
    ignored = ignored_modules(model, ignore)
    # A copy is looked at: a switch of modes may run code that rewrites weights or attributes.
    copied = copy_model(model)
    passes, not_looked_at = forward_passes(copied, examples, model)
    graph = trace_graph(copied, passes, ignored, shared_memory(model))
    if proven is not None:
        # After growth: the same modules at other widths have the same groups, and an analysis costs several passes.
        names = {group.name for group in proven.groups}
        refused_there = {one.place for one in proven.refusals}
        points = tuple(p for p in graph.insertion_points if p.module not in refused_there)
        return replace(
            graph,
            groups=tuple(group for group in graph.groups if group.name in names),
            insertion_points=points,
            refusals=proven.refusals,
            residual_blocks=proven.residual_blocks,
        )
    graph = verify_groups(copied, passes, graph, ignored)
    graph = verify_insertions(copied, passes, graph)
    blocks, refused = find_residual_blocks(copied, passes, graph.linear_maps, ignored)
    refusals = (*graph.refusals, *refused, *not_looked_at)
    return replace(graph, residual_blocks=tuple(blocks), refusals=refusals)


@_deprecated.keywords
def explain(graph: DependencyGraph | nn.Module, inputs: Inputs | None = None) -> Explanation:
    """Explain in plain text what in a model can change size, and what can't and why.

    Args:
        graph: of a model; or a model, which is analyzed.
        inputs: a few inputs of the model, or a list of those of several calls; None for a graph.

    Returns:
        Tables of the channel groups, the insertion points, the residual blocks and the refusals: text, and in notebooks
        HTML. A consumer that owns k > 1 columns per unit is shown as `name x k`.

    Raises:
        SennError: the inputs don't fit the model.
        UnsupportedError: the model can't be followed.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> import senn
        >>> print(senn.explain(nn.Linear(3, 1), torch.zeros(2, 3)))
        cannot change  because
        weight         its units are the model's outputs
        (the model)    no layer can be inserted before it: it is the whole model
    """
    return render(analyze(graph, inputs) if isinstance(graph, nn.Module) else graph)
