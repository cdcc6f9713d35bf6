"""Is a GPT that grows while it trains worth its operations, all of them counted?

Hypothesis: at equal operations, looks included, the decoder that `examples/grow_gpt.py` grows has a lower validation
loss than the best of a small grid of fixed depths and widths, than its own final size trained from the start, and than
growth without a criterion. Controls: `schedule` doubles widths and then depth at fixed moments, `random` makes as many
changes as the grown run, at the same moments, of places and units drawn. It is refuted where the best fixed size is
ahead by more than two standard errors of the paired difference; the criterion is, where `schedule` or `random` are.

Arms:

- `grown`: from one layer of four heads of 12; `senn.Grower` decides when and where.
- `fixed 1x48`, `2x48`, `3x48`, `4x48`, `1x64`: layers x width of the stream, with four heads. The best one counts.
- `scratch`: the final size of the grown run of that seed, from the start.
- `schedule`: from one layer of two heads and 64 feed-forward units; these double at a fifth, layers at half of the
  operations; silent births.
- `random`: as above; silent births.
- `depth KIND`: one layer of full width, which gets a second one at a fifth, as it is told; born silent, stepped or
  plain, or shuffled (random weights of the same scale, silent). What growth could bring if the moment were known: the
  fifth was chosen among a tenth, a fifth, three tenths and two fifths on seeds 100 and 101. At the first budget only.

Learning rates follow the operations that are spent. B is 2.5e11 operations, near the largest budget at which one layer
is the best fixed depth; other budgets are multiples of it. All settings were chosen on seeds 100 and 101, but for one:
two former rules of `grown`, which asked for a gain above a price and for any gain, added nothing on some of the first
five seeds at 2 B, where copies of blocks score within the noise; not to ask for it is a third touch of these. Every
record is written as soon as it is complete; what is there is not run again.

    SENN_DATA=DIR python benchmarks/gpt.py --seeds 5 --out benchmarks/results/gpt.json
"""

from __future__ import annotations

import argparse
import os
import random
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from criteria import Results
from equal_flops import commit
from flop_meter import CountOperations

import senn

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from gpt_model import Block, Config, Text, optimizers
from grow_gpt import Run, size

BUDGET = 2.5e11
FULL = Config(width=48, head_size=12, heads=4, hidden=128, batch=8, look_windows=48)
SMALL = replace(FULL, heads=2, hidden=64)
FIXED = {
    "fixed 1x48": FULL,
    "fixed 2x48": replace(FULL, layers=2),
    "fixed 3x48": replace(FULL, layers=3),
    "fixed 4x48": replace(FULL, layers=4),
    "fixed 1x64": replace(FULL, width=64, head_size=16, hidden=170),
}
KINDS = ("silent", "stepped", "plain", "shuffled")
FEW = 8
"""Windows that are looked at where nothing is decided by them."""


class Told(senn.Policy):
    """Makes one change that somebody else has decided on.

    Args:
        place: where.
        units: how many.
    """

    birth = "silent"

    def __init__(self, place: str, units: int) -> None:
        self.place, self.units = place, units

    def choose(self, candidates: Any, accepted: Any) -> Any:
        """The next unit there."""
        own = (one for one in candidates if one.place == self.place and one.kind != "prune")
        return next(own, None) if len(accepted) < self.units else None


def change(run: Run, place: str, *, birth: str | None = None, new_blocks: str = "copied") -> None:
    """Double a place or copy a block, by a grower that is told to."""
    groups = {group.name: group.width for group in run.grower.graph.groups} if place else {}
    units = groups.get(place, 1)
    grower = run.grower
    kept = grower.policy, grower.candidate_config, grower.birth
    grower.policy, grower.birth = Told(place, units), birth
    grower.candidate_config = senn.CandidateConfig(
        units=units, residual_units=0, identity_bases=0, new_blocks=new_blocks
    )
    windows = FEW if birth is None else run.config.look_windows
    events = grower.grow([run.text.batch(windows, run.look_generator)])
    grower.policy, grower.candidate_config, grower.birth = kept
    run.growths += [f"{run.progress:.2f} {event}" for event in events]


def places(run: Run) -> list[str]:
    """Places that can be doubled, and blocks that can be copied."""
    if run.grower._graph is None:
        run.grower.observe(*run.text.batch(FEW, run.look_generator))
        run.grower.reset()
    graph = run.grower.graph
    widths = [group.name for group in graph.groups if group.name.startswith("blocks.")]
    return widths + [block.module for block in graph.residual_blocks]


def grown(config: Config, text: Text, seed: int, like: Any) -> Run:
    """The run of the example."""
    run = fresh(replace(FULL, budget=config.budget), text, seed)
    run.run()
    return run


