"""What a growth round sends between processes, and how several processes compare with one on the same samples.

    python benchmarks/communication.py [--repeats 3] [--before TREE] [--out benchmarks/results/communication.json]

Bytes are counted where they are sent, in the mean over ranks: a sum of n bytes over W ranks makes each send
2 (W - 1) / W n (ring all-reduce), gathering what ranks hold W - 1 times what it holds itself, a sum that one rank gets
half of the former. The float32 nets are looked at with 1,024 rows, 128 images or 32 sequences of 32 tokens, spread
evenly over the ranks: one full round (width, depth, pruning) without a change of the model; in a world of two
also with what `RoundConfig` offers. With `--before`, a checkout of another version is measured beside this one, world
by world in turn. `decisions` are what a grower without a past decides on these samples.

`calculated` are the bytes of the factors alone by the formula of docs/several_processes.md: 2 folds of a triangle of
(c + p)^2, m (c + p) and a triangle of m^2 for a map of c columns, p candidate columns and m outputs, all of which each
rank sends (W - 1) / W, and the sums of 1 / W of them once more. Seconds are CPU time of the process that took longest,
medians. All processes run with one thread, over gloo on this machine. `store_seconds` is the CPU time of one meeting of
so many ranks in a store, its server and all clients together, where each rank reads all messages and where rank 0 joins
them.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import senn
from senn.collectives import Communicator, default_communicator
from senn.nn import ConvNet

dist: Any = torch.distributed
ROOT = Path(__file__).parents[1]
WORLDS = (1, 2, 4)
TOKENS = 50


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


class Layer(nn.Module):
    """Causal attention with several heads, and a feed-forward layer."""

    def __init__(self, d: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.qkv, self.proj = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.fc, self.out = nn.Linear(d, 4 * d), nn.Linear(4 * d, d)

    def forward(self, x: Tensor) -> Tensor:
        """Add what attention and the feed-forward layer say to the stream."""
        parts = self.qkv(self.norm(x)).chunk(3, 2)
        q, k, v = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in parts)
        read = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.proj(read.transpose(1, 2).flatten(2))
        result: Tensor = x + self.out(F.gelu(self.fc(self.norm2(x))))
        return result


def decoder(d: int = 64) -> nn.Module:
    return nn.Sequential(
        nn.Embedding(TOKENS, d), Layer(d, 4), Layer(d, 4), nn.LayerNorm(d), nn.Linear(d, TOKENS)
    )


def token_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs.flatten(0, 1), targets.flatten())


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "64-32-32-10": (small_mlp, (1024, 64)),
    "784-256-256-10": (mlp, (1024, 784)),
    "convolutions 16-16-32-32": (conv_net, (128, 3, 16, 16)),
    "decoder, width 64, 2 layers": (decoder, (32, 32)),
}
SETTINGS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "gradients in bfloat16": {"reduce_dtype": torch.bfloat16},
    "and a quarter of the maps": {"reduce_dtype": torch.bfloat16, "maps_per_round": 0.25},
}


def samples(name: str) -> tuple[Tensor, Tensor]:
    """The joint batch: labels that a random net of the same kind gives, and tokens that repeat those before."""
    build, shape = NETS[name]
    generator = torch.Generator().manual_seed(1)
    if name.startswith("decoder"):
        x = torch.randint(TOKENS, shape, generator=generator)
        return x, (x + x.roll(1, 1)) % TOKENS
    torch.manual_seed(5)
    x = torch.randn(shape, generator=generator)
    with torch.no_grad():
        return x, build().eval()(x).argmax(1)


def make(name: str, communicator: Communicator, settings: dict[str, Any]) -> senn.Grower:
    torch.manual_seed(0)
    model = NETS[name][0]()
    loss = token_loss if name.startswith("decoder") else F.cross_entropy
    arguments: dict[str, Any] = {"samples": 50_000, "communicator": communicator}
    if settings:
        arguments["round_config"] = senn.RoundConfig(**settings)
    if name.startswith("decoder"):
        arguments["ignore"] = ["0", "4"]  # the embedding and the output layer
    optimizer = torch.optim.Adam(model.parameters())
    return senn.Grower(model, optimizer, loss, **arguments)


def growth_round(
    name: str, communicator: Communicator, settings: dict[str, Any], repeats: int
) -> dict[str, Any]:
    """Rounds of this rank's part of the joint batch, and what the last one decides."""
    x, y = samples(name)
    part = communicator.local_slice(len(x))
    grower = make(name, communicator, settings)
    grower.observe(x[part][:2], y[part][:2])  # the analysis of the model is not what is measured
    grower.reset()
    grower.observe(x[part], y[part])
    grower.reset()
    looks, totals = [], []
    for _ in range(repeats):
        before, began = dict(communicator.sent), time.process_time()
        turn = meetings(communicator)
        grower.observe(x[part], y[part])
        looks.append(time.process_time() - began)
        session = grower._session
        grower.score_candidates()
        totals.append(time.process_time() - began)
        sent = {key: value - before.get(key, 0.0) for key, value in communicator.sent.items()}
        turns = meetings(communicator) - turn
        assert session is not None
        sizes = [_size(one, session) for one in session.maps]
        grower.reset()
    decisions: list[list[Any]] = []
    if communicator.size == 2 and "maps_per_round" not in settings:  # on a grower without a past
        grower = make(name, communicator, settings)
        grower.grow([(x[part], y[part])])
        assert grower.last_round is not None
        for one in grower.last_round.accepted:
            chosen = one.candidate
            decisions.append([chosen.kind, chosen.place, chosen.detail, chosen.width])
    return {
        "sent": sent,
        "meetings": turns,
        "look_seconds": statistics.median(looks),
        "seconds": statistics.median(totals),
        "parameters": sum(p.numel() for p in NETS[name][0]().parameters()),
        "maps": sizes,
        "decisions": decisions,
    }


