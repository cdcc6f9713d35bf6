"""Batch norms are judged by the weights as they are."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from senn.training.batch_norm import MOST_ROWS, renew_from_rows
from senn.training.batches import Inputs, Rows


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Dropout(0.5)),
        *(nn.Linear(7, 4), nn.BatchNorm1d(4, momentum=None), nn.Linear(4, 2)),
    )


def rows(n: int) -> Rows:
    x = torch.randn(n, 5, generator=torch.Generator().manual_seed(n))
    return Rows(x=x, y=torch.zeros(n, dtype=torch.long))


@pytest.mark.parametrize("n", [2, 60, 512])
def test_statistics_are_those_of_the_rows(n):
    model, data = net(), rows(n)
    renew_from_rows(model, data, Inputs(read=lambda x: 2 * x))
    first, last = model[1], model[5]
    with torch.no_grad():
        hidden = model[0](2 * data.x)
        torch.testing.assert_close(first.running_mean, hidden.mean(0))
        torch.testing.assert_close(first.running_var, hidden.var(0))
        # What comes in between is as in training, without dropout.
        normal = nn.functional.batch_norm(
            hidden, None, None, first.weight, first.bias, training=True
        )
        hidden = model[4](normal.relu())
        torch.testing.assert_close(last.running_mean, hidden.mean(0))
        torch.testing.assert_close(last.running_var, hidden.var(0))


def test_nothing_else_changes():
    model = net().train()
    model[3].eval()
    model(rows(20).x)
    before, modes = (
        copy.deepcopy(model.state_dict()),
        [one.training for one in model.modules()],
    )
    random = torch.get_rng_state()
    renew_from_rows(model, rows(60), Inputs())
    assert torch.equal(random, torch.get_rng_state())
    assert modes == [one.training for one in model.modules()]
    assert (model[1].momentum, model[5].momentum) == (0.1, None)
    for name, value in model.state_dict().items():
        changes = name.endswith(("running_mean", "running_var"))
        assert torch.equal(value, before[name]) != changes, name
    assert all(parameter.grad is None for parameter in model.parameters())


def test_no_more_rows_than_needed_pass_and_from_everywhere():
    seen = []
    model = net()
    model.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    n = 3 * MOST_ROWS
    data = Rows(x=torch.arange(n, dtype=torch.float32)[:, None].repeat(1, 5), y=torch.zeros(n))
    renew_from_rows(model, data, Inputs())
    passed = torch.cat(seen)[:, 0]
    assert (len(passed), passed[0], passed[-1]) == (MOST_ROWS, 0, n - 1)
    assert passed.diff().min() >= 2


def test_after_a_failure_all_is_as_it_was():
    model = net().train()
    buffers = dict(model.named_buffers())
    before = copy.deepcopy(model.state_dict())

    def fail(module, args):
        raise RuntimeError("no")

    handle = model[5].register_forward_pre_hook(fail)  # the first norm has seen the rows by then
    with pytest.raises(RuntimeError, match="no"):
        renew_from_rows(model, rows(60), Inputs())
    handle.remove()
    assert all(one.training for one in model.modules())
    assert (model[1].momentum, model[5].momentum) == (0.1, None)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(found is buffers[name] for name, found in model.named_buffers())


def test_one_row_has_no_variance():
    model = net()
    before = copy.deepcopy(model.state_dict())
    renew_from_rows(model, rows(1), Inputs())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
