"""A tensor that changes size stays the same object, and what autograd knows of its former size is outdated."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable

import pytest
import torch
from surgery_cases import X, case, everything, widen
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

import senn
from senn.errors import SennError, SurgeryError
from senn.graph import analyze
from senn.surgery import Insert, Prune, Widen, apply_moves, transaction


def one_layer(model: nn.Module) -> Tensor:
    """A forward pass that saves no parameter: only the nodes that sum up gradients know of the former size."""
    return model[0](X).sum()


def whole(model: nn.Module) -> Tensor:
    return model(X).square().sum()


@pytest.mark.parametrize(
    ("forward", "error", "message"),
    [
        (one_layer, SennError, r"forward pass from before '0\.(weight|bias)' changed size"),
        (whole, RuntimeError, "modified by an inplace operation"),
    ],
)
@pytest.mark.parametrize("undo", [False, True])
def test_a_backward_pass_from_before_a_change_fails(
    forward: Callable[[nn.Module], Tensor], error: type[Exception], message: str, undo: bool
) -> None:
    model, graph = case("mlp")
    loss = forward(model)
    receipt = transaction(model, [widen(model, graph, "0", 2)], graph, probe=X)
    if undo:
        loss = forward(model)
        receipt.undo()
    with pytest.raises(error, match=message):
        loss.backward()
    for p in model.parameters():
        assert p.grad is None or p.grad.shape == p.shape
    whole(model).backward()
    assert all(p.grad.shape == p.shape for p in model.parameters())


def test_a_parameter_that_was_frozen_meanwhile_gets_gradients_of_its_new_shape() -> None:
    model, graph = case("mlp")
    loss = whole(model)  # keeps alive what sums up the gradients of the former shape
    model.requires_grad_(False)
    apply_moves(model, [widen(model, graph, "0", 2)], graph)
    assert not any(p.requires_grad for p in model.parameters())
    model.requires_grad_(True)
    whole(model).backward()
    assert model[0].weight.grad.shape == (7, 3)
    del loss


def test_a_change_that_is_rolled_back_leaves_graphs_and_accumulators_alone() -> None:
    model, graph = case("mlp")
    reference = torch.autograd.grad(whole(model), [*model.parameters()])
    loss, counted = whole(model), []
    # DistributedDataParallel holds these nodes, with hooks on them.
    held = [get_gradient_edge(p).node for p in model.parameters()]
    for node in held:
        node.register_hook(lambda *_: counted.append(1))
    versions = [p._version for p in model.parameters()]
    with pytest.raises(SurgeryError, match="changed the outputs"):
        transaction(model, [widen(model, graph, "0", 2), Insert("4", nn.Tanh())], graph, probe=X)
    assert [p._version for p in model.parameters()] == versions
    loss.backward()
    for p, gradient in zip(model.parameters(), reference, strict=True):
        assert torch.equal(p.grad, gradient)
    whole(model).backward()
    assert len(counted) == 2 * len(held)


def test_weak_references_and_kept_lists_follow_through_growth_pruning_and_undo() -> None:
    model, graph = case("batch norm")
    kept = [*model.parameters(), *model.buffers()]
    references = [weakref.ref(tensor) for tensor in kept]
    del kept
    receipts = []
    for moves in ([widen(model, graph, "0", 2)], [Prune("3", (1,))]):
        receipts.append(transaction(model, moves, analyze(model, X), probe=X))
    gc.collect()
    now = [*model.parameters(), *model.buffers()]
    assert all(held() is one for held, one in zip(references, now, strict=True))
    while receipts:
        receipts.pop().undo()
    assert all(held() is one for held, one in zip(references, now, strict=True))


def test_clipping_by_a_kept_list_and_an_optimizer_that_surgery_never_saw() -> None:
    model, graph = case("mlp")
    kept = [*model.parameters()]
    plain = torch.optim.SGD(kept, 0.1)
    apply_moves(model, [widen(model, graph, "0", 2)], graph)
    whole(model).backward()
    nn.utils.clip_grad_norm_(kept, 1e-3)
    assert float(nn.utils.get_total_norm([p.grad for p in model.parameters()])) < 1.001e-3
    before = model[0].weight.detach().clone()
    plain.step()
    assert not torch.equal(model[0].weight, before)


def test_a_recurrent_layer_reads_its_new_weights_and_the_former_ones_after_undo() -> None:
    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.fc = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.rnn(x)[0])

    model, x = Net(), torch.randn(2, 5, 3)
    graph = senn.analyze(model, x)
    before, held = model(x), everything(model)
    move = widen(model, graph, graph.groups[0].name, 2)
    receipt = transaction(model, [move], graph, probe=x)
    assert model.rnn.hidden_size == 6
    torch.testing.assert_close(model(x), before)
    pairs = zip(model.rnn._flat_weights, model.rnn.parameters(), strict=True)
    assert all(flat is own for flat, own in pairs)
    model(x).sum().backward()
    model.zero_grad()
    receipt.undo()
    assert everything(model) == held
    assert torch.equal(model(x), before)


def test_a_parameter_in_a_plain_list_follows() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(3, 4, bias=False), nn.Linear(4, 2)
            self.biases = [nn.Parameter(torch.randn(4))]
            self.bias_0 = self.biases[0]

        def forward(self, x: Tensor) -> Tensor:
            return self.last((self.first(x) + self.biases[0]).relu())

    torch.manual_seed(0)
    model = Net()
    graph = analyze(model, X)
    transaction(model, [widen(model, graph, graph.groups[0].name, 2)], graph, probe=X)
    assert model.biases[0] is model.bias_0
    assert model.bias_0.shape == (6,)
    model(X).sum().backward()
    assert model.bias_0.grad.shape == (6,)


def test_what_grows_in_inference_mode_can_be_trained() -> None:
    model, graph = case("mlp")
    optimizer = torch.optim.Adam(model.parameters())
    whole(model).backward()
    optimizer.step()
    move = widen(model, graph, "0", 2)
    with torch.inference_mode():
        values = {name: value.clone() for name, value in move.values.items()}
        transaction(model, [Widen("0", 2, values)], graph, optimizer=optimizer, probe=X)
    whole(model).backward()
    optimizer.step()
    assert not any(p.is_inference() for p in model.parameters())
