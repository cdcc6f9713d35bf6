"""What in a model can change size: traced, tried in copies, searched for blocks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from torch import nn

from senn.graph.input_checks import check_inputs, check_model, ignored_modules
from senn.graph.summary import Explanation, render
from senn.graph.trace_graph import trace_graph
from senn.graph.types import DependencyGraph
from senn.pytree import Inputs
from senn.verification.residual_search import find_residual_blocks
from senn.verification.verify_groups import verify_groups


def analyze(
    model: nn.Module, inputs: Inputs, ignore: Iterable[str] = (), proven: DependencyGraph | None = None
) -> DependencyGraph:
    """Find what in a model can change size.

    Runs the model's own forward once in eval mode, without gradients, and follows which unit each entry of each
    tensor belongs to (`senn.graph.tracing`) and what the forward's Python code computes with sizes
    (`senn.graph.sizes`). Then a copy of the model, widened by one unit in every space, is run in the same way: a
    space whose size the forward pass takes for granted is refused. Residual blocks are found by trying, in another
    copy, which modules can give back what they are given. The model itself is left as it was: parameters, buffers,
    gradients, hooks, training flags, random number generators.

    Args:
        model: any module. What isn't understood is refused by name, and the rest of the model still counts.
        inputs: what `forward` takes, a small batch: a tensor, a tuple of positional arguments, a mapping of keyword
            arguments, or `senn.Arguments`.
        ignore: names of modules whose linear maps must keep their shapes, those inside them included.
        proven: the structure of the same modules at other widths: its spaces and blocks need no second trial, and what
            it refuses stays refused.

    Returns:
        The structure. It may hold no space and no site at all.

    Raises:
        SennError: the inputs don't fit the model, or a name in `ignore` is no module of it.
        UnsupportedError: the model or its output is of a kind that can't be followed.
    """
    check_model(model)
    check_inputs(model, inputs)
    ignored = ignored_modules(model, ignore)
    graph = trace_graph(model, inputs, ignored)
    if proven is not None:
        names = {group.name for group in proven.groups}
        groups = tuple(group for group in graph.groups if group.name in names)
        return replace(graph, groups=groups, refusals=proven.refusals, residual_blocks=proven.residual_blocks)
    graph = verify_groups(model, inputs, graph, ignored)
    blocks, refused = find_residual_blocks(model, inputs, graph.linear_maps, ignored)
    return replace(graph, residual_blocks=tuple(blocks), refusals=(*graph.refusals, *refused))


def explain(graph: DependencyGraph | nn.Module, inputs: Inputs | None = None) -> Explanation:
    """Explain in plain text what in a model can change size, and what can't and why.

    Args:
        graph: of a model; or a model, which is analysed.
        inputs: a few inputs of the model; None for a structure.

    Returns:
        Tables of the spaces, the sites, the blocks that can be repeated, and the refusals. A consumer that owns k > 1
        columns per unit is shown as `name x k`.
    """
    return render(analyze(graph, inputs) if isinstance(graph, nn.Module) else graph)
