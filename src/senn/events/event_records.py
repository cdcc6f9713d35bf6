"""Records of growth: one for each change of a network, one for each round with its candidates and decisions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from html import escape
from math import isfinite
from typing import Any

from senn import _deprecated, html
from senn._records import current_keys
from senn.errors import SurgeryError
from senn.events.event_tables import decisions_html, decisions_text, event_html
from senn.policies import Candidate, Policy, price_of


@_deprecated.aliased
@dataclass(eq=False, repr=False, kw_only=True)
class GrowthEvent:
    """One change of the network's size that was made.

    Decreases and prices are per sample: in nats for likelihoods (`LossMetric.loss_per_nat`), for other losses in the
    loss's own unit, as losses are. Eta and gains are in eta's unit, twice the loss's.

    Attributes:
        kind: `widen`, `insert` or `prune`; `outputs` or `tokens` of a change that its owner asked for, which has no
            gain and no price.
        place: the channel group, or the linear map before which a layer went; of new outputs the map that makes them.
        detail: what exactly, for people.
        width_before: width of the place before (0 for a new layer).
        width_after: width after.
        units: number of units that came or went.
        parameters: net change of the number of parameters.
        gain: exact gain in eta; minus the cost, for pruning.
        gain_lower_bound: lower bound of the gain (Theorem 3.2).
        held_out_gain: held-out gain in eta.
        held_out_stderr: its standard error.
        expected_decrease: of an addition, decrease of the loss on held-out samples with its natural step applied,
            measured by a forward pass; several additions of a round share one decrease in proportion to their held-out
            gains. Of a removal minus its cost, by the quadratic model.
        price: least decrease that the policy required for its parameters, in the same unit.
        loss_per_nat: how much of the loss one nat is.
        eta_before: expansion score of the network before.
        eta_after: and after.
        score_limit: lambda.
        loss_before: loss on the probe batch before the change.
        loss_after: and right after it.
        output_change: largest relative change of an output on the probe batch.
        architecture: widths after all changes of the round.
        round: number of the round; 0 of a change that no round has made.
        removed_units: of a removal, the units that went, in order, numbered as they were before the round.
        realized_decrease: on the next batch observed, the loss with what was added silenced less the loss as it is, in
            the same unit; None until then, and for removals.
        unit: of these three, in words.
        step_length: of an addition, how much of its natural step it was born with; 0 for a silent or plain one.

    Example:
        >>> import torch, senn
        >>> x = torch.randn(256, 2, generator=torch.Generator().manual_seed(0))
        >>> y = (x[:, 0] * x[:, 1] > 0).long()
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 1), torch.nn.Tanh(), torch.nn.Linear(1, 2))
        >>> (event,) = senn.Grower(model, moves=["width"]).grow([(x, y)])
        >>> event.kind, event.place, event.width_after == model[0].out_features
        ('widen', '0', True)
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
    unit: str = "nats"
    step_length: float = 0.0
    # Underscored, so that `state` leaves it out: it holds the former data.
    _undo: Callable[[], None] | None = field(default=None, repr=False)
    _is_copy: bool = field(default=False, repr=False, init=False)

    def __repr__(self) -> str:
        """One line as `str` has it, so that a list of events can be read too; `as_dict` has every figure."""
        return f"GrowthEvent({self})"

    def __str__(self) -> str:
        """One readable line."""
        layer = f"{self.detail}, {self.width_after} unit{'s' * (self.width_after != 1)}"
        size = layer if self.kind == "insert" else f"{self.width_before} -> {self.width_after}"
        if not self.round:
            about = f" {self.detail}" if self.detail else ""
            return f"{self.kind} {self.place}: {size}{about}, {self.parameters:+,} parameters"
        # A decrease of the loss is positive, here as in `expected_decrease`; a removal's line says what it costs.
        decrease = (
            f"promised {self.expected_decrease:+.3g}"
            if self.expected_decrease >= 0
            else f"cost {-self.expected_decrease:.3g}"
        )
        return (
            f"{self.kind} {self.place}: {size}, {decrease} {self.unit}, {self.parameters:+,} parameters, "
            f"price {abs(self.price):.3g}"
        )

    def as_dict(self) -> dict[str, Any]:
        """Every figure, ready for JSON."""
        record = {name: _finite(value) for name, value in self.state().items()}
        record["architecture"] = list(self.architecture)
        record["removed_units"] = list(self.removed_units)
        record["text"] = str(self)
        return record

    def state(self) -> dict[str, Any]:
        """All fields as plain values; non-finite floats are kept, and what `undo` needs is left out."""
        return {f.name: getattr(self, f.name) for f in fields(self) if not f.name.startswith("_")}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> GrowthEvent:
        """Make the event that `state` was taken of; it can't be undone any more."""
        state = current_keys(cls, state)
        # JSON has no tuples.
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in state.items()
        }
        return cls(**values)

    def _repr_html_(self) -> str:
        return event_html(self.as_dict())

    def undo(self) -> None:
        """Bring the network and its optimizer back to what they were before the whole round of this event.

        Raises:
            SurgeryError: the network has been trained or changed since, or this was undone already.
        """
        if self._is_copy:
            raise SurgeryError(
                f"the change of {self.place!r} can't be undone by a copy of its event: call undo() on the event itself"
            )
        if self._undo is None:
            raise SurgeryError(f"the change of {self.place!r} cannot be undone any more")
        self._undo()
        self._undo = None

    def __getstate__(self) -> dict[str, Any]:
        """State of a copy or pickle: without the way back, which leads to this event's network."""
        return {**vars(self), "_undo": None, "_is_copy": True}

    def forget(self) -> None:
        """Let go of what `undo` needs: the former data."""
        self._undo = None


