"""What happened to a network, and why: one record per change and per consideration, for people and for programs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from html import escape
from math import isfinite
from typing import TYPE_CHECKING, Any

from senn import _deprecated, html
from senn._deprecated import current_keys
from senn.errors import SurgeryError
from senn.policies import Candidate, Policy
from senn.surgery import Prune, Receipt

__all__ = ["CandidateList", "Decision", "GrowthEvent", "GrowthRound", "NetworkState"]

if not TYPE_CHECKING:
    __getattr__ = _deprecated.old_names(__name__)


@dataclass(frozen=True, kw_only=True)
class NetworkState:
    """Figures of a network before or after the changes of a round.

    Attributes:
        eta: its expansion score.
        loss: on the probe batch.
        widths: by space, in order of use.
    """

    eta: float
    loss: float
    widths: Mapping[str, int]


@_deprecated.aliased
@dataclass(eq=False, repr=False, kw_only=True)
class GrowthEvent:
    """One change of the network's size, done.

    Promises, prices and realised decreases are in nats per sample, for every loss (`LossMetric.nat`); losses in the
    loss's own unit, of which `nat` makes one nat; eta, gain, bound and held-out gain in eta's unit, twice the loss's.

    Attributes:
        kind: `widen`, `insert` or `prune`.
        place: the space, or the linear map before which a layer went.
        detail: for people.
        width_before: width of the place before (0 for a new layer).
        width_after: width after.
        units: how many units came or went.
        parameters: net change of the number of parameters.
        gain: exact gain in eta; minus the cost, for pruning.
        gain_lower_bound: lower bound of the gain (Theorem 3.2).
        held_out_gain: held-out gain in eta.
        held_out_stderr: its standard error.
        expected_decrease: decrease of the loss to count on, in nats (half the held-out gain over `nat`); negative for
            pruning.
        price: what it had to promise at least, in nats.
        loss_per_nat: how much of the loss one nat is.
        eta_before: expansion score of the network before.
        eta_after: and after.
        score_limit: lambda.
        loss_before: loss on the probe batch before the change.
        loss_after: and right after it.
        output_change: largest relative change of an output on the probe batch.
        architecture: widths after all changes of the round.
        round: number of the round.
        removed_units: of a removal, the units that went, in order, numbered as they were before the round.
        realized_decrease: decrease of the loss, in nats, between the change and the next consideration; None until
            then.
    """

    kind: str
    place: str
    detail: str
    width_before: int
    width_after: int
    units: int
    parameters: int
    gain: float
    gain_lower_bound: float
    held_out_gain: float
    held_out_stderr: float
    expected_decrease: float
    price: float
    loss_per_nat: float
    eta_before: float
    eta_after: float
    score_limit: float
    loss_before: float
    loss_after: float
    output_change: float
    architecture: tuple[int, ...]
    round: int
    removed_units: tuple[int, ...] = ()
    realized_decrease: float | None = None
    _undo: Callable[[], None] | None = field(default=None, repr=False)

    @classmethod
    def from_round(
        cls,
        accepted: Sequence[Candidate],
        receipt: Receipt,
        *,
        number: int,
        before: NetworkState,
        after: NetworkState,
        policy: Policy,
        undo: Callable[[], None] | None = None,
    ) -> list[GrowthEvent]:
        """Events of one round: one for each kind of change at each place.

        Args:
            accepted: the round's candidates that were carried out, in the order in which they were accepted.
            receipt: of the operation.
            number: of the round.
            before: the network before the round.
            after: and after.
            policy: what priced the candidates.
            undo: takes the whole round back.
        """
        removed = {move.group: tuple(move.units) for move in receipt.moves if isinstance(move, Prune)}
        groups: dict[tuple[str, str], list[Candidate]] = {}
        for candidate in accepted:
            groups.setdefault((candidate.kind, candidate.place), []).append(candidate)
        return [
            cls(
                kind=kind,
                place=place,
                detail=group[0].detail,
                width_before=before.widths.get(place, 0) if kind != "insert" else 0,
                width_after=group[-1].width,
                units=sum(one.units for one in group),
                parameters=sum(one.parameters for one in group),
                gain=sum(one.gain for one in group),
                gain_lower_bound=sum(one.gain_lower_bound for one in group),
                held_out_gain=sum(one.held_out_gain for one in group),
                held_out_stderr=sum(one.held_out_stderr**2 for one in group) ** 0.5,
                expected_decrease=sum(one.expected_decrease for one in group),
                price=sum(policy.price(one.parameters, one.samples) for one in group),
                loss_per_nat=group[0].loss_per_nat,
                eta_before=before.eta,
                eta_after=after.eta,
                score_limit=group[0].score_limit,
                loss_before=before.loss,
                loss_after=after.loss,
                output_change=receipt.output_change or 0.0,
                architecture=tuple(after.widths.values()),
                round=number,
                removed_units=removed.get(place, ()) if kind == "prune" else (),
                _undo=undo,
            )
            for (kind, place), group in groups.items()
        ]

    def __repr__(self) -> str:
        """The same line, so that a list of events can be read too; `as_dict` has every figure."""
        return f"GrowthEvent({self})"

    def __str__(self) -> str:
        """One readable line."""
        layer = f"{self.detail}, {self.width_after} unit{'s' * (self.width_after != 1)}"
        size = layer if self.kind == "insert" else f"{self.width_before} -> {self.width_after}"
        # a decrease of the loss is positive, here as in `promised`; what a removal costs is named so instead
        decrease = (
            f"promised {self.expected_decrease:+.3g}"
            if self.expected_decrease >= 0
            else f"cost {-self.expected_decrease:.3g}"
        )
        return (
            f"{self.kind} {self.place}: {size}, {decrease} nats, {self.parameters:+,} parameters, "
            f"price {abs(self.price):.3g}"
        )

    def as_dict(self) -> dict[str, Any]:
        """Every figure, ready for JSON."""
        record = {f.name: getattr(self, f.name) for f in fields(self) if not f.name.startswith("_")}
        return {
            **record,
            "architecture": list(self.architecture),
            "removed_units": list(self.removed_units),
            "text": str(self),
        }

    def state(self) -> dict[str, Any]:
        """Every field as it is, infinities and all; `undo` isn't among them."""
        return {f.name: getattr(self, f.name) for f in fields(self) if not f.name.startswith("_")}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> GrowthEvent:
        """The event that `state` was taken of; it can't be undone any more."""
        state = current_keys(cls, state)
        tuples = {f.name: tuple(state[f.name]) for f in fields(cls) if isinstance(state.get(f.name), list)}
        return cls(**{**state, **tuples})

    def _repr_html_(self) -> str:
        """A table of its figures for notebooks, and the network after its round."""
        number = html.number
        head = ("change", "place", "width", "parameters", "promised", "price", "realised", "loss before", "after")
        row = (
            html.kind(self.kind),
            self.place,
            f"{self.width_before} → {self.width_after}",
            f"{self.parameters:+,}",
            number(self.expected_decrease),
            number(self.price),
            number(self.realized_decrease),
            number(self.loss_before, 4),
            number(self.loss_after, 4),
        )
        return html.table(f"round {self.round}", head, [row], left=2) + html.network(self.architecture)

    def undo(self) -> None:
        """Give the network and its optimizer back as they were before the whole round of this event.

        Raises:
            SurgeryError: the network has been trained or changed since, or this was undone already.
        """
        if self._undo is None:
            raise SurgeryError(f"the change of {self.place!r} cannot be undone any more")
        self._undo()
        self._undo = None

    def forget(self) -> None:
        """Let go of what `undo` needs: the former parameters."""
        self._undo = None


