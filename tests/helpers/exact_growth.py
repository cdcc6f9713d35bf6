"""Growth of small nets in float64: shared by the tests of single rules."""

from __future__ import annotations

from graph_nets import names
from torch import Tensor, nn
from zoo import randomised
from zoo_cases import in_training, widening

from senn.graph import DependencyGraph, analyze, get_tensor
from senn.surgery import transaction
from senn.surgery.outputs import output_change, outputs


def grown(model: nn.Module, inputs: Tensor, groups: list[str]) -> DependencyGraph:
    """Widen all groups by two units: outputs stay in both modes, and what reads new units gets a gradient."""
    model, inputs = randomised(model).double(), inputs.double()
    graph = analyze(model, inputs)
    assert names(graph) == groups
    before, trained = outputs(model, inputs), in_training(model, inputs)
    receipt = transaction(model, widening(model, graph, 2), graph, probe=inputs)
    assert output_change(before, outputs(model, inputs)) <= 1e-10
    assert output_change(trained, in_training(model, inputs)) <= 1e-10
    again = analyze(model, inputs)
    assert [group.width for group in again.groups] == [group.width + 2 for group in graph.groups]
    model.train()
    model(inputs).square().sum().backward()
    for group in (receipt.graph or again).groups:
        # What a norm must not notice starts without a gradient.
        for coupled in [] if group.norms else group.dims_of("consumer"):
            gradient = get_tensor(model, coupled.name).grad
            assert gradient is not None
            assert bool(gradient.index_select(coupled.dim, coupled.index[-2:].flatten()).any())
    return graph
