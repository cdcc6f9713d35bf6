"""The table of rules: every operation that has one, by file; what has none is refused."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from senn.graph import analyze
from senn.graph.forward_passes import ForwardPass
from senn.graph.tracing.rules import indexing, linear, norms, pointwise, registry, views
from senn.graph.tracing.tracer import trace_forward

FILES = {views: 74, indexing: 20, pointwise: 53, linear: 18, norms: 16}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.__name__.rpartition(".")[2])
def test_every_rule_of_a_file_is_registered(file):
    assert len(file.RULES) == FILES[file]
    registry.register()
    for name, rule in file.RULES.items():
        operation = getattr(torch.ops.aten, name.removeprefix("aten::"))
        assert registry.rule_for(getattr(operation, operation.overloads()[0])) is rule, name


def test_no_operation_has_two_rules():
    names = [name for file in FILES for name in file.RULES]
    assert len(names) == len(set(names)) == 181


def test_an_operation_without_a_rule_is_pointwise_or_unknown():
    registry.register()
    assert registry.rule_for(torch.ops.aten.sinh.default) is pointwise.pointwise
    assert registry.rule_for(torch.ops.aten.linalg_inv_ex.default) is registry.unknown


class _EverySecondRow(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 8), nn.Linear(4, 2)

    def forward(self, x):
        return self.second(F.linear(x, self.first.weight[::2]))


def test_a_weight_of_which_every_second_row_is_used_keeps_its_size():
    graph = analyze(_EverySecondRow(), torch.randn(5, 3))
    assert graph.scored_maps == ("second",)
    assert graph.groups == ()
    reasons = {refusal.place: refusal.reason for refusal in graph.refusals}
    assert reasons["first"] == "its units own different numbers of positions in second.weight"


class _TwoHalves(nn.Module):
    def __init__(self, second: slice):
        super().__init__()
        self.weight, self.rows = nn.Parameter(torch.randn(6, 3)), second
        self.one, self.two = nn.Linear(3, 2), nn.Linear(3, 2)

    def forward(self, x):
        return self.one(F.linear(x, self.weight[:3]).relu()) + self.two(
            F.linear(x, self.weight[self.rows]).relu()
        )


@pytest.mark.parametrize("rows", [slice(3, None), slice(-3, None), slice(-3, 10)], ids=str)
def test_a_slice_of_a_weight_is_the_rows_that_python_takes(rows):
    trace, _ = trace_forward(_TwoHalves(rows), [ForwardPass(inputs=torch.randn(5, 3))])
    labels = trace.rows["weight", 0].tolist()
    read = {use.weight: use.columns.tolist() for use in trace.uses}
    assert read["one.weight"] == labels[:3]
    assert read["two.weight"] == labels[3:]


class _PowersOfATensor(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x):
        slopes = torch.pow(torch.tensor([0.5, 0.25]), torch.arange(1, 3))  # as ALiBi makes them
        return self.second(self.first(x) ** 2) * slopes


def test_exponents_may_be_a_tensor():
    graph = analyze(_PowersOfATensor(), torch.randn(5, 3))
    assert [group.name for group in graph.groups] == ["first"]