def meetings(communicator: Communicator) -> int:
    """Number of meetings so far."""
    return 0 if communicator.is_single else communicator._rendezvous.turn  # type: ignore[attr-defined]


def _size(name: str, session: Any) -> tuple[int, int, int]:
    """Existing columns, candidate columns and outputs of a map."""
    columns, one = session._columns[name], session.maps[name]
    new = sum(own.numel() for own in (*columns.groups.values(), *columns.layers))
    weight: Tensor = session.model.get_parameter(one.weight)
    return columns.existing, new, weight.shape[one.out_dim]


def calculated(maps: list[tuple[int, int, int]], size: int, number: int = 4) -> float:
    """Bytes of the factors that a rank sends, in the mean over ranks; a number of a gradient takes so many."""

    def triangle(n: int) -> int:
        return n * (n + 1) // 2

    covariances = 2 * sum(triangle(c + p) + triangle(m) for c, p, m in maps)
    gradients = 2 * sum(m * (c + p) for c, p, m in maps)
    shares = 4 * covariances + number * gradients + 4 * (covariances + gradients) / size
    return (size - 1) / size * shares


def child(rank: int, size: int, port: int, repeats: int, names: list[str]) -> None:
    """One rank of a world, which runs everything and writes what it found."""
    torch.set_num_threads(1)
    communicator = Communicator()
    if size > 1:
        store = dist.TCPStore("127.0.0.1", port, is_master=False)
        dist.init_process_group(
            "gloo", store=store, rank=rank, world_size=size, timeout=timedelta(seconds=60)
        )
        communicator = default_communicator()
    found = {
        name: {
            setting: growth_round(name, communicator, SETTINGS[setting], repeats)
            for setting in names
        }
        for name in NETS
    }
    print(json.dumps(found))
    if size > 1:
        dist.barrier()
        dist.destroy_process_group()