@dataclass(frozen=True, kw_only=True)
class Decision:
    """A candidate, and by how much it exceeded what the policy asked of it.

    Attributes:
        candidate: with its figures at that moment: an accepted one's when it was, a refused one's at the end.
        price: what its parameters had to promise at least, in nats per sample.
        margin: what it promised beyond what was asked, in nats per sample; negative for what fell short.
        reason: why it was refused although it exceeds what was asked; empty for all others.
    """

    candidate: Candidate
    price: float
    margin: float
    reason: str = ""

    @classmethod
    def from_policy(cls, policy: Policy, candidate: Candidate, accepted: Sequence[Candidate] | None = None) -> Decision:
        """What a policy says of a candidate: of a refused one, beside those `accepted` in its round."""
        margin = policy.margin(candidate)
        exceeds = accepted is not None and margin > 0
        return cls(
            candidate=candidate,
            price=policy.price(candidate.parameters, candidate.samples),
            margin=margin,
            reason=policy.reason(candidate, accepted or ()) if exceeds else "",
        )

    def as_dict(self) -> dict[str, Any]:
        """Every figure, ready for JSON: null for what isn't finite."""
        figures = {**asdict(self.candidate), "expected_decrease": self.candidate.expected_decrease}
        figures |= {"price": self.price, "margin": self.margin, "reason": self.reason}
        return {name: None if isinstance(x, float) and not isfinite(x) else x for name, x in figures.items()}


