"""Is there a first-order gain in wider residual streams, behind norms?

A unit that a norm must not notice enters it as zeros, so that the columns that read it have no gradient. Rounds choose
such units by the rows that write them (`CandidateConfig.stream_units`); here it is measured, without any of senn's
scores, whether that can pay. Hypothesis: born the other way round, with random columns that read it and silent rows
that write it, it changes nothing at the birth, and the gradient of the rows promises as much for its operations as that
of feed-forward units, which are born with random rows and silent columns. Control: feed-forward units of that kind. It
is refuted where a gradient step of the best length on held-out windows brings less than half as much for each
operation.

    SENN_DATA=DIR python benchmarks/stream_width.py --out benchmarks/results/stream_width.json
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from criteria import Results
from torch import Tensor, nn

from senn.flops import forward_flops

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from gpt_model import GPT, Config, Text, loss, optimizers

CONFIG = Config(width=48, head_size=12, heads=4, hidden=128, batch=8)
STEPS = 800
LENGTHS = [0.1 * 2**k for k in range(-4, 6)]
SIZES = {"stream": (4, 16), "feed-forward": (12, 48)}
"""Units that take about as many operations."""


def trained(text: Text, seed: int) -> GPT:
    """A decoder of one layer after some training."""
    torch.manual_seed(seed)
    model, chance = GPT(CONFIG, text.vocabulary), torch.Generator().manual_seed(seed)
    (optimizer,) = optimizers(model, CONFIG)
    for _ in range(STEPS):
        x, y = text.batch(CONFIG.batch, chance)
        optimizer.zero_grad()
        loss(model(x), y).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model


def widened(model: GPT, kind: str, units: int, vocabulary: int) -> tuple[GPT, dict[str, Tensor]]:
    """A wider copy that computes the same, and masks of the silent entries of its new units, by parameter."""
    sizes = {"width": 48 + units} if kind == "stream" else {"hidden": 128 + units}
    wide, old = GPT(replace(CONFIG, **sizes), vocabulary), dict(model.named_parameters())
    silent = {}
    for name, parameter in wide.named_parameters():
        was = old[name]
        if was.shape == parameter.shape:
            parameter.data = was.detach().clone()
            continue
        inside = tuple(slice(0, size) for size in was.shape)
        is_norm, writes = (
            was.dim() == 1,
            name.endswith(("embed.weight", "out.weight", "down.weight")),
        )
        # random numbers of the scale that the parameter has, or zeros where that is the silent side
        drawn = was.mean() if is_norm else torch.randn_like(parameter) * was.std()
        new = torch.zeros_like(parameter) if writes else torch.zeros_like(parameter) + drawn
        new[inside] = was.detach()
        if is_norm:  # the mean of squares is over more units, of which the new ones are zero
            new *= (48 / (48 + units)) ** 0.5
        if writes:
            silent[name] = torch.ones_like(new)
            silent[name][inside] = 0
        parameter.data = new.detach()
    return wide, silent


def measure(model: GPT, text: Text, kind: str, units: int, seed: int) -> dict[str, Any]:
    """What one gradient step of the silent entries brings on other windows, at its best length there."""
    torch.manual_seed(seed)
    wide, silent = widened(model, kind, units, text.vocabulary)
    chance = torch.Generator().manual_seed(1_000 + seed)
    x, y = text.batch(128, chance)
    held_out = text.batch(256, chance)
    own = dict(wide.named_parameters())
    grads = torch.autograd.grad(loss(wide(x), y), [own[name] for name in silent])
    steps = {name: grad * silent[name] for name, grad in zip(silent, grads, strict=True)}
    norm = torch.stack([step.square().sum() for step in steps.values()]).sum().sqrt()
    with torch.no_grad():
        before, born = (float(loss(net(held_out[0]), held_out[1])) for net in (model, wide))
        start, found = {name: own[name].clone() for name in silent}, [born]
        for length in LENGTHS:
            for name, step in steps.items():
                own[name].copy_(start[name] - length * step / norm)
            found.append(float(loss(wide(held_out[0]), held_out[1])))
    more = forward_flops(wide, x[:1]) / forward_flops(model, x[:1]) - 1
    return {"operations": more, "change at birth": born - before, "decrease": born - min(found)}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure what is missing, and print means."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="where the records are kept, as JSON")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    text = Text(Path(os.environ["SENN_DATA"]) / "text" / "tinyshakespeare.txt", CONFIG.context)
    results = Results(arguments.out)
    for seed in range(arguments.seeds):
        model = trained(text, seed)
        for kind, several in SIZES.items():
            for units in several:
                about = {"kind": kind, "units": units, "seed": seed}
                results.add(about, measure(model, text, kind, units, seed))
    for kind, several in SIZES.items():
        for units in several:
            own = [
                one
                for one in results.records.values()
                if (one["kind"], one["units"]) == (kind, units)
            ]
            worth = [one["decrease"] / one["operations"] for one in own]
            print(
                f"{units} {kind} units: {statistics.fmean(worth):.4f} nats for as many operations again"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
