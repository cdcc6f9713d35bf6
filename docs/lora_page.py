"""Section of docs/results.md on ranks of LoRA adapters; called by docs/results.py."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from mean_error import mean_error

Table = Callable[[Sequence[str], Sequence[Sequence[object]]], str]
Record = Mapping[str, Any]

NAMES = {
    "grown": "grown by `senn.peft`",
    "uniform": "uniform",
    "adalora": "AdaLoRA",
    "eva": "EVA",
    "gora": "GoRA's rule",
    "random_ranks": "random ranks (control)",
    "found_ranks": "the grown run's ranks, LoRA's own start (control)",
}
BUDGET, REFERENCE = 8, 32
"""The rank whose parameters are the budget, and the one whose loss is to be reached with them."""


def of(records: Sequence[Record], arm: str, rank: int) -> dict[int, Record]:
    """Records of one arm at one budget, by seed."""
    return {one["seed"]: one for one in records if (one["arm"], one["rank"]) == (arm, rank)}


def lora(
    stored: Callable[[str], Any], exists: Callable[[str], bool], table: Table
) -> Iterator[str]:
    """Losses at equal budgets, and what they cost; nothing where no results are stored."""
    if not exists("lora_ranks"):
        return
    records: list[Record] = [*stored("lora_ranks").values()]
    tested = [one for one in records if "test" in one]
    tried = [one for one in records if "test" not in one]
    commands = sorted({one["command"] for one in tested})
    yield "## Ranks of LoRA adapters\n\n" + "\n\n".join(f"`{one}`" for one in commands) + "\n"
    yield (
        "A decoder of .4 million parameters, pre-trained on one half of Shakespeare's plays, is adapted to the "
        "reference of the Python language by adapters on all linear layers, in "
        f"{records[0]['steps']} steps of 8 windows of 64 characters. A rank as budget means as many parameters as it "
        "has everywhere. Every arm has the same batches and the same scaling of its adapters; beforehand, grown "
        "adapters looked at 64 windows, GoRA's rule at 32 and EVA at 128. AdaLoRA's budget is a number of ranks, and "
        "it ends with more parameters. Seconds are a processor's, looking included.\n"
    )
    yield from _tries(tried, table)
    yield from _tests(tested, table)
    yield _reached(tested)
    yield _ranks(tested)


def _tries(records: Sequence[Record], table: Table) -> Iterator[str]:
    """What each arm's settings were chosen by."""
    rows = []
    for arm, rank in dict.fromkeys((one["arm"], one["rank"]) for one in records):
        own = [one for one in records if (one["arm"], one["rank"]) == (arm, rank)]
        best = min(own, key=lambda one: one["validation"])
        cells = (f"{best['parameters']:,}", f"{best['validation']:.4f}", f"{best['lr']:g}")
        rows.append((rank, NAMES[arm], *cells, f"{best['cpu_seconds']:.1f}", len(own)))
    if rows:
        yield (
            "Nats a character on **validation** text, one seed, by which learning rates and other choices were made. "
            "While the method was written seven more settings were tried for the grown adapters (damping, scale of new "
            "rows, fewer windows), and one each for AdaLoRA, EVA and GoRA's rule: this table flatters the former.\n"
        )
        head = ("budget", "adapters", "parameters", "best loss", "learning rate", "seconds")
        yield table((*head, "settings tried"), sorted(rows)) + "\n"


def _tests(records: Sequence[Record], table: Table) -> Iterator[str]:
    """Losses on test text with the settings that were chosen."""
    rows = []
    for rank in sorted({one["rank"] for one in records}):
        grown = of(records, "grown", rank) or of(records, "grown", BUDGET)
        for arm, name in NAMES.items():
            own = of(records, arm, rank)
            if own:
                rows.append((rank, name, *_cells(own, grown, is_grown=arm == "grown"), len(own)))
    if rows:
        yield (
            "Nats a character on **test** text, which each run looked at once, with these choices and other seeds. "
            "Differences are paired by seed, mean ± standard error where there are several seeds: **below 0 the grown "
            "adapters are better**.\n"
        )
        head = ("budget", "adapters", "parameters", "test loss", "grown less this", "seconds")
        yield table((*head, "seeds"), rows) + "\n"


def _reached(records: Sequence[Record]) -> str:
    """Whether a quarter of the parameters of the reference rank is enough for its loss, and at which cost."""
    grown, reference = (of(records, *key) for key in (("grown", BUDGET), ("uniform", REFERENCE)))
    both = sorted({*grown} & {*reference})
    if not both:
        return (
            f"Whether the loss of uniform rank {REFERENCE} is reached with a quarter of its parameters isn't tested; "
            "on validation text it wasn't. A round costs some forty steps of this small batch, whatever the length of "
            "the run, and these runs are short.\n"
        )
    less = [grown[seed]["test"] - reference[seed]["test"] for seed in both]
    ratio = statistics.fmean(
        grown[seed]["cpu_seconds"] / reference[seed]["cpu_seconds"] for seed in both
    )
    verdict = "is reached" if statistics.fmean(less) <= 0 else "is **not** reached"
    return (
        f"The loss of uniform rank {REFERENCE} {verdict} with a quarter of its parameters (difference "
        f"{mean_error(less, sign=True)}). The grown run takes {ratio:.2f} times its processor time: a round costs some "
        "forty steps of this small batch whatever the length of the run, and these runs are short. "
        f"Seeds compared: {len(both)}.\n"
    )


def _cells(own: Mapping[int, Record], grown: Mapping[int, Record], *, is_grown: bool) -> list[str]:
    both = sorted({*own} & {*grown})
    less = [grown[seed]["test"] - own[seed]["test"] for seed in both]
    return [
        f"{statistics.fmean(one['parameters'] for one in own.values()):,.0f}",
        mean_error([one["test"] for one in own.values()]),
        "-" if is_grown or not less else mean_error(less, sign=True),
        f"{statistics.fmean(one['cpu_seconds'] for one in own.values()):.1f}",
    ]


def _ranks(records: Sequence[Record]) -> str:
    """Where the grown adapters have their ranks."""
    grown = of(records, "grown", BUDGET).values()
    kinds: dict[str, list[int]] = {}
    for one in grown:
        for name, rank in one["ranks"].items():
            kinds.setdefault(name.rpartition(".")[2], []).append(rank)
    means = ", ".join(f"{kind} {statistics.fmean(ranks):.1f}" for kind, ranks in kinds.items())
    return f"Mean rank of the grown adapters by kind of layer, at the budget of rank {BUDGET}: {means}.\n"