@dataclass(frozen=True, kw_only=True)
class Decision:
    """A candidate with the policy's decision about it.

    Attributes:
        candidate: the candidate, with its figures when it was accepted, or of a refused one at the end of the round.
        price: least decrease that the policy required for its parameters, in the unit of `expected_decrease`.
        margin: expected decrease beyond what was required; negative where it falls short.
        reason: why it was refused although it exceeds what was required; empty for all others.
    """

    candidate: Candidate
    price: float
    margin: float
    reason: str = ""

    @classmethod
    def from_policy(
        cls, policy: Policy, candidate: Candidate, accepted: Sequence[Candidate] | None = None
    ) -> Decision:
        """Record what a policy says of a candidate.

        Args:
            policy: the policy.
            candidate: the candidate.
            accepted: the candidates accepted in its round, for one that was refused; None for one that was accepted.
        """
        margin = policy.margin(candidate)
        # Only a refusal against the margin needs a reason.
        exceeds = accepted is not None and margin > 0
        return cls(
            candidate=candidate,
            price=price_of(policy, candidate),
            margin=margin,
            reason=policy.reason(candidate, accepted or ()) if exceeds else "",
        )

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Decision:
        """Make the decision that `dataclasses.asdict` was taken of."""
        candidate = Candidate(**current_keys(Candidate, state["candidate"]))
        return cls(**{**state, "candidate": candidate})

    def as_dict(self) -> dict[str, Any]:
        """Every figure, ready for JSON: null for what isn't finite."""
        figures = asdict(self.candidate)
        figures["expected_decrease"] = self.candidate.expected_decrease
        figures |= {"price": self.price, "margin": self.margin, "reason": self.reason}
        # JSON has no infinities: a price may be one, where nothing may grow.
        return {name: _finite(figure) for name, figure in figures.items()}


def _finite(figure: Any) -> Any:
    return None if isinstance(figure, float) and not isfinite(figure) else figure


@_deprecated.aliased
@dataclass(frozen=True, kw_only=True)
class GrowthRound:
    """One round of growth: its candidates, which of them were accepted, and by how much the others fell short.

    Attributes:
        round: its number, also that of its events.
        moves: moves that might happen.
        n_samples_seen: number of samples that the figures are means over.
        samples: number of training samples, for prices.
        samples_known: False if that isn't known, so that prices count the samples seen.
        loss: mean loss of the samples seen, in the loss's own unit.
        loss_per_nat: how much of the loss one nat is.
        parameters: number of parameters of the model before.
        architecture: widths before, as `Grower.architecture`.
        eta: the expansion score before.
        eta_by_map: by linear map, its part of eta; their sum is `eta` unless the policy asks for that of the network
            whole.
        score_limit: lambda, which the exact score can't exceed (Theorem 3.1); that of Kronecker factors can.
        accepted: the accepted candidates, in order.
        refused: the best other candidates of each kind at each place, the closest to being accepted first.
        realized_decreases: of each change of the round before, its `realized_decrease`, in the order of its events.
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
    realized_decreases: tuple[float | None, ...] = ()
    samples_known: bool = True

    @property
    def realized_decrease(self) -> float | None:
        """What all changes of the round before have brought, in nats per sample; None where that isn't known."""
        known = [value for value in self.realized_decreases if value is not None]
        return sum(known) if known else None

    def __str__(self) -> str:
        """Table for a terminal: the round in a line, then every candidate with its decision."""
        return f"{self._summary('eta', 'lambda')}\n{decisions_text(self.accepted, self.refused)}"

    def _summary(self, eta: str, limit: str) -> str:
        seen = f"{self.n_samples_seen:,} of {self.samples:,} samples"
        if not self.samples_known:
            # one sentence, since a price over too few samples is too high
            seen = f"{self.n_samples_seen:,} samples (prices count these, as samples= wasn't given)"
        return (
            f"Round {self.round}: scored on {seen}, "
            f"loss {html.number(self.loss, 4)}, {self.parameters:,} parameters; "
            f"{eta} {html.number(self.eta)}, {limit} {html.number(self.score_limit)}; {len(self.accepted)} accepted"
        )

    def as_dict(self) -> dict[str, Any]:
        """Every figure, ready for JSON."""
        record = {f.name: getattr(self, f.name) for f in fields(self)}
        record["accepted"] = [one.as_dict() for one in self.accepted]
        record["refused"] = [one.as_dict() for one in self.refused]
        record["moves"] = list(self.moves)
        record["architecture"] = list(self.architecture)
        record["realized_decreases"] = list(self.realized_decreases)
        record["realized_decrease"] = self.realized_decrease
        return record

    def _repr_html_(self) -> str:
        rows = [(name, html.number(eta)) for name, eta in self.eta_by_map.items()]
        summary = f"<p>{escape(self._summary('η', 'λ'))}</p>"
        maps = html.table("η by linear map", ("map", "η"), rows)
        return summary + decisions_html(self.accepted, self.refused) + maps

    def state(self) -> dict[str, Any]:
        """All fields as plain values; non-finite floats are kept."""
        return asdict(self)

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> GrowthRound:
        """Make the round that `state` was taken of."""
        state = current_keys(cls, state)
        values = dict(state)
        for name in ("accepted", "refused"):
            values[name] = tuple(Decision.from_state(one) for one in state[name])
        together = values.pop("realized_decrease", None)  # senn 0.1 had one figure for all changes
        values.setdefault("realized_decreases", () if together is None else (together,))
        for name in ("moves", "architecture", "realized_decreases"):
            values[name] = tuple(values[name])
        return cls(**values)
