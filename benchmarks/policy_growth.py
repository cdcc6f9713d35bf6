"""Does a policy that grows learn as well as one of the usual size? PPO on classic control tasks, at its defaults.

Hypothesis: grown from two units in each network, the mean reward at the end is within one standard error of that of the
default networks (64-64 each), with fewer parameters, and above that of two fixed units. Refuted if it is below the
former by two, or not above the latter. Random growth is left out: it would need more seeds than two cores can run.

    python benchmarks/policy_growth.py --out benchmarks/results/policy_growth.json
    python benchmarks/policy_growth.py --report benchmarks/results/policy_growth.json

Needs stable-baselines3. Every run is a record of the results; what is there already is not run again.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from criteria import Results

STEPS = {"CartPole-v1": 30_000, "Acrobot-v1": 40_000}
ARMS = {"grown": [2], "two units": [2], "64-64": [64, 64]}
EPISODES = 20


def run(task: str, arm: str, seed: int) -> dict[str, Any]:
    """Train one policy, and measure it in fresh episodes."""
    from stable_baselines3 import PPO
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.evaluation import evaluate_policy

    from senn.integrations.stable_baselines3 import PolicyExpansion

    torch.set_num_threads(1)
    started = time.process_time()
    model = PPO(
        "MlpPolicy",
        task,
        policy_kwargs={"net_arch": ARMS[arm]},
        n_steps=1024,
        seed=seed,
        device="cpu",
    )
    model.learn(STEPS[task], callback=PolicyExpansion() if arm == "grown" else None)
    seconds = time.process_time() - started
    reward, _ = evaluate_policy(model, make_vec_env(task, seed=1_000 + seed), EPISODES)
    return {
        "task": task,
        "arm": arm,
        "seed": seed,
        "reward": float(reward),
        "parameters": sum(one.numel() for one in model.policy.parameters()),
        "networks": model.policy_kwargs["net_arch"],
        "seconds": seconds,
    }


def report(records: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a table: mean reward and standard error over seeds, parameters and processor time."""
    lines = [f"{'task':14}{'arm':12}{'seeds':>6}{'reward':>18}{'parameters':>12}{'seconds':>9}"]
    for task in STEPS:
        for arm in ARMS:
            mine = [one for one in records.values() if (one["task"], one["arm"]) == (task, arm)]
            if not mine:
                continue
            rewards = [one["reward"] for one in mine]
            error = statistics.stdev(rewards) / math.sqrt(len(mine)) if len(mine) > 1 else math.nan
            size, seconds = (
                statistics.fmean(one[key] for one in mine) for key in ("parameters", "seconds")
            )
            reward = f"{statistics.fmean(rewards):.1f} +- {error:.1f}"
            lines.append(f"{task:14}{arm:12}{len(mine):6}{reward:>18}{size:12.0f}{seconds:9.1f}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing, and print what came of it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", nargs="+", choices=STEPS, default=[*STEPS])
    parser.add_argument("--seeds", nargs="+", type=int, default=[*range(5)])
    parser.add_argument("--out", type=Path, help="where the results are kept, as JSON")
    parser.add_argument("--report", type=Path, help="print these results, and run nothing")
    given = parser.parse_args(argv)
    results = Results(given.report or given.out)
    for seed in () if given.report else given.seeds:
        for task in given.tasks:
            for arm in ARMS:
                about = {"task": task, "arm": arm, "seed": seed}
                key = results.key(**about)
                if key not in results.records:
                    results.add(about, run(task, arm, seed))
                    print(key, results.records[key], file=sys.stderr)
    print(report(results.records))
    return 0


if __name__ == "__main__":
    sys.exit(main())