@_deprecated.aliased
@dataclass(frozen=True, kw_only=True)
class GrowthRound:
    """One round of growth: what was on offer, what was taken, what was refused by how much.

    Attributes:
        round: its number, that of its events.
        moves: which might happen.
        n_samples_seen: samples that the figures are means over.
        samples: training samples, for prices.
        loss: mean loss of those looked at, in the loss's own unit.
        loss_per_nat: how much of the loss one nat is.
        parameters: of the model before.
        architecture: widths before, as `Grower.architecture`.
        eta: the expansion score before.
        eta_by_map: by linear map, its part of eta; their sum is `eta` unless the policy asks for that of the network
            whole.
        score_limit: lambda, which the exact score can't exceed (Theorem 3.1); that of Kronecker factors can.
        accepted: in order.
        refused: the best candidates that were left of each kind at each place, the closest to being accepted first.
        realized_decrease: decrease of the loss, in nats per sample, since the changes of the round before; None if it
            made none.
    """

    round: int
    moves: tuple[str, ...]
    n_samples_seen: int
    samples: int
    loss: float
    loss_per_nat: float
    parameters: int
    architecture: tuple[int, ...]
    eta: float
    eta_by_map: dict[str, float]
    score_limit: float
    accepted: tuple[Decision, ...]
    refused: tuple[Decision, ...]
    realized_decrease: float | None = None

    def __str__(self) -> str:
        """The round for a terminal: what was looked at, and every candidate with its verdict."""
        head = ("verdict", "change", "place", "detail", "parameters", "promised", "price", "margin")
        rows = [
            (word, one.candidate.kind, one.candidate.place, one.candidate.detail, f"{one.candidate.parameters:+,}",
             *(f"{x:.3g}" for x in (one.candidate.expected_decrease, one.price, one.margin)))
            for word, several in (("accepted", self.accepted), ("refused", self.refused)) for one in several
        ]  # fmt: skip
        wide = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
        lines = ["  ".join(map(str.ljust, row, wide)).rstrip() for row in (head, *rows)]
        return "\n".join([self._said("eta", "lambda"), *lines])

    def _said(self, eta: str, most: str) -> str:
        return (
            f"Round {self.round}: looked at {self.n_samples_seen:,} of {self.samples:,} samples, "
            f"loss {html.number(self.loss, 4)}, {self.parameters:,} parameters; "
            f"{eta} {html.number(self.eta)}, {most} {html.number(self.score_limit)}; {len(self.accepted)} accepted"
        )

    def as_dict(self) -> dict[str, Any]:
        """Every figure, ready for JSON."""
        record = {f.name: getattr(self, f.name) for f in fields(self)}
        lists = {name: [one.as_dict() for one in record[name]] for name in ("accepted", "refused")}
        return {**record, **lists, "moves": list(self.moves), "architecture": list(self.architecture)}

    def _repr_html_(self) -> str:
        """The round for notebooks: what was looked at, eta by map, every candidate with its verdict."""
        number = html.number
        parts = html.table("η by linear map", ("map", "η"), [(name, number(x)) for name, x in self.eta_by_map.items()])
        return f"<p>{escape(self._said('η', 'λ'))}</p>" + _verdicts(self.accepted, self.refused) + parts

    def state(self) -> dict[str, Any]:
        """Every field as it is, infinities and all."""
        return asdict(self)

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> GrowthRound:
        """The consideration that `state` was taken of."""
        state = current_keys(cls, state)
        verdicts = {
            name: tuple(
                Decision(**{**one, "candidate": Candidate(**current_keys(Candidate, one["candidate"]))})
                for one in state[name]
            )
            for name in ("accepted", "refused")
        }
        tuples = {name: tuple(state[name]) for name in ("moves", "architecture")}
        return cls(**{**state, **verdicts, **tuples})


class CandidateList(list[Candidate]):
    """Scored candidates, a list; as a table in notebooks."""

    def _repr_html_(self) -> str:
        """A table of their figures."""
        head = ("change", "place", "detail", "units", "parameters", "gain η", "held-out η", "promised (nats)", "")
        most = max((abs(one.expected_decrease) + _error(one) for one in self), default=0.0)
        rows = [
            (*_about(one), f"{one.units}", f"{one.parameters:+,}", html.number(one.gain), _heldout(one),
             html.number(one.expected_decrease), html.bar(one.expected_decrease, _error(one), 0.0, most, one.kind))
            for one in self
        ]  # fmt: skip
        return html.table("candidates", head, rows, left=3) or "<p>No candidates.</p>"


def _verdicts(accepted: Sequence[Decision], refused: Sequence[Decision]) -> str:
    """A table of candidates with what was said of them."""
    head = ("verdict", "change", "place", "detail", "", "promised", "price", "margin", "gain η", "held-out η",
            "parameters")  # fmt: skip
    every = [("accepted", one) for one in accepted] + [("refused", one) for one in refused]
    most = max(
        (max(abs(v.candidate.expected_decrease) + _error(v.candidate), abs(v.price)) for _, v in every), default=0.0
    )
    rows = [
        (word if not v.reason else f"{word}: {v.reason}", *_about(v.candidate),
         html.bar(v.candidate.expected_decrease, _error(v.candidate), v.price, most, v.candidate.kind),
         html.number(v.candidate.expected_decrease), html.number(v.price), html.number(v.margin),
         html.number(v.candidate.gain), _heldout(v.candidate), f"{v.candidate.parameters:+,}")
        for word, v in every
    ]  # fmt: skip
    return html.table(
        "its candidates: bar and line are promise and price in nats, by their square roots", head, rows, 5
    )


def _about(one: Candidate) -> tuple[str, str, str]:
    return html.kind(one.kind), one.place, one.detail


def _error(one: Candidate) -> float:
    """The standard error of a promise, in nats."""
    return one.held_out_stderr / (2 * one.loss_per_nat)


def _heldout(one: Candidate) -> str:
    return "-" if one.kind == "prune" else f"{html.number(one.held_out_gain)} ± {html.number(one.held_out_stderr, 2)}"
