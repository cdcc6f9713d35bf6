"""What a consideration sends between processes, and how two processes compare with one on the same samples.

    python benchmarks/communication.py [--repeats 5] [--out benchmarks/results/communication.json]

Bytes are counted where they are sent, by ring algorithms: a sum of n bytes over W ranks makes each send 2 (W - 1) / W
n, gathering what ranks hold W - 1 times what it holds itself. The float32 nets are looked at with 1,024 samples,
spread evenly over the ranks: one full consideration (width, depth, pruning) without a change of the model.
`calculated` are the bytes of the moments alone, 2 folds of (columns^2 + outputs columns + outputs^2) numbers a map.
Seconds are CPU time of the process that took longest, medians; worlds of one, two and three processes are taken in
turn. All processes run with one thread, over gloo on this machine.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

import senn
from senn.collectives import Communicator, default_communicator
from senn.nn import ConvNet

SAMPLES = 1024


def small_mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10)
    )


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)
    )


def conv_net() -> nn.Module:
    return ConvNet(3, ((16, 16), (32, 32)), 10)


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "64-32-32-10": (small_mlp, (64,)),
    "784-256-256-10": (mlp, (784,)),
    "convolutions 16-16-32-32": (conv_net, (3, 16, 16)),
}


def growth_round(name: str, communicator: Communicator) -> dict[str, Any]:
    """One consideration of this rank's part of the joint batch."""
    torch.manual_seed(0)
    build, shape = NETS[name]
    model = build()
    generator = torch.Generator().manual_seed(1)
    x, y = (
        torch.randn(SAMPLES, *shape, generator=generator),
        torch.randint(10, (SAMPLES,), generator=generator),
    )
    part = communicator.local_slice(SAMPLES)
    grower = senn.Grower(model, None, F.cross_entropy, samples=50_000, communicator=communicator)
    grower.observe(x[part][:2], y[part][:2])  # the analysis of the model is not what is measured
    grower.reset()
    grower.observe(x[part], y[part])
    grower.reset()
    before, began, wall = dict(communicator.sent), time.process_time(), time.perf_counter()
    grower.observe(x[part], y[part])
    looked = time.process_time()
    session = grower._session
    grower.score_candidates()
    assert session is not None
    return {
        "sent": {key: value - before.get(key, 0.0) for key, value in communicator.sent.items()},
        "look_seconds": looked - began,
        "seconds": time.process_time() - began,
        "wall_seconds": time.perf_counter() - wall,
        "parameters": sum(p.numel() for p in model.parameters()),
        "maps": [_size(name, session) for name in session.maps],
    }


def _size(name: str, session: Any) -> tuple[int, int, int]:
    """Existing columns, candidate columns and outputs of a map."""
    columns, one = session._columns[name], session.maps[name]
    new = sum(own.numel() for own in (*columns.groups.values(), *columns.layers))
    weight: Tensor = session.model.get_parameter(one.weight)
    return columns.existing, new, weight.shape[one.out_dim]


def calculated(maps: list[tuple[int, int, int]], size: int) -> float:
    """Bytes of the moments that a rank sends, float32: those of the data's own input moment are left out."""
    numbers = sum((c + p) ** 2 + m * (c + p) + m * m for c, p, m in maps)
    return 2 * (size - 1) / size * 2 * 4 * numbers


def _child(rank: int, size: int, port: int, answers: Any, name: str) -> None:
    torch.set_num_threads(1)
    communicator = Communicator()
    if size > 1:
        store = dist.TCPStore("127.0.0.1", port, is_master=False)
        dist.init_process_group(
            "gloo", store=store, rank=rank, world_size=size, timeout=timedelta(seconds=60)
        )
        communicator = default_communicator()
    answers.put((rank, growth_round(name, communicator)))
    if size > 1:
        dist.barrier()
        dist.destroy_process_group()


def measured(name: str, size: int) -> list[dict[str, Any]]:
    """What the ranks of one run say."""
    context = multiprocessing.get_context("spawn")
    store, answers = (
        dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False),
        context.Queue(),
    )
    children = [
        context.Process(target=_child, args=(rank, size, store.port, answers, name))
        for rank in range(size)
    ]
    for child in children:
        child.start()
    found = dict(answers.get(timeout=300) for _ in children)
    for child in children:
        child.join()
    return [found[rank] for rank in range(size)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    results: dict[str, Any] = {
        "samples": SAMPLES,
        "torch": torch.__version__,
        "repeats": args.repeats,
        "nets": [],
    }
    for name in NETS:
        runs: dict[int, list[list[dict[str, Any]]]] = {1: [], 2: [], 3: []}
        for _ in range(args.repeats):
            for size in runs:
                runs[size].append(measured(name, size))
        one = runs[2][0][0]
        record: dict[str, Any] = {
            "net": name,
            "parameters": one["parameters"],
            "maps": one["maps"],
            "worlds": [],
        }
        for size, repeats in runs.items():
            slowest = [max(rank["seconds"] for rank in repeat) for repeat in repeats]
            looks = [max(rank["look_seconds"] for rank in repeat) for repeat in repeats]
            record["worlds"].append(
                {
                    "ranks": size,
                    "sent": repeats[0][-1]["sent"],
                    "calculated": calculated(one["maps"], size),
                    "seconds": statistics.median(slowest),
                    "look_seconds": statistics.median(looks),
                    "repeats": len(repeats),
                }
            )
        results["nets"].append(record)
        for world in record["worlds"]:
            sent = sum(world["sent"].values())
            print(
                f"{name:26} {world['ranks']} ranks: {sent / 1e6:8.3f} MB sent by each "
                f"({sent / record['parameters']:6.1f} bytes a parameter; moments calculated "
                f"{world['calculated'] / 1e6:.3f} MB), look {world['look_seconds']:.3f} s, all {world['seconds']:.3f} s"
            )
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