def measured(size: int, repeats: int, tree: Path, names: list[str]) -> list[dict[str, Any]]:
    """What the ranks of one world say, in the version that a tree holds."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    environment = {**os.environ, "PYTHONPATH": str(tree / "src"), "OMP_NUM_THREADS": "1"}
    numbers = [str(size), str(store.port), str(repeats)]
    children = [
        subprocess.Popen(
            [sys.executable, __file__, "--child", str(rank), *numbers, *names],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]
    return [json.loads(one.communicate()[0].splitlines()[-1]) for one in children]


def summary(ranks: list[dict[str, Any]], size: int, setting: str) -> dict[str, Any]:
    """One world's figures of one net: means of bytes over ranks, seconds of the slowest."""
    sent: dict[str, float] = {}
    for rank in ranks:
        for key, value in rank["sent"].items():
            sent[key] = sent.get(key, 0.0) + value / size
    number = 4 if SETTINGS[setting].get("reduce_dtype") is None else 2
    return {
        "ranks": size,
        "sent": sent,
        "most_sent": max(sum(rank["sent"].values()) for rank in ranks),
        "calculated": calculated(ranks[0]["maps"], size, number),
        "meetings": ranks[0]["meetings"],
        "seconds": max(rank["seconds"] for rank in ranks),
        "look_seconds": max(rank["look_seconds"] for rank in ranks),
        "decisions": ranks[0]["decisions"],
    }


def store_seconds(ranks: int, *, is_joined: bool, repeats: int = 3) -> float:
    """CPU seconds of one meeting in a store: all clients and the server, in this process."""
    server = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    clients = [dist.TCPStore("127.0.0.1", server.port, is_master=False) for _ in range(ranks)]
    timeout, began = timedelta(seconds=45), 0.0
    for turn in range(repeats + 1):
        if turn == 1:  # connections are made in the first one
            began = time.process_time()
        keys, joined = [f"{turn}/{rank}" for rank in range(ranks)], f"{turn}/all"
        for client, key in zip(clients, keys, strict=True):
            client.set(key, "null")
        for client in clients[:1] if is_joined else clients:
            client.wait(keys, timeout)
            texts = client.multi_get(keys)
        if is_joined:
            clients[0].set(joined, json.dumps([one.decode() for one in texts]))
            for client in clients[1:]:
                client.wait([joined], timeout)
                client.get(joined)
    return (time.process_time() - began) / repeats


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--before", type=Path, help="checkout of another version")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    trees = {"now": (ROOT, [*SETTINGS])}
    if args.before is not None:
        trees = {"before": (args.before.resolve(), ["as it is"]), **trees}
    nets: dict[str, Any] = {name: {"net": name, "worlds": []} for name in NETS}
    for size in WORLDS:
        for version, (tree, settings) in trees.items():
            settings = settings if size == 2 else settings[:1]
            found = measured(size, args.repeats, tree, settings)
            for name, net in nets.items():
                for setting in settings:
                    ranks = [rank[name][setting] for rank in found]
                    net |= {key: ranks[0][key] for key in ("parameters", "maps") if key not in net}
                    one = {"version": version, "setting": setting, **summary(ranks, size, setting)}
                    net["worlds"].append(one)
                    whole = sum(one["sent"].values()) / 1e6
                    print(
                        f"{name:28} {version:6} {setting:26} {size} ranks: {whole:8.3f} MB sent, factors calculated "
                        f"{one['calculated'] / 1e6:8.3f} MB, {one['meetings']} meetings, look "
                        f"{one['look_seconds']:.3f} s, all {one['seconds']:.3f} s",
                        flush=True,
                    )
    results = {
        "torch": torch.__version__,
        "repeats": args.repeats,
        "nets": list(nets.values()),
        "store_seconds": {
            name: {str(ranks): store_seconds(ranks, is_joined=is_joined) for ranks in (8, 64, 512)}
            for name, is_joined in (("each reads all", False), ("one joins", True))
        },
    }
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        rank, size, port, repeats = map(int, sys.argv[2:6])
        child(rank, size, port, repeats, sys.argv[6:])
    else:
        main()
