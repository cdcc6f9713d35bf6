"""Grown models leave for elsewhere by every way that PyTorch has: exported, compiled, traced, to ONNX.

They go over a few models each; `SENN_ALL=1 pytest tests/export/test_leaving.py` goes over the whole zoo.
"""

from __future__ import annotations

import functools
import io
from typing import Any

import pytest
import torch
from exhaustive import EVERYTHING, some
from surgery_cases import silent
from torch import Tensor, nn
from torch.testing import assert_close
from zoo import ZOO
from zoo_cases import prepared, widening

import senn
from senn import pytree
from senn.graph import analyze
from senn.nn import Rational, Residual
from senn.surgery import Insert, transaction
from senn.surgery.outputs import output_change, outputs

onnxruntime = pytest.importorskip("onnxruntime")
FEW = ("mobilenet", "lstm", "gpt")
SLOW = list(ZOO) if EVERYTHING else [name for name in FEW if name in ZOO]
"""A convolutional network, a recurrent one and a transformer; ways that several tests go are gone by two of them."""

pytestmark = pytest.mark.filterwarnings("ignore")


class Plain(nn.Module):
    """A model of any inputs and outputs as one from tensors to a tuple of tensors, which graphs want."""

    def __init__(self, model: nn.Module, inputs: Any) -> None:
        super().__init__()
        self.model, self.names = model, list(inputs) if isinstance(inputs, dict) else None

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        if self.names is None:
            result = self.model(*tensors)
        else:
            result = self.model(**dict(zip(self.names, tensors, strict=True)))
        return tuple(x for x in pytree.tensor_leaves(result) if x.is_floating_point())


def grown(name: str) -> tuple[nn.Module, Any]:
    """A model of the zoo after a unit in every space and layers before its first and last linear layer."""
    model, inputs, graph = prepared(name)
    graph = transaction(model, widening(model, graph), graph, probe=inputs).graph
    assert graph is not None
    insertion_points = [
        insertion_point for insertion_point in graph.insertion_points if not insertion_point.spatial
    ]
    layers = [
        Insert(insertion_point.module, Residual(_branch(insertion_point.features)))
        for insertion_point in dict.fromkeys((*insertion_points[:1], *insertion_points[-1:]))
    ]
    transaction(model, layers, graph, probe=inputs)
    return model.eval(), inputs


def _branch(features: int) -> nn.Module:
    branch = silent(features)
    branch[1] = Rational(3)
    return branch


@functools.cache
def plain(name: str) -> tuple[nn.Module, tuple[Tensor, ...], tuple[Tensor, ...]]:
    """A grown model as graphs want it, its inputs and outputs."""
    model, inputs = grown(name)
    tensors = tuple(pytree.tensor_leaves(inputs))
    wrapped = Plain(model, inputs).eval()
    with torch.no_grad():
        return wrapped, tensors, wrapped(*tensors)


@pytest.mark.parametrize("name", some(ZOO, 6))
def test_grown_models_are_exported(name: str) -> None:
    model, tensors, expected = plain(name)
    program = torch.export.export(model, tensors)
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    program = torch.export.load(file)
    assert_close(program.module()(*tensors), expected)


@pytest.mark.parametrize("name", some(ZOO, 6, first=4))
def test_grown_models_are_traced_by_torchscript(name: str) -> None:
    model, tensors, expected = plain(name)
    file = io.BytesIO()
    with (
        torch.no_grad()
    ):  # with gradients, tracing refuses nn.TransformerEncoderLayer's fast path, grown or not
        torch.jit.save(torch.jit.trace(model, tensors), file)
    file.seek(0)
    assert_close(torch.jit.load(file)(*tensors), expected)


@pytest.mark.parametrize("name", SLOW if EVERYTHING else SLOW[1:])
def test_grown_models_go_to_onnx(name: str) -> None:
    model, tensors, expected = plain(name)
    program = torch.onnx.export(model, tensors, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(
        program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    names = [one.name for one in session.get_inputs()]
    found = session.run(None, {key: x.numpy() for key, x in zip(names, tensors, strict=True)})
    assert_close(tuple(map(torch.from_numpy, found)), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", SLOW if EVERYTHING else SLOW[1:])
def test_a_compiled_model_grows_and_compiles_anew(name: str) -> None:
    torch._dynamo.reset()
    model, inputs, graph = prepared(name)
    wrapped, tensors = Plain(model.eval(), inputs).eval(), tuple(pytree.tensor_leaves(inputs))
    compiled = torch.compile(wrapped, backend="eager")
    with torch.no_grad():
        before = compiled(*tensors)
        transaction(model, widening(model, graph), graph, probe=inputs)
        expected = wrapped(*tensors)
        assert output_change(before, expected) <= 1e-5
        assert_close(compiled(*tensors), expected)


@pytest.mark.parametrize("name", some(SLOW, 3))
def test_grown_models_compile_with_their_gradients(name: str) -> None:
    torch._dynamo.reset()
    model, tensors, _ = plain(name)
    gradients = []
    for run in (model, torch.compile(model, backend="aot_eager")):
        model.zero_grad()
        sum(x.square().mean() for x in run(*tensors)).backward()
        gradients.append(
            {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}
        )
    assert_close(gradients[1], gradients[0])


@pytest.mark.parametrize("activation", ["relu", "gelu", torch.tanh], ids=["relu", "gelu", "tanh"])
def test_a_transformer_layer_with_a_fast_path_takes_no_layer_inside(activation: Any) -> None:
    """In eval mode its kernel reads the weights of linear1 and linear2 directly, past anything put before them."""
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(
        8, 2, 12, activation=activation, batch_first=True, dropout=0.0
    )
    x = torch.randn(2, 3, 8)
    graph = analyze(model, x)
    inside = {"linear1", "linear2"} & {
        insertion_point.module for insertion_point in graph.insertion_points
    }
    if activation is torch.tanh:  # has no such kernel
        assert inside == {"linear1", "linear2"}
        before = outputs(model, x)
        transaction(model, [Insert("linear1", Residual(_branch(8)))], graph, probe=x)
        assert output_change(before, outputs(model, x)) <= 1e-6
        return
    assert not inside
    reasons = {refusal.place: refusal.reason for refusal in graph.refusals}
    assert (
        "in eval mode its TransformerEncoderLayer reads its weight directly" in reasons["linear1"]
    )
    with pytest.raises(senn.SennError, match="there is no insertion point 'linear1'"):
        transaction(model, [Insert("linear1", Residual(_branch(8)))], graph, probe=x)
    transaction(model, widening(model, graph), graph, probe=x)
    expected = outputs(model, x)[0]
    assert_close(model.train()(x), expected)
    with torch.no_grad():
        assert_close(model.eval()(x), expected)


def test_a_layer_that_fast_paths_would_not_see_is_never_offered() -> None:
    """A forward that reads a weight directly unless there are hooks, as fused layers do."""

    class Fused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            hooked = any(module._forward_pre_hooks for module in self.modules())
            x = self.a(x).relu()
            return (
                self.b(x)
                if hooked or torch.is_grad_enabled()
                else nn.functional.linear(x, self.b.weight)
            )

    model = Fused()
    x = torch.randn(5, 3)
    nn.init.zeros_(model.b.bias)
    graph = analyze(model, x)
    assert "b" not in {point.module for point in graph.insertion_points}
    with pytest.raises(senn.SennError, match="there is no insertion point 'b'"):
        transaction(model, [Insert("b", Residual(_branch(4)))], graph, probe=x)
    assert type(model.b) is nn.Linear
