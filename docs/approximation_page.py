"""Write docs/approximation.md from the stored results of benchmarks/dense_eta.py.

python docs/approximation_page.py
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
STORED = HERE.parent / "benchmarks" / "results" / "dense_eta.json"

START = """# K-FAC against dense truth

Made by `python docs/approximation_page.py` from `benchmarks/results/dense_eta.json`, which `{command}` writes.

The score is taken map by map (block-diagonal) and with a Kronecker product in each block. Here it is held against the
whole Gauss-Newton matrix, in float64, where that can be written down: {nets} small nets of {families} families, seeds
{seeds}, after 10 to 145 steps of Adam on 240 rows; even seeds have a squared error, odd ones cross-entropy. Dense eta
is (1/N) |P g_y|², the squared length of the projection of the output gradient on what the parameters can do; it can't
exceed lambda.
"""

ETA = """
## The score

All columns are medians over the nets of a family, with the smallest and the largest in brackets.

- *sum / dense*: the sum over the maps, which `Grower.eta` and `Candidate.eta` are with `PricePolicy`, over dense eta.
- *blocks / dense*: the same with each map's dense block, so that only block-diagonality is left. Several maps can often
  bring the same decrease, and the sum counts it several times.
- *K-FAC / block*: each map by itself, what the Kronecker product and damping do.
- *whole / dense*: eta of the network as a whole, with which `PaperPolicy` compares: a lower bound by the curvature
  along K-FAC's step, which sampled signs estimate.
- *lambda / dense*: what the outputs leave to be had, over what the parameters reach.
"""

RANKS = """
## The choice

In the MLPs {candidates} random units are offered in each of two hidden layers, which makes {places} places. The truth
is by how much dense eta rises when a unit's outgoing weights join the parameters. *Rank* is Spearman's correlation with
it within a place; *share* is the part of the best unit's gain that the choice of the highest figure gets: medians over
the places, with the smallest and the largest in brackets.

- *dense block*: the gain in the block of the map that reads the unit, without a Kronecker product.
- *gain*: the exact K-FAC gain. *bound*: that of theorem 3.2. *gradient*: the squared length of the unit's gradient, at
  activations of length one.
"""


def spread(values: Sequence[float]) -> str:
    """Median, smallest and largest."""
    low, middle, high = (
        f"{value:.2f}" if value < 100 else f"{value:.0e}"
        for value in (min(values), statistics.median(values), max(values))
    )
    return f"{middle} [{low}, {high}]"


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> Iterator[str]:
    """A table in Markdown."""
    yield "\n| " + " | ".join(head) + " |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield "| " + " | ".join(map(str, row)) + " |"


def etas(nets: Sequence[dict[str, Any]]) -> Iterator[str]:
    """A line for each family."""
    rows = []
    for family in dict.fromkeys(net["family"] for net in nets):
        some = [net for net in nets if net["family"] == family]
        over = {
            "sum": [sum(net["kfac"].values()) / net["dense"] for net in some],
            "blocks": [sum(net["blocks"].values()) / net["dense"] for net in some],
            "map": [net["kfac"][m] / net["blocks"][m] for net in some for m in net["kfac"]],
            "whole": [net["whole"] / net["dense"] for net in some],
            "lambda": [net["lambda"] / net["dense"] for net in some],
        }
        maps, parameters = len(some[0]["kfac"]), some[0]["parameters"]
        rows.append((family, maps, parameters, *map(spread, over.values())))
    head = ("family", "maps", "parameters", "sum / dense", "blocks / dense", "K-FAC / block",
            "whole / dense", "lambda / dense")  # fmt: skip
    yield from table(head, rows)
    above = sum(sum(net["kfac"].values()) > net["lambda"] for net in nets)
    single = sum(max(net["kfac"].values()) > net["lambda"] for net in nets)
    yield (
        f"\nThe sum over the maps is above lambda in {above} of {len(nets)} nets, the score of a single map in "
        f"{single}. With one datum and three linear layers the sum is three times lambda."
    )


def ranks(places: Sequence[dict[str, Any]]) -> Iterator[str]:
    """A line for each figure by which a unit may be chosen."""
    rows = []
    for name in ("dense block", "gain", "bound", "gradient", "random"):
        found = [one["rank"][name] for one in places] if name != "random" else []
        rows.append(
            (name, spread(found) if found else "", spread([one["share"][name] for one in places]))
        )
    yield from table(("chosen by", "rank", "share"), rows)


def main() -> None:
    """Write the page."""
    found = json.loads(STORED.read_text())
    nets, places = found["nets"], found["places"]
    seeds = sorted({net["seed"] for net in nets})
    about = {
        "command": found["command"],
        "nets": len(nets),
        "families": "four" if len({net["family"] for net in nets}) == 4 else "some",
        "seeds": f"{seeds[0]} to {seeds[-1]}",
    }
    choice = RANKS.format(candidates=found["candidates"], places=len(places))
    parts = [START.format(**about), ETA, *etas(nets), choice, *ranks(places)]
    (HERE / "approximation.md").write_text("\n".join(parts) + "\n")


if __name__ == "__main__":
    main()
