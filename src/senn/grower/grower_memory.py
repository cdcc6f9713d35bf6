"""State of a grower between rounds, as plain values and tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from senn._records import reading_state
from senn.candidates.candidate_set import CandidateSet
from senn.errors import SennError
from senn.events import GrowthEvent, GrowthRound
from senn.graph import DependencyGraph, Refusal
from senn.kfac.batch_layout import BatchLayout
from senn.scoring.ablation import ablated
from senn.scoring.birth_steps import ParameterEntries
from senn.scoring.data_covariance import DataCovariance
from senn.scoring.pool import CandidatePool
from senn.scoring.scoring_session import ScoringSession


@dataclass(frozen=True, eq=False, kw_only=True)
class GrowerState:
    """Everything that a grower remembers between rounds.

    Attributes:
        rounds: number of rounds so far.
        samples: number of training samples; None if it isn't known.
        eta: expansion score in the last round.
        generator: state of the random generator.
        known: by linear map that reads the data itself, its input covariance.
        events: all changes so far.
        open_round: number of the round whose events aren't realized yet; None for none.
        rejections: changes that failed their verification, one sentence each.
        failed: places whose change failed, with the reason.
        last_round: record of the last round; None before the first.
        new_entries: weights through which what the open round has added reaches the outputs.
    """

    rounds: int
    samples: int | None
    eta: float
    generator: Tensor
    known: dict[str, DataCovariance]
    events: list[GrowthEvent]
    open_round: int | None
    rejections: list[str]
    failed: list[Refusal]
    last_round: GrowthRound | None
    new_entries: list[ParameterEntries]

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values and tensors."""
        open_events = [
            number for number, event in enumerate(self.events) if event.round == self.open_round
        ]
        last_round = None if self.last_round is None else self.last_round.state()
        return {
            "rounds": self.rounds,
            "samples": self.samples,
            "eta": self.eta,
            "generator": self.generator,
            "known": {name: asdict(one) for name, one in self.known.items()},
            "events": [event.state() for event in self.events],
            "open": open_events,
            "rejections": [*self.rejections],
            "failed": [asdict(one) for one in self.failed],
            "last_round": last_round,
            "new_entries": [asdict(one) for one in self.new_entries],
        }

    @classmethod
    def from_dict(cls, state: Mapping[str, Any], device: torch.device) -> GrowerState:
        """Read what `to_dict` wrote, in this version or the one before.

        Args:
            state: the state.
            device: device of the covariances.

        Raises:
            SennError: it isn't such a state.
        """
        with reading_state("this isn't the state of a Grower"):
            known = {
                name: DataCovariance(**{**one, "factor": one["factor"].to(device, copy=True)})
                for name, one in state["known"].items()
            }
            events = [GrowthEvent.from_state(one) for one in state["events"]]
            open_rounds = [events[number].round for number in state["open"]]
            last = (
                state["last_round"] if "last_round" in state else state["consideration"]
            )  # as version 0.1 called it
            generator = torch.Generator()
            # A generator of its own checks the state before this one is touched.
            generator.set_state(state["generator"].cpu())
            added = [ParameterEntries(**one) for one in state.get("new_entries", ())]
            last_round = None if last is None else GrowthRound.from_state(last)
            return cls(
                rounds=int(state["rounds"]),
                samples=state["samples"],
                eta=float(state["eta"]),
                generator=generator.get_state(),
                known=known,
                events=events,
                open_round=open_rounds[-1] if open_rounds else None,
                rejections=[str(text) for text in state["rejections"]],
                failed=[Refusal(**one) for one in state.get("failed", ())],
                last_round=last_round,
                new_entries=added,
            )