def schedule(config: Config, text: Text, seed: int, like: Any) -> Run:
    """Widths, then depth, at fixed moments."""
    run = fresh(replace(SMALL, budget=config.budget), text, seed)

    def look() -> None:
        is_first = run.progress < 0.4
        for place in places(run):
            if is_first == ("attention" in place or "feed" in place):
                change(run, place)

    run.run(look, [0.2, 0.5])
    return run


def random_places(config: Config, text: Text, seed: int, like: Any) -> Run:
    """As many changes as the grown run made, at the same moments, of places drawn."""
    run = fresh(replace(FULL, budget=config.budget), text, seed)
    chance = random.Random(seed)
    moments = [float(text.split()[0]) for text in like["growths"]]
    run.run(lambda: change(run, chance.choice(places(run))), moments)
    return run


def scratch(config: Config, text: Text, seed: int, like: Any) -> Run:
    """The final size of the grown run."""
    run = fresh(replace(FULL, budget=config.budget), text, seed)
    sizes = [one.split("h/") for one in like["sizes"].split()]
    torch.manual_seed(seed)
    run.model.blocks = torch.nn.ModuleList(
        Block(replace(FULL, heads=int(heads), hidden=int(hidden))) for heads, hidden in sizes
    )
    run.optimizers, run.flops = optimizers(run.model, FULL), run.forward_flops()
    run.run(moments=[])
    return run


def fixed(name: str) -> Callable[..., Run]:
    """A size of the grid."""

    def arm(config: Config, text: Text, seed: int, like: Any) -> Run:
        run = fresh(replace(FIXED[name], budget=config.budget), text, seed)
        run.run(moments=[])
        return run

    return arm


def depth(kind: str) -> Callable[..., Run]:
    """A second layer at a fifth, born in one way."""

    def arm(config: Config, text: Text, seed: int, like: Any) -> Run:
        run = fresh(replace(FULL, budget=config.budget), text, seed)
        is_shuffled = kind == "shuffled"
        birth, weights = ("silent", kind) if is_shuffled else (kind, "copied")
        run.run(lambda: change(run, places(run)[-1], birth=birth, new_blocks=weights), [0.2])
        return run

    return arm


def fresh(config: Config, text: Text, seed: int) -> Run:
    """A run whose looks are counted with all their factorizations."""
    return Run(config, text, seed=seed, counter=CountOperations)


ARMS: dict[str, Callable[..., Run]] = {
    "grown": grown,
    **{name: fixed(name) for name in FIXED},
    "scratch": scratch,
    "schedule": schedule,
    "random": random_places,
    **{f"depth {kind}": depth(kind) for kind in KINDS},
}


def measure(
    results: Results, text: Text, arm: str, *, budget: float, seed: int, about: dict[str, str]
) -> dict[str, Any]:
    """One record, unless it is there already."""
    named = {"arm": arm, "budget": budget, "seed": seed}
    key = Results.key(**named)
    if key in results.records:
        return results.records[key]
    is_like = arm in ("scratch", "random")
    like = measure(results, text, "grown", budget=budget, seed=seed, about=about) if is_like else {}
    started, clock = time.process_time(), time.perf_counter()
    run = ARMS[arm](replace(FULL, budget=budget * BUDGET), text, seed, like)
    spent = run.training + run.looking
    figures = {
        "loss": run.curve[-1][-1],
        "parameters": size(run.model),
        "sizes": run.model.sizes(),
        "flops": spent,
        "looking": run.looking / spent,
        "steps": run.steps,
        "growths": run.growths,
        "curve": run.curve,
        "cpu_seconds": time.process_time() - started,
        "deciding": run.look_seconds / (time.perf_counter() - clock),
    }
    record = results.add(named, {**figures, **about})
    print(
        f"{key}: {record['loss']:.4f}, {record['parameters']:,} parameters, {record['sizes']}",
        flush=True,
    )
    return record


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing, seed by seed, so that all arms have as many."""
    given = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=[*ARMS])
    parser.add_argument("--budgets", nargs="+", type=float, default=[1.0, 2.0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="where the records are kept, as JSON")
    arguments = parser.parse_args(given)
    torch.set_num_threads(1)
    command = f"python benchmarks/gpt.py {shlex.join(given)}".strip()
    about = {"commit": commit(), "command": command}
    results = Results(arguments.out)
    text = Text(Path(os.environ["SENN_DATA"]) / "text" / "tinyshakespeare.txt", FULL.context)
    for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
        for budget in arguments.budgets:
            for arm in arguments.arms:
                # The kinds of births are compared at one budget.
                if not arm.startswith("depth") or budget == arguments.budgets[0]:
                    measure(results, text, arm, budget=budget, seed=seed, about=about)
    return 0


if __name__ == "__main__":
    sys.exit(main())
