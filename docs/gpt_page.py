"""Section of docs/results.md on a GPT that is grown while it trains; called by docs/results.py."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from mean_error import mean_error

Table = Callable[[Sequence[str], Sequence[Sequence[object]]], str]
Record = Mapping[str, Any]

NAMES = {
    "grown": "grown by `senn`",
    "scratch": "its final size from the start",
    "schedule": "grown by schedule (control)",
    "random": "grown at random places (control)",
}
KINDS = {
    "depth silent": "silent copy",
    "depth stepped": "copy with a step",
    "depth plain": "plain copy",
    "depth shuffled": "random weights of the same scale, silent",
}


SEEN = 5
"""Seeds below this had been looked at before the last rule of growth was written."""


def of(records: Sequence[Record], arm: str, budget: float) -> dict[int, Record]:
    """Records of one arm at one budget, by seed."""
    return {one["seed"]: one for one in records if (one["arm"], one["budget"]) == (arm, budget)}


def gpt(stored: Callable[[str], Any], exists: Callable[[str], bool], table: Table) -> Iterator[str]:
    """Losses at equal operations; nothing where no results are stored."""
    if not exists("gpt"):
        return
    records: list[Record] = [*stored("gpt").values()]
    commands = sorted({one["command"] for one in records})
    yield "## A GPT grown while it trains\n\n" + "\n\n".join(f"`{one}`" for one in commands) + "\n"
    yield (
        "A decoder of characters (rotary positions, RMSNorm, SwiGLU) on Shakespeare's plays, windows of 64, batches of "
        "8, AdamW at a constant rate with a decay over the last three tenths. All arms of a budget have the same "
        "operations, looks included. The grown runs begin with one layer of four heads of 12 and 128 feed-forward "
        "units; the block with the best score is copied if each parameter then still sees fifteen tokens. "
        "Fixed sizes are named by layers and width of the stream, and have four heads. Nats a character on 256 "
        "validation windows; differences are paired by seed, **below 0 the grown net is better**. Mean ± standard "
        "error where there are several seeds. "
        "Settings of growth were chosen on seeds 100 and 101, but for the rule by which a layer is added: two former "
        "ones, which asked for a clear or for any gain, added none on some of the seeds 0 to 4 at 2 B, since the first "
        "step of a copy is worth a thousandth of a nat there. The last rule was written after that; seeds from 5 on "
        "hadn't been seen. With one or two seeds, take it as a hint.\n"
    )
    budgets = sorted({one["budget"] for one in records if not one["arm"].startswith("depth")})
    for budget in budgets:
        yield from _budget(records, budget, table)
    yield from _curves(records, budgets, table)
    yield from _kinds(records, table)
    if exists("stream_width"):
        yield from _streams([*stored("stream_width").values()], table)


def _budget(records: Sequence[Record], budget: float, table: Table) -> Iterator[str]:
    """All arms at one budget, and the verdict."""
    grown = of(records, "grown", budget)
    fixed = sorted({one["arm"] for one in records if one["arm"].startswith("fixed")})
    arms = [arm for arm in ("grown", *fixed, *list(NAMES)[1:]) if of(records, arm, budget)]
    rows = []
    for arm in arms:
        own = of(records, arm, budget)
        sizes = ", ".join(dict.fromkeys(one["sizes"] for one in own.values()))
        cells = (
            f"{statistics.fmean(one['parameters'] for one in own.values()):,.0f}",
            mean_error([one["loss"] for one in own.values()]),
            _difference(grown, own) if arm != "grown" else "-",
            f"{statistics.fmean(one['looking'] for one in own.values()):.1%}",
        )
        rows.append((NAMES.get(arm, arm), sizes, *cells, len(own)))
    flops = statistics.fmean(one["flops"] for one in records if one["budget"] == budget)
    yield f"**{budget:g} B**, {flops:.2g} operations:\n"
    head = ("net", "heads and feed-forward units by layer", "parameters", "loss", "grown less this")
    yield table((*head, "looking", "seeds"), rows) + "\n"
    yield _verdict(records, budget, [arm for arm in arms if arm.startswith("fixed")])


def _difference(grown: Mapping[int, Record], own: Mapping[int, Record]) -> str:
    both = sorted({*grown} & {*own})
    less = [grown[seed]["loss"] - own[seed]["loss"] for seed in both]
    return mean_error(less, sign=True) if less else "-"


def _verdict(records: Sequence[Record], budget: float, fixed: Sequence[str]) -> str:
    """Whether the grown net is ahead of the best fixed one."""
    grown = of(records, "grown", budget)
    if not grown or not fixed:
        return ""
    best = _best_fixed(records, budget)
    own = of(records, best, budget)
    both = sorted({*grown} & {*own})
    if not both:
        return ""
    differences = [grown[seed]["loss"] - own[seed]["loss"] for seed in both]
    less = statistics.fmean(differences)
    later = [one for seed, one in zip(both, differences, strict=True) if seed >= SEEN]
    alone = f" On seeds from {SEEN} on alone: {mean_error(later, sign=True)}." if later else ""
    deciding = statistics.fmean(one["deciding"] for one in grown.values())
    seeds = f"{len(both)} seed{'s' if len(both) > 1 else ''}"
    place = "ahead of" if less < 0 else "**behind**"
    if not any(differences):
        place = "the same as"
    elif len(both) < 2 or abs(less) < 2 * statistics.stdev(differences) / len(both) ** 0.5:
        place = "**not told apart** from"
    return (
        f"The grown net is {place} the best fixed size of the grid ({best}): {mean_error(differences, sign=True)} nats "
        f"in {seeds}.{alone} Looks take {deciding:.0%} of its time.\n"
    )


def _curves(records: Sequence[Record], budgets: Sequence[float], table: Table) -> Iterator[str]:
    """Validation losses after each fifth of the operations, at the budget with most runs."""
    budget = max(budgets, key=lambda one: len(of(records, "grown", one)))
    arms = dict.fromkeys(one["arm"] for one in records if one["budget"] == budget)
    rows = []
    for arm in arms:
        if arm.startswith("depth"):
            continue
        own = of(records, arm, budget).values()
        points = []
        for fifth in range(1, 6):
            near = [_at(one["curve"], fifth / 5 * one["flops"]) for one in own]
            points.append(f"{statistics.fmean(near):.3f}")
        rows.append((NAMES.get(arm, arm), *points))
    yield f"Loss at any time, after fifths of the operations of {budget:g} B:\n"
    yield table(("net", *(f"{fifth}/5" for fifth in range(1, 6))), rows) + "\n"


def _at(curve: Sequence[Sequence[float]], flops: float) -> float:
    """The validation nearest to so many operations."""
    return min(curve, key=lambda point: abs(point[0] - flops))[-1]


def _kinds(records: Sequence[Record], table: Table) -> Iterator[str]:
    """A second layer, born in four ways, beside the best fixed size."""
    budgets = {one["budget"] for one in records if one["arm"].startswith("depth")}
    for budget in sorted(budgets):
        own = {kind: of(records, kind, budget) for kind in KINDS}
        fixed = _best_fixed(records, budget)
        rows = [
            (
                KINDS[kind],
                mean_error([one["loss"] for one in runs.values()]),
                "-" if kind == "depth silent" else _difference(runs, own["depth silent"]),
                _difference(runs, of(records, fixed, budget)),
                len(runs),
            )
            for kind, runs in own.items()
            if runs
        ]
        yield (
            f"What growth brings where the moment is known: at {budget:g} B a net of one layer, four heads and 128 "
            "feed-forward units gets a second layer after a fifth of the operations, as it is told. By how the layer "
            f"is born; the best fixed size is {fixed}:\n"
        )
        head = ("birth", "loss", "less a silent copy", "less the best fixed size", "seeds")
        yield table(head, rows) + "\n"


def _best_fixed(records: Sequence[Record], budget: float) -> str:
    """The fixed size with the lowest mean loss among those with most seeds."""
    arms = sorted({one["arm"] for one in records if one["arm"].startswith("fixed")})
    runs = {arm: of(records, arm, budget) for arm in arms}
    most = max(len(one) for one in runs.values())
    means = {
        arm: statistics.fmean(one["loss"] for one in own.values())
        for arm, own in runs.items()
        if len(own) == most
    }
    return min(means, key=lambda arm: means[arm])


def _streams(records: Sequence[Record], table: Table) -> Iterator[str]:
    """What units of the residual stream would bring."""
    rows = []
    for kind, units in dict.fromkeys((one["kind"], one["units"]) for one in records):
        own = [one for one in records if (one["kind"], one["units"]) == (kind, units)]
        worth = [one["decrease"] / one["operations"] / 100 for one in own]
        more = f"{statistics.fmean(one['operations'] for one in own):.1%}"
        rows.append((f"{units} {kind}", more, mean_error(worth), len(own)))
    yield (
        "`python benchmarks/stream_width.py --out benchmarks/results/stream_width.json`: units of the residual stream, "
        "behind norms, are chosen by the rows that write them, where `CandidateConfig(stream_units=...)` asks for it. "
        "Born with random columns that read them and silent rows that write them, they have a gradient. Decrease on "
        "held-out windows by one gradient step of the best length, in nats for each hundredth of the operations, "
        "beside feed-forward units that are born as ever:\n"
    )
    yield table(("units", "operations", "decrease", "seeds"), rows) + "\n"
