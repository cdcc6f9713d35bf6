"""Whoever holds a tensor of the model that is loaded into holds the right one afterwards."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch import Tensor, nn

import senn
from senn.checkpoint import describe_shapes, resize_like

X = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Reads a parameter from a plain list, and another through a view of its memory."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.biases = [nn.Parameter(torch.randn(width))]
        self.bias_0 = self.biases[0]
        self.first, self.last = nn.Linear(3, width), nn.Linear(width, 2)
        self.rnn = nn.GRU(2, 2, batch_first=True)
        self.register_buffer("scale", torch.rand(2))
        self.view = self.scale.view(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.last((self.first(x) + self.biases[0]).relu()) * self.view
        return self.rnn(y[None])[0][0]


@pytest.mark.parametrize(
    ("width", "dtype"), [(4, torch.float32), (6, torch.float32), (6, torch.float64)]
)
def test_tensors_of_the_given_model_stay_the_same_objects(tmp_path, width, dtype):
    torch.manual_seed(0)
    saved, into = Net(width), Net()
    if dtype == torch.float64:
        saved.first.double()
    senn.save(tmp_path, saved)
    optimizer = torch.optim.SGD(into.parameters(), 0.1)
    held = [*into.parameters(), *into.buffers()]
    references = [weakref.ref(one) for one in held]
    if dtype == torch.float32:
        into(X).sum().backward()
    assert senn.load(tmp_path, into=into) is into
    now = [*into.parameters(), *into.buffers()]
    assert all(one is other for one, other in zip(now, held, strict=True))
    assert all(one() is other for one, other in zip(references, now, strict=True))
    assert all(one.grad is None or one.grad.shape == one.shape for one in into.parameters())
    assert into.first.weight.dtype == dtype
    if dtype == torch.float32:
        assert torch.equal(into(X), saved(X))
        before = into.bias_0.detach().clone()
        optimizer.zero_grad()
        into(X).square().sum().backward()
        optimizer.step()
        assert not torch.equal(into.biases[0], before)


def test_a_backward_pass_from_before_a_load_fails(tmp_path):
    senn.save(tmp_path, nn.Linear(3, 6))
    into = nn.Linear(3, 2)
    loss = into(X).sum()
    senn.load(tmp_path, into=into)
    with pytest.raises(senn.SennError, match=r"from before '(weight|bias)' changed size"):
        loss.backward()
    into(X).sum().backward()
    assert into.weight.grad.shape == (6, 3)


def test_tensors_that_share_memory_get_numbers_of_their_own(tmp_path):
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.whole = nn.Parameter(torch.randn(4, 3))
            self.part = nn.Parameter(self.whole.data[:2])

    saved, into = Shared(), Shared()
    saved.part = nn.Parameter(torch.randn(2, 3))  # shares nothing any more
    senn.save(tmp_path, saved)
    senn.load(tmp_path, into=into)
    assert torch.equal(into.whole, saved.whole)
    assert torch.equal(into.part, saved.part)


def test_sizes_alone_keep_the_objects_and_the_numbers_that_fit():
    torch.manual_seed(0)
    grown, fresh = Net(6), Net()
    held, numbers = [*fresh.parameters()], fresh.rnn.weight_hh_l0.detach().clone()
    resize_like(fresh, describe_shapes(grown))
    assert all(one is other for one, other in zip(fresh.parameters(), held, strict=True))
    assert fresh.biases[0] is fresh.bias_0
    assert fresh.bias_0.shape == (6,)
    assert torch.equal(fresh.rnn.weight_hh_l0, numbers)


SHARED = nn.Identity()


class Gated(nn.Module):
    """An activation that is a default argument, and so one module in all blocks."""

    def __init__(self, act: nn.Module = SHARED) -> None:
        super().__init__()
        self.lin, self.act = nn.Linear(3, 3), act

    def forward(self, x):
        return self.act(self.lin(x))


@pytest.mark.parametrize("own", [True, False], ids=["two for one", "one for two"])
def test_modules_without_numbers_may_be_one_here_and_two_there(own, tmp_path):
    def build(own):
        return nn.Sequential(*(Gated(nn.Identity()) if own else Gated() for _ in range(2)))

    saved, fresh = build(own), build(not own)
    senn.save(tmp_path / "saved", saved)
    loaded = senn.load(tmp_path / "saved", into=fresh)
    x = torch.randn(2, 3)
    assert torch.equal(loaded(x), saved(x))