class GrowerMemory:
    """Everything in a grower that changes from batch to batch or from round to round.

    Args:
        model: the model that it grows.
        samples: number of training samples; None if it isn't known.
        seed: seed of everything drawn at random.
    """

    def __init__(self, model: nn.Module, *, samples: int | None, seed: int) -> None:
        self.model = model
        self.samples = samples
        self.events: list[GrowthEvent] = []
        self.rejections: list[str] = []
        self._failed: list[Refusal] = []  # places whose change failed, which aren't offered again
        self.eta = float("nan")
        self.candidate_set = CandidateSet()
        self.last_round: GrowthRound | None = None
        self.rounds = 0
        self.recompiles = 0
        self._round_moves: tuple[str, ...] | None = None  # of `grow(moves=...)`, while it runs
        self._generator = torch.Generator().manual_seed(seed)
        self._graph: DependencyGraph | None = None
        self._session: ScoringSession | None = None
        self._known: dict[str, DataCovariance] = {}
        self._layouts: dict[str, BatchLayout | str] = {}
        self._open_round: int | None = None  # the round whose events aren't realized yet
        self._new_entries: list[ParameterEntries] = []  # what that round has added

    @property
    def graph(self) -> DependencyGraph:
        """Dependency graph of the model; known after the first batch.

        Raises:
            SennError: no batch has been observed.
        """
        if self._graph is None:
            raise SennError(
                "the model's graph is known after the first batch: call observe or grow first"
            )
        return self._graph

    @property
    def unreadable_maps(self) -> dict[str, str]:
        """Linear maps whose rows can't be read, with the reason: gains through them don't count.

        Known after the first batch.
        """
        return {name: found for name, found in self._layouts.items() if isinstance(found, str)}

    @property
    def architecture(self) -> tuple[int, ...]:
        """Widths of the channel groups that can change, in order of use."""
        return tuple(self._widths().values())

    @property
    def layer_names(self) -> tuple[str, ...]:
        """Names of these channel groups."""
        return tuple(self._widths())

    def state_dict(self) -> dict[str, Any]:
        """State that a grower of the same model and settings needs to go on: plain values and tensors, all copies.

        Between rounds it is complete: with the model and the optimizer brought back to the same numbers, all that
        follows is bit for bit the same. Batches observed since the last round aren't in it, nor are `candidate_set` and
        what undoes a round.
        """
        state = GrowerState(
            rounds=self.rounds,
            samples=self.samples,
            eta=self.eta,
            generator=self._generator.get_state(),
            known=self._known,
            events=self.events,
            open_round=self._open_round,
            rejections=self.rejections,
            failed=self._failed,
            last_round=self.last_round,
            new_entries=self._new_entries,
        )
        return state.to_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken; the model is analyzed anew at the next batch.

        Args:
            state: state of a grower with the same settings, whose model had the sizes that this one's has now.

        Raises:
            SennError: it isn't such a state; nothing is changed.
        """
        device = next(
            (parameter.device for parameter in self.model.parameters()), torch.device("cpu")
        )
        loaded = GrowerState.from_dict(state, device)
        self._generator.set_state(loaded.generator)
        self._known.clear()
        self._known.update(loaded.known)
        # How maps can be read depends on sizes, which may have changed.
        self._layouts.clear()
        self._graph = self._session = None
        self.candidate_set = CandidateSet()
        self.rounds, self.samples, self.eta = loaded.rounds, loaded.samples, loaded.eta
        self.events, self.rejections = loaded.events, loaded.rejections
        self._failed = loaded.failed
        self.last_round, self._open_round = loaded.last_round, loaded.open_round
        self._new_entries = loaded.new_entries

    def _widths(self) -> dict[str, int]:
        return {group.name: group.width for group in self.graph.groups}

    def _snapshot(self) -> Callable[[], None]:
        """Take a snapshot of everything that changes before a decision is taken; returns what restores it."""
        session, generator, known = self._session, self._generator.get_state(), dict(self._known)
        snapshot = None if session is None else session.snapshot()
        realized = [(event, event.realized_decrease) for event in self._unrealized()]
        names = ("samples", "eta", "candidate_set", "_open_round", "_new_entries")
        attributes = {name: getattr(self, name) for name in names}

        def restore() -> None:
            self._session = session
            self._generator.set_state(generator)
            self._known.clear()
            self._known.update(known)
            if session is not None and snapshot is not None:
                session.restore(snapshot)
            for event, former in realized:
                event.realized_decrease = former
            # The session's own snapshot has the statistics; these are the grower's.
            vars(self).update(attributes)

        return restore

    def _unrealized(self) -> list[GrowthEvent]:
        """Events of the last round, until a batch shows what came of them."""
        return [event for event in self.events if event.round == self._open_round]

    def _realize(self, session: ScoringSession, pool: CandidatePool) -> None:
        """Measure what each addition of the last round brings by now, on the last batch that was observed."""
        weights = {one.weight for one in pool.maps.values()}
        is_partial = session.round_config.n_turns > 1
        for event in self._unrealized():
            added = [
                one
                for one in self._new_entries
                if (one.kind, one.place) == (event.kind, event.place)
            ]
            # The columns of a map that isn't scored in this round can't take over what the new ones bring.
            is_known = not is_partial or all(
                one.name in weights for one in added if one.kind == "widen"
            )
            if added and is_known and all(one.fits(self.model) for one in added):
                with ablated(pool, added):
                    loss = session.probe_loss()
                event.realized_decrease = (loss - session.loss_before) / event.loss_per_nat
        self._open_round, self._new_entries = None, []

    def _realized_decreases(self) -> tuple[float | None, ...]:
        """What each change of the last round has brought."""
        return tuple(one.realized_decrease for one in self.events if one.round == self.rounds)
