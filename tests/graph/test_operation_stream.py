"""A pass that does what an earlier one did isn't followed again; one that does anything else is."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import senn
from senn.graph.forward_passes import ForwardPass
from senn.graph.tracing.tracer import trace_forward


def _passes(inputs):
    return [ForwardPass(inputs=inputs), ForwardPass(inputs=inputs, training=True)]


def _followed(model, passes):
    """Numbers of the passes in which labels were followed."""
    trace, _ = trace_forward(model, passes)
    return {use.pass_number for use in trace.uses}


class _Training(nn.Module):
    """Two maps; `forward` may do something else in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.width = nn.Linear(3, 8), nn.Linear(8, 2), 8
        self.register_buffer("calls", torch.tensor(0))

    def forward(self, x):
        return self.b(torch.tanh(self.a(x)))


class _Returns(_Training):
    def forward(self, x):
        hidden = torch.tanh(self.a(x))
        return (self.b(hidden), hidden) if self.training else self.b(hidden)


class _Compares(_Training):
    def forward(self, x):
        hidden = torch.tanh(self.a(x))
        if self.training and hidden.shape[1] != self.width:
            raise ValueError("another width")
        return self.b(hidden)


class _Reshapes(_Training):
    def forward(self, x):
        hidden = torch.tanh(self.a(x))
        # The same number in both modes, computed from an attribute in one of them.
        return self.b(hidden.view(-1, self.width if self.training else hidden.shape[1]))


class _ReadsCounter(_Training):
    def forward(self, x):
        if self.training:
            self.calls += 1
        return self.b(torch.tanh(self.a(x)) * (1 + self.calls))


class _OtherConstant(_Training):
    def forward(self, x):
        mask = torch.ones(8)
        mask[0] = float(not self.training)
        return self.b(torch.tanh(self.a(x)) * mask)


class _OtherFunction(_Training):
    def forward(self, x):
        return self.b((F.relu if self.training else torch.tanh)(self.a(x)))


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.Linear(3, 4), nn.Dropout(), nn.Linear(4, 2)),
        nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2)),
        _Training(),
    ],
    ids=["dropout", "batch norm", "the same"],
)
def test_the_same_operations_are_followed_once(model):
    assert _followed(model, _passes(torch.randn(5, 3))) == {0}


@pytest.mark.parametrize(
    "kind", [_Returns, _Compares, _Reshapes, _ReadsCounter, _OtherConstant, _OtherFunction]
)
def test_whatever_training_does_otherwise_is_followed(kind):
    assert _followed(kind(), _passes(torch.randn(5, 3))) == {0, 1}


def test_the_same_operations_on_other_inputs_are_followed():
    passes = [ForwardPass(inputs=torch.randn(5, 3)) for _ in range(2)]
    assert _followed(_Training(), passes) == {0, 1}


def test_what_only_training_shows_counts():
    x = torch.randn(5, 3)
    (refusal, *_) = senn.analyze(_Returns(), x).refusals
    assert (refusal.place, refusal.reason) == ("a", "its units are the model's outputs")
    for kind in (_Compares, _Reshapes):
        (group,) = senn.analyze(kind(), x).groups
        assert "width" in {attribute.name for attribute in group.attributes}
