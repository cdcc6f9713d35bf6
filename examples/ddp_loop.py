"""Grow a network in an ordinary loop of DistributedDataParallel, with a DistributedSampler.

    torchrun --nproc-per-node 2 examples/ddp_loop.py

Two lines are new in the loop: `grower.grow`, with the batches that passed on this rank, and `rewrap_ddp`, after which
the wrapper follows the grown model. The optimizer and its schedule go on. All ranks end with the same network.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import senn
from senn.distributed import rewrap_ddp


def main(argv: Sequence[str] | None = None) -> float:
    """Train for some epochs, and return the accuracy on the held-out fifth, which every rank computes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=8)
    epochs: int = parser.parse_args(argv).epochs
    cuda = torch.cuda.is_available()
    dist.init_process_group("nccl" if cuda else "gloo")
    device = torch.device(f"cuda:{dist.get_rank() % torch.cuda.device_count()}" if cuda else "cpu")
    torch.manual_seed(0)
    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(images))
    x, y = torch.as_tensor(images).float()[order] / 16, torch.as_tensor(labels)[order]
    held_out, data = slice(0, len(x) // 5), TensorDataset(x[len(x) // 5 :], y[len(x) // 5 :])
    sampler: DistributedSampler[tuple[torch.Tensor, ...]] = DistributedSampler(data)
    loader = DataLoader(data, batch_size=32, sampler=sampler)

    net = nn.Sequential(nn.Linear(64, 2), nn.ReLU(), nn.Linear(2, 10)).to(device)
    model = DistributedDataParallel(net, device_ids=[device.index] if cuda else None)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(loader))
    grower = senn.Grower(model, optimizer, F.cross_entropy, samples=len(data))
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        for inputs, targets in loader:
            optimizer.zero_grad()
            F.cross_entropy(model(inputs.to(device)), targets.to(device)).backward()
            optimizer.step()
            schedule.step()
        if epoch < epochs // 2:
            recent = [[part.to(device) for part in batch] for batch in itertools.islice(loader, 8)]
            for event in grower.grow(recent):  # on all ranks, each with its own batches
                if dist.get_rank() == 0:
                    print(event)
            model = rewrap_ddp(model)
    with torch.no_grad():
        hit = model.module(x[held_out].to(device)).argmax(1) == y[held_out].to(device)
    accuracy = float(hit.float().mean())
    if dist.get_rank() == 0:
        print(f"widths {grower.architecture}, accuracy {accuracy:.3f}")
    dist.destroy_process_group()
    return accuracy


if __name__ == "__main__":
    main()
