"""Tables of candidates and decisions, as text and as HTML for notebooks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from senn import html
from senn.policies import Candidate


class Decided(Protocol):
    """A candidate with the policy's decision, such as `senn.events.Decision`."""

    @property
    def candidate(self) -> Candidate:
        """The candidate."""

    @property
    def price(self) -> float:
        """Least decrease for its parameters."""

    @property
    def margin(self) -> float:
        """Expected decrease beyond what was required."""

    @property
    def reason(self) -> str:
        """Why it was refused although it exceeds what was required."""


def event_html(record: Mapping[str, Any]) -> str:
    """Table of one growth event, with a sketch of the network after its round.

    Args:
        record: the event, as `GrowthEvent.as_dict` has it.
    """
    head = (
        "change",
        "place",
        "width",
        "parameters",
        "expected",
        "price",
        "realized",
        "loss before",
        "after",
    )
    widths = f"{record['width_before']} → {record['width_after']}"
    change = (html.kind(record["kind"]), record["place"], widths, f"{record['parameters']:+,}")
    nats = [
        html.number(record[name]) for name in ("expected_decrease", "price", "realized_decrease")
    ]
    losses = [html.number(record[name], 4) for name in ("loss_before", "loss_after")]
    row = (*change, *nats, *losses)
    table = html.table(f"round {record['round']}", head, [row], left=2)
    return table + html.network(record["architecture"])


def candidates_html(candidates: Sequence[Candidate]) -> str:
    """Table of candidates, the expected decreases of all drawn to one scale.

    Args:
        candidates: in the order of the table's rows.
    """
    head = (
        "change",
        "place",
        "detail",
        "units",
        "parameters",
        "gain η",
        "held-out η",
        "expected",
        "",
    )
    largest = max((abs(one.expected_decrease) + _stderr(one) for one in candidates), default=0.0)
    rows = []
    for one in candidates:
        decrease = one.expected_decrease
        bar = html.bar(decrease, _stderr(one), 0.0, largest, one.kind)
        figures = (f"{one.units}", f"{one.parameters:+,}", html.number(one.gain), _held_out(one))
        rows.append((*_place(one), *figures, html.number(decrease), bar))
    return html.table("candidates", head, rows, left=3) or "<p>No candidates.</p>"


class CandidateList(list[Candidate]):
    """List of scored candidates, shown as a table in notebooks."""

    def _repr_html_(self) -> str:
        return candidates_html(self)


def decisions_text(accepted: Sequence[Decided], refused: Sequence[Decided]) -> str:
    """Table of candidates with their decisions, for a terminal.

    Args:
        accepted: candidates that were accepted.
        refused: candidates that were refused.
    """
    head = ("verdict", "change", "place", "detail", "parameters", "expected", "price", "margin")
    rows: list[tuple[str, ...]] = [head]
    for verdict, several in (("accepted", accepted), ("refused", refused)):
        for one in several:
            candidate = one.candidate
            nats = (f"{x:.3g}" for x in (candidate.expected_decrease, one.price, one.margin))
            about = (
                candidate.kind,
                candidate.place,
                candidate.detail,
                _size(candidate),
            )
            rows.append((verdict, *about, *nats))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def decisions_html(accepted: Sequence[Decided], refused: Sequence[Decided]) -> str:
    """Table of candidates with their decisions, for a notebook.

    Args:
        accepted: candidates that were accepted.
        refused: candidates that were refused.
    """
    head = (
        *("verdict", "change", "place", "detail", "", "expected", "price", "margin"),
        *("gain η", "held-out η", "parameters"),
    )
    every = [("accepted", one) for one in accepted] + [("refused", one) for one in refused]
    # One scale for all bars, or small decreases would look like large ones.
    largest = 0.0
    for _, one in every:
        reach = abs(one.candidate.expected_decrease) + _stderr(one.candidate)
        largest = max(largest, reach, abs(one.price))
    rows = []
    for verdict, one in every:
        candidate, decrease = one.candidate, one.candidate.expected_decrease
        said = f"{verdict}: {one.reason}" if one.reason else verdict
        bar = html.bar(decrease, _stderr(candidate), one.price, largest, candidate.kind)
        nats = (html.number(decrease), html.number(one.price), html.number(one.margin))
        figures = (html.number(candidate.gain), _held_out(candidate), _size(candidate))
        rows.append((said, *_place(candidate), bar, *nats, *figures))
    title = "its candidates: bar and line are expected decrease and price, by their square roots"
    return html.table(title, head, rows, 5)


def _size(one: Candidate) -> str:
    """Change of the number of parameters, and of operations where these are counted."""
    flops = "" if one.flops is None else f" ({one.flops:+,} FLOPs)"
    return f"{one.parameters:+,}{flops}"


def _place(one: Candidate) -> tuple[str, str, str]:
    return html.kind(one.kind), one.place, one.detail


def _stderr(one: Candidate) -> float:
    """Standard error of an expected decrease, in its unit."""
    # Halved as in `Candidate.expected_decrease`: eta is twice a decrease.
    return one.held_out_stderr / (2 * one.loss_per_nat)


def _held_out(one: Candidate) -> str:
    # a removal's held-out gain is its cost on all samples
    if one.kind == "prune":
        return "-"
    return f"{html.number(one.held_out_gain)} ± {html.number(one.held_out_stderr, 2)}"
