"""Analysis of a model: traced once, its groups tried in copies, its residual blocks searched for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from torch import nn

from senn import _deprecated
from senn.compilation import uncompiled
from senn.graph.input_checks import check_inputs, check_model, ignored_modules
from senn.graph.summary import Explanation, render
from senn.graph.trace_graph import trace_graph
from senn.graph.types import DependencyGraph
from senn.pytree import Inputs
from senn.verification.residual_search import find_residual_blocks
from senn.verification.verify_groups import verify_groups


def analyze(
    model: nn.Module,
    inputs: Inputs,
    ignore: Iterable[str] = (),
    proven: DependencyGraph | None = None,
) -> DependencyGraph:
    """Find what in a model can change size.

    Runs the model's own forward once in eval mode, without gradients, and follows which unit each entry of each tensor
    belongs to (`senn.graph.tracing`) and what the forward's Python code computes with sizes (`senn.graph.sizes`). Then
    a perturbed copy of the model, widened by one unit in every channel group, is run in the same way: a group whose
    size the forward pass takes for granted is refused. Residual blocks are found by trying, in another copy, which
    modules can give back what they are given. The model itself is left as it was: parameters, buffers, gradients,
    hooks, training modes, random number generators.

    Args:
        model: any module, compiled by `torch.compile` or not. What isn't understood is refused by name, and the rest of
            the model still counts.
        inputs: what `forward` takes, a small batch: a tensor, a tuple of positional arguments, a mapping of keyword
            arguments, or `senn.Arguments`.
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
    check_inputs(model, inputs)
    ignored = ignored_modules(model, ignore)
    graph = trace_graph(model, inputs, ignored)
    if proven is not None:
        # After growth: the same modules at other widths have the same groups, and an analysis costs several passes.
        names = {group.name for group in proven.groups}
        groups = tuple(group for group in graph.groups if group.name in names)
        return replace(
            graph, groups=groups, refusals=proven.refusals, residual_blocks=proven.residual_blocks
        )
    graph = verify_groups(model, inputs, graph, ignored)
    blocks, refused = find_residual_blocks(model, inputs, graph.linear_maps, ignored)
    return replace(graph, residual_blocks=tuple(blocks), refusals=(*graph.refusals, *refused))


@_deprecated.keywords
def explain(graph: DependencyGraph | nn.Module, inputs: Inputs | None = None) -> Explanation:
    """Explain in plain text what in a model can change size, and what can't and why.

    Args:
        graph: of a model; or a model, which is analyzed.
        inputs: a few inputs of the model; None for a graph.

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
