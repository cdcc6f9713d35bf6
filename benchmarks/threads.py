"""`senn fit` on a quiet machine and on one whose cores are all kept busy by others, side by side in one run.

    python benchmarks/threads.py [--data digits] [--pairs 3] [--threads 1 2] [--sizes] [--out results.json]

Each pair is a run beside nothing and one beside a spinning process per core, one after the other, so that whatever else
the machine does meets both. Arms: `chosen` as the command does it, and the fixed numbers of `--threads`. A run that
takes longer than `--limit` seconds is ended and counts as that long. With `--sizes`, single steps of nets of several
sizes instead, with one thread and with all, from which the threshold of `senn.training.threads` is read.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from senn.flops import forward_flops
from senn.nn import MLP, ConvNet
from senn.training.threads import VARIABLES


@contextmanager
def busy(cores: int) -> Iterator[None]:
    """Context in which so many other processes spin."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(cores)]
    try:
        time.sleep(0.5)
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def fit(data: str, threads: int | None, folder: Path, limit: float) -> tuple[float, Any]:
    """Seconds of training of one run, and the numbers of threads that it records; `limit` if it took longer."""
    command = [sys.executable, "-m", "senn.cli.main", "fit", data, "--quiet", "--out", str(folder)]
    if threads is not None:
        command.append(f"--threads={threads}")
    free = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    try:
        subprocess.run(command, check=True, env=free, timeout=limit)
    except subprocess.TimeoutExpired:
        return limit, None
    results = json.loads((folder / "results.json").read_text())
    return results["seconds"], results["threads"]


def pairs(args: argparse.Namespace) -> list[dict[str, Any]]:
    """One record for each arm."""
    arms = {"chosen": None, **{f"{number} threads": number for number in args.threads}}
    records: dict[str, dict[str, Any]] = {
        arm: {"arm": arm, "quiet": [], "busy": [], "threads": None} for arm in arms
    }
    with tempfile.TemporaryDirectory() as folder:
        for pair in range(args.pairs):
            for arm, number in arms.items():
                record, path = records[arm], Path(folder) / f"{arm}-{pair}"
                seconds, record["threads"] = fit(args.data, number, path / "quiet", args.limit)
                record["quiet"].append(seconds)
                with busy(os.cpu_count() or 1):
                    record["busy"].append(fit(args.data, number, path / "busy", args.limit)[0])
                shown = f"{seconds:.1f} s quiet, {record['busy'][-1]:.1f} s busy"
                print(f"pair {pair}, {arm}: {shown}", file=sys.stderr, flush=True)
    for record in records.values():
        ratios = [b / q for b, q in zip(record["busy"], record["quiet"], strict=True)]
        record["ratio"] = statistics.median(ratios)
    return list(records.values())


def nets() -> Iterator[tuple[str, nn.Module, Tensor]]:
    """Names, nets and batches of several sizes."""
    for width in (64, 128, 256, 512, 1024):
        for rows in (64, 512):
            yield (
                f"64-{width}-{width}-10, {rows} rows",
                MLP(64, (width,) * 2, 10),
                torch.randn(rows, 64),
            )
    for rows in (64, 512):
        yield f"64-(64 x 10)-10, {rows} rows", MLP(64, (64,) * 10, 10), torch.randn(rows, 64)
    for side, stages in ((8, ((16, 16),)), (28, ((16,), (16, 16))), (32, ((32,), (32, 32)))):
        yield (
            f"conv net, side {side}, 64 rows",
            ConvNet(1, stages, 10),
            torch.randn(64, 1, side, side),
        )


def step_seconds(model: nn.Module, x: Tensor, seconds: float = 0.4) -> float:
    """Mean seconds of a step with AdamW, the first left out."""
    model, y = copy.deepcopy(model), torch.randint(10, (len(x),))
    optimizer = torch.optim.AdamW(model.parameters())
    times: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 4:
        began = time.perf_counter()
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        times.append(time.perf_counter() - began)
    return statistics.fmean(times[1:])


def sizes() -> list[dict[str, Any]]:
    """One record for each net: work of a step, and its seconds with one thread and with all, quiet and busy."""
    most, records = torch.get_num_threads(), []
    for name, model, x in nets():
        weights = sum(parameter.dim() > 1 for parameter in model.parameters())
        work = forward_flops(model, x[:1]) * len(x) / weights
        record: dict[str, Any] = {"net": name, "mflop_per_weight": work / 1e6}
        for number in (1, most):
            torch.set_num_threads(number)
            record[f"quiet_{number}"] = step_seconds(model, x)
            with busy(os.cpu_count() or 1):
                record[f"busy_{number}"] = step_seconds(model, x)
        record["quiet_ratio"] = record[f"quiet_{most}"] / record["quiet_1"]
        record["busy_ratio"] = record[f"busy_{most}"] / record["busy_1"]
        records.append(record)
    return sorted(records, key=lambda record: record["mflop_per_weight"])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="digits")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--threads", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--limit", type=float, default=120.0)
    parser.add_argument("--sizes", action="store_true")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    found: dict[str, Any] = {"cores": os.cpu_count(), "load_before": os.getloadavg()[0]}
    if args.sizes:
        found["sizes"] = sizes()
        print(f"{'net':28} MFLOP per weight  all / one thread, quiet   busy")
        for one in found["sizes"]:
            print(
                f"{one['net']:28} {one['mflop_per_weight']:16.2f} {one['quiet_ratio']:24.2f} {one['busy_ratio']:6.2f}"
            )
    else:
        found |= {"data": args.data, "arms": pairs(args)}
        print(f"{'arm':12} quiet s   busy s   busy / quiet (medians)")
        for arm in found["arms"]:
            quiet, loaded = (statistics.median(arm[name]) for name in ("quiet", "busy"))
            print(f"{arm['arm']:12} {quiet:7.2f}  {loaded:7.2f}   {arm['ratio']:.2f}")
    if args.out:
        args.out.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
