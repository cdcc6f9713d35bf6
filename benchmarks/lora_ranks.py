"""Ranks of LoRA adapters: found while training by `senn.peft`, against uniform ones, AdaLoRA, EVA and GoRA's rule.

    python benchmarks/lora_ranks.py [--seeds 5] [--arms grown uniform ...] [--ranks 8] [--uniform-ranks 32] [--test]
                                    [--out FILE]

A decoder of .4 million parameters is pre-trained on plays and adapted to the reference of the Python language
(`lora_tasks.py`). `--ranks` are budgets: as many parameters as that rank has in every layer. Each record has the loss
on validation text, with `--test` that on test text as well, the CPU seconds of the run, looking included, and the
number of parameters of the adapters at its end. Every arm has the same batches, the same scaling of its adapters and a
learning rate that was chosen for it on other seeds (`LR`).

A run that was broken off goes on where its `--out` ends.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lora_tasks as tasks
import torch
from lora_arms import ARMS, Setting

LR = dict.fromkeys(ARMS, 16e-3) | {"grown": 8e-3}
"""Learning rate of each arm: the best that was tried (8, 16, for some 30 thousandths) on validation text, seed 100."""

WIDE_LR = {("uniform", 32): 8e-3}
"""The same for an arm at a rank where the arm's own rate diverges."""

OPTIONS: dict[str, dict[str, Any]] = {"grown": {"rounds": [0.0, 0.15]}}
"""Further choices of an arm, made in the same way."""


def train(arm: str, given: Setting) -> tuple[torch.nn.Module, float]:
    """Train one arm; the CPU seconds that it takes."""
    start = time.process_time()
    adapted = ARMS[arm](given)
    optimizer, chance = adapted.optimizer, torch.Generator().manual_seed(given.seed)
    warm = given.steps // 20
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm, (given.steps - step) / (given.steps - warm))
    )
    adapted.model.train()
    for step in range(given.steps):
        adapted.before_step(step)
        x, y = given.text.batch(chance)
        optimizer.zero_grad()
        (tasks.loss(adapted.model(x), y) + adapted.penalty()).backward()
        optimizer.step()
        adapted.after_step(step)
        schedule.step()
    return adapted.model, time.process_time() - start


def adapter_ranks(model: torch.nn.Module) -> dict[str, int]:
    """Rank of each adapted layer; of AdaLoRA that which its masks leave."""
    found = {}
    for name, layer in model.get_base_model().named_modules():
        if hasattr(layer, "lora_E"):
            found[name] = int((layer.lora_E["default"].detach() != 0).sum())
        elif hasattr(layer, "lora_A"):
            found[name] = len(layer.lora_A["default"].weight)
    return found


def parameters(model: torch.nn.Module) -> int:
    """Parameters of all adapters."""
    layers = dict(model.get_base_model().named_modules())
    return sum(
        rank * (layers[name].in_features + layers[name].out_features)
        for name, rank in adapter_ranks(model).items()
    )


def measure(arm: str, given: Setting, *, test: bool) -> dict[str, Any]:
    """One record."""
    model, seconds = train(arm, given)
    record = {
        "arm": arm, "rank": given.rank, "seed": given.seed, "lr": given.lr, "steps": given.steps,
        "options": {key: one for key, one in given.options.items() if key != "ranks"},
        "validation": tasks.mean_loss(model, given.text.validation),
        "cpu_seconds": seconds, "parameters": parameters(model), "ranks": adapter_ranks(model),
    }  # fmt: skip
    if test:
        record["test"] = tasks.mean_loss(model, given.text.test)
    return record


def ranks_found(records: Mapping[str, Any], rank: int, seed: int) -> dict[str, int] | None:
    """Ranks that the grown run of a seed ended with."""
    for one in records.values():
        if (one["arm"], one["rank"], one["seed"]) == ("grown", rank, seed):
            found: dict[str, int] = one["ranks"]
            return found
    return None


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is asked for, and print a line for each run."""
    given = [*(sys.argv[1:] if argv is None else argv)]
    arguments = parse(given)
    torch.set_num_threads(1)
    records = (
        json.loads(arguments.out.read_text()) if arguments.out and arguments.out.exists() else {}
    )
    weights, text = tasks.pretrained(arguments.base), tasks.reference()
    for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
        jobs = [(arm, rank) for rank in arguments.ranks for arm in arguments.arms]
        jobs += [("uniform", rank) for rank in arguments.uniform_ranks]
        for arm, rank in jobs:
            for lr in arguments.lr or [WIDE_LR.get((arm, rank), LR[arm])]:
                options = {**OPTIONS.get(arm, {}), **json.loads(arguments.options)}
                key = f"{arm} {rank} {seed} {lr} {json.dumps(options)}"
                if arm == "found_ranks":
                    options["ranks"] = ranks_found(records, rank, seed)
                if key in records or options.get("ranks", True) is None:
                    continue
                setting = Setting(
                    weights=weights, text=text, rank=rank, seed=seed,
                    steps=arguments.steps, lr=lr, options=options,
                )  # fmt: skip
                one = records[key] = measure(arm, setting, test=arguments.test)
                one["command"] = f"python benchmarks/lora_ranks.py {shlex.join(given)}"
                print(
                    f"{key}: validation {one['validation']:.4f}, {one['parameters']:,} parameters, "
                    f"{one['cpu_seconds']:.1f} CPU seconds",
                    flush=True,
                )
                if arguments.out:
                    arguments.out.write_text(json.dumps(records, indent=1))
    return 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=[*ARMS])
    parser.add_argument("--ranks", nargs="+", type=int, default=[8])
    parser.add_argument(
        "--uniform-ranks",
        nargs="*",
        type=int,
        default=[32],
        help="further budgets of the uniform arm",
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--lr", nargs="+", type=float, help="learning rates to try")
    parser.add_argument("--options", default="{}", help="further choices of the arms, as JSON")
    parser.add_argument("--test", action="store_true", help="score on test text as well")
    parser.add_argument("--base", type=Path, default=Path("runs/lora_base.pt"))
    parser.add_argument("--out", type=Path, help="where the records are kept, as JSON")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
