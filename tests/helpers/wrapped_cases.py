"""Wrapped models that grow in two processes, and a plain one that grows alone."""

from __future__ import annotations

import copy
import io
from typing import Any

import torch
from rank_cases import SAMPLES, _rows
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from senn import Grower, PricePolicy
from senn.candidates.candidate_config import CandidateConfig
from senn.collectives import Communicator
from senn.distributed import full_parameters, rewrap_ddp
from senn.errors import SennError
from senn.nn import MLP

HALF = SAMPLES // 2


def model() -> nn.Module:
    torch.manual_seed(0)
    return MLP(6, (3, 4), 3).double()


def grower_of(net: nn.Module, optimizer: torch.optim.Optimizer, **more: Any) -> Grower:
    policy = PricePolicy(kappa=1e-4, confidence=0.0, layer_cost=1.0)
    return Grower(
        net,
        optimizer,
        F.cross_entropy,
        policy,
        samples=10_000,
        max_width=6,
        candidate_config=CandidateConfig(units=8),
        **more,
    )


def train(
    net: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, steps: int = 4
) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()


def alone() -> dict[str, Any]:
    """One process on the joint batch."""
    x, y = _rows()
    net = model()
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    grower = grower_of(net, optimizer, communicator=Communicator())
    train(net, optimizer, x, y)
    events = grower.grow([(x, y)], ("width",)) + grower.grow([(x, y)], ("depth",))
    schedule.step()
    train(net, optimizer, x, y)
    events += grower.grow([(x, y)])
    train(net, optimizer, x, y)
    return {"events": [event.place for event in events], "weights": net.state_dict()}


def replicated(rank: int) -> dict[str, Any]:
    """The same with DistributedDataParallel."""
    x, y = (part[HALF * rank : HALF * rank + HALF] for part in _rows())
    net = DistributedDataParallel(model(), bucket_cap_mb=1, broadcast_buffers=False)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    grower = grower_of(net, optimizer)
    train(net, optimizer, x, y)
    events = grower.grow([(x, y)], ("width",)) + grower.grow([(x, y)], ("depth",))
    try:
        net(x)
        said = "nothing"
    except SennError as error:
        said = str(error)
    assert rewrap_ddp(net) is net
    schedule.step()
    train(net, optimizer, x, y)
    events += grower.grow([(x, y)])
    rewrap_ddp(net)
    train(net, optimizer, x, y)
    kept = net.bucket_bytes_cap == 2**20 and net.broadcast_buffers is False
    return {
        "events": [event.place for event in events],
        "weights": net.module.state_dict(),
        "stale": said,
        "kept": kept,
    }


def broken_off(rank: int) -> dict[str, Any]:
    """A round that fails once the model has been changed, and the next step's gradients."""
    x, y = (part[HALF * rank : HALF * rank + HALF] for part in _rows())
    net = DistributedDataParallel(model())
    start = [one.shape for one in net.parameters()]

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        if [one.shape for one in net.parameters()] != start:
            raise ArithmeticError("not with these sizes")
        return F.cross_entropy(outputs, targets)

    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
    train(net, optimizer, x, y)
    policy = PricePolicy(kappa=1e-4, confidence=0.0)
    try:
        Grower(net, optimizer, loss, policy, samples=10_000).grow([(x, y)], ("width",))
        said = "nothing"
    except Exception as error:
        said = str(error)
    kept = [one.shape for one in net.parameters()] == start
    gradients = []
    for _ in range(2):
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        gradients.append([one.grad.clone() for one in net.parameters()])
    return {"said": said, "kept": kept, "gradients": gradients}


def sharded(rank: int) -> dict[str, Any]:
    """The same with `fully_shard`."""
    x, y = (part[HALF * rank : HALF * rank + HALF] for part in _rows())
    net = model()
    mesh = init_device_mesh("cpu", (2,))
    for layer in net.body:
        if isinstance(layer, nn.Linear):
            fully_shard(layer, mesh=mesh, reshard_after_forward=True)
    fully_shard(net, mesh=mesh)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    grower = grower_of(net, optimizer)
    train(net, optimizer, x, y)
    try:
        grower.observe(x, y)
        said = "nothing"
    except SennError as error:
        said = str(error)
    before = copy.copy(type(net))
    with full_parameters(net, optimizer):
        events = grower.grow([(x, y)], ("width",)) + grower.grow([(x, y)], ("depth",))
    schedule.step()
    train(net, optimizer, x, y)
    with full_parameters(net, optimizer):
        events += grower.grow([(x, y)])
    train(net, optimizer, x, y)
    units = [
        isinstance(module, FSDPModule) for module in net.modules() if isinstance(module, nn.Linear)
    ]
    halves = [p.to_local().numel() < p.numel() for p in net.parameters() if p.shape[0] > 1]
    halves += [
        s["exp_avg"].to_local().shape == p.to_local().shape for p, s in optimizer.state.items()
    ]
    whole = {name: value.full_tensor() for name, value in net.state_dict().items()}
    return {
        "events": [event.place for event in events], "weights": whole, "refused": said, "units": units,
        "halves": all(halves), "class": type(net) is before,
    }  # fmt: skip


def both(rank: int) -> bytes:
    buffer = io.BytesIO()
    found = {
        "replicated": replicated(rank),
        "sharded": sharded(rank),
        "broken off": broken_off(rank),
    }
    torch.save(found, buffer)
    return buffer.getvalue()
