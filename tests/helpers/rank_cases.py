"""Runs of growing that several processes do together and one alone: what must come out alike."""

from __future__ import annotations

import copy
import io
import os
import signal
import time
import unittest.mock
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from senn import Grower, PaperPolicy, PricePolicy, RoundConfig
from senn.candidates.candidate_config import CandidateConfig
from senn.cli.signals import Signals
from senn.cli.workers import WorkerCheckpointer, shared_state
from senn.collectives import Communicator, ProcessGroupCommunicator, default_communicator
from senn.errors import SennError, SurgeryError
from senn.nn import MLP, ConvNet
from senn.scoring import batch_statistics
from senn.training import TrainConfig
from senn.training.batches import Rows
from senn.training.loop import fit_model

SAMPLES = 120


def _rows(features: int = 6, classes: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(SAMPLES, features, generator=generator, dtype=torch.float64)
    y = ((x[:, 0] * x[:, 1] > 0).long() + (x[:, 2] > x[:, 3]).long()) % classes
    return x, y


def _images() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(SAMPLES, 2, 6, 6, generator=generator, dtype=torch.float64)
    return x, (x[:, 0, :3].mean((1, 2)) * x[:, 1, 3:].mean((1, 2)) > 0).long()


class Flat(nn.Module):
    """A first map of more columns than rows: rows stand for themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.out = nn.Linear(300, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.hidden(x)))


class Residual(nn.Module):
    """A block of the user's own."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = (
            nn.Conv2d(width, width, 3, padding=1),
            nn.Conv2d(width, width, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(torch.relu(self.first(x)))


class Blocks(nn.Module):
    """A net of one residual block."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block, self.out = (
            nn.Conv2d(2, 4, 3, padding=1),
            Residual(4),
            nn.Linear(4, 2),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.relu(self.block(self.stem(x))).mean((2, 3)))


class Stream(nn.Module):
    """A stream of tokens and positions, which a block reads behind a norm, and writes."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.position = nn.Embedding(6, 4), nn.Embedding(5, 4)
        self.norm, self.up, self.down = nn.LayerNorm(4), nn.Linear(4, 5), nn.Linear(5, 4)
        self.last, self.head = nn.LayerNorm(4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.embed(x) + self.position.weight[: x.shape[1]]
        y = y + self.down(torch.relu(self.up(self.norm(y)).cumsum(1)))
        return self.head(self.last(y).mean(1))


def _case(
    name: str,
) -> tuple[nn.Module, tuple[Tensor, ...], dict[str, Any], Sequence[Sequence[str]]]:
    """Model, joint batch, arguments of the grower, moves of each round."""
    eager = {"policy": PricePolicy(kappa=1e-4, confidence=0.0, layer_cost=1.0), "samples": 10_000}
    every = ("width", "depth", "prune")
    if name == "width and depth":
        return (
            MLP(6, (3, 2), 3),
            _rows(),
            {**eager, "candidate_config": CandidateConfig(units=12), "max_width": 6},
            [every, every],
        )
    if name == "weights":
        weights = torch.rand(
            SAMPLES, generator=torch.Generator().manual_seed(5), dtype=torch.float64
        )
        return (
            MLP(6, (3,), 3),
            (*_rows(), weights),
            {**eager, "max_width": 5},
            [("width",), ("depth",)],
        )
    if name == "removals":
        grower = {"policy": PricePolicy(kappa=1.0, retention_factor=50.0), "samples": 1000}
        return MLP(6, (12, 9), 3), _rows(), grower, [("prune",), ("width", "prune")]
    if name == "paper":
        return (
            MLP(6, (3,), 3),
            _rows(),
            {
                "policy": PaperPolicy(tau=0.05),
                "candidate_config": CandidateConfig(units=6, ascent_steps=3),
            },
            [("width",)],
        )
    if name == "rows for themselves":
        return (
            Flat(),
            _rows(300),
            {**eager, "max_width": 6, "candidate_config": CandidateConfig(units=8)},
            [("width",)],
        )
    if name == "images":
        return (
            ConvNet(2, ((3,), (4,)), 2),
            _images(),
            {**eager, "max_width": 6},
            [("width", "depth"), ("prune",)],
        )
    if name == "images in parts":
        return (
            ConvNet(2, ((3,), (4,)), 2),
            _images(),
            {**eager, "max_width": 6},
            [("width",), ("prune", "width")],
        )
    if name == "a stream":
        x = torch.randint(6, (SAMPLES, 5), generator=torch.Generator().manual_seed(5))
        joint = x, (x == 0).any(1).long() + (x == 1).any(1).long()
        limits = {"embed": 6, "up": 6}
        config = CandidateConfig(units=6, stream_units=5)
        return (
            Stream(),
            joint,
            {**eager, "candidate_config": config, "max_width": limits, "birth": "stepped"},
            [("width",), ("width",)],
        )
    assert name == "a block"
    x, _ = _images()
    policy = PaperPolicy(tau=1e-9, alpha=1e-9, layer_cost=1.0)
    joint = x, (x[:, 0] * x[:, 1]).mean((1, 2)).gt(0).long()
    return (
        Blocks(),
        joint,
        {
            "policy": policy,
            "moves": ("depth",),
            "candidate_config": CandidateConfig(residual_units=0, identity_bases=0),
        },
        [("depth",)],
    )


CASES = (
    "width and depth", "weights", "removals", "paper", "rows for themselves", "images", "images in parts", "a block",
    "a stream",
)  # fmt: skip


def grow(
    name: str,
    counts: Sequence[int],
    rank: int,
    communicator: Communicator,
    steps: int = 3,
    **settings: Any,
) -> dict[str, Any]:
    """A run of rounds with training between, this rank's samples being `counts[rank]` of the joint batch."""
    torch.manual_seed(0)
    model, joint, arguments, rounds = _case(name)
    model = model.double()
    start = sum(counts[:rank])
    own = tuple(x[start : start + counts[rank]] for x in joint)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    grower = Grower(
        model,
        optimizer,
        loss=F.cross_entropy,
        communicator=communicator,
        seed=1,
        **arguments,
        **settings,
    )
    train = steps if not isinstance(model, ConvNet) else 0  # batch statistics are those of a rank
    events, figures = [], []
    most = batch_statistics.MOST_ROWS
    if (
        name == "images in parts"
    ):  # parts are as large for several processes as they are for one here
        batch_statistics.MOST_ROWS = int(25 * 36 * max(counts) / SAMPLES + 1)
    for moves in rounds:
        _train(model, optimizer, own, SAMPLES, train, communicator)
        batches = [own]
        if name == "width and depth" and rank == 0:  # one rank has a batch more than the others
            batches.append(tuple(part[:20] for part in joint))
        if name == "removals":
            grower.observe(*batches.pop())
        changes = grower.grow(batches or None, moves)
        events += [(e.kind, e.place, e.units, e.loss_before, e.loss_after) for e in changes]
        found = grower.last_round
        assert found is not None
        figures += [
            grower.eta,
            found.loss,
            float(found.samples),
            *(one.margin for one in found.accepted),
        ]
        figures += [
            x
            for one in found.refused
            for x in (one.margin, one.candidate.gain, one.candidate.held_out_gain)
        ]
    batch_statistics.MOST_ROWS = most
    _train(model, optimizer, own, SAMPLES, train, communicator)
    state = [x for one in optimizer.state.values() for x in one.values()]
    return {
        "events": events,
        "figures": figures,
        "weights": model.state_dict(),
        "state": state,
        "sent": communicator.sent,
    }


def _train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    own: tuple[Tensor, ...],
    total: int,
    steps: int,
    communicator: Communicator,
) -> None:
    """Steps on the mean over the joint batch."""
    for _ in range(steps):
        optimizer.zero_grad()
        weight = own[2] if len(own) == 3 else torch.ones(len(own[1]), dtype=torch.float64)
        if len(own[1]):
            (
                F.cross_entropy(model(own[0]), own[1], reduction="none") * weight / total
            ).sum().backward()
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
        for parameter, gradient in zip(
            model.parameters(), communicator.all_reduce("train", gradients), strict=True
        ):
            parameter.grad = gradient
        optimizer.step()


class Shifted(nn.Module):
    """Inputs with a tensor beside them that holds no samples."""

    def __init__(self) -> None:
        super().__init__()
        self.body = MLP(6, (3,), 3)

    def forward(self, x: Tensor, table: Tensor) -> Tensor:
        return self.body(x + table.mean(0))


SHIFTED = {1: ((160,), 0), 2: ((70, 90), 57), 3: ((60, 50, 50), 49)}
"""By number of ranks: their samples, and how many of the first one's are among the 128 that the draw looks at."""


def shifted(communicator: Communicator, length: int) -> list[float]:
    """The scores of such a model, whose table is of some length."""
    torch.manual_seed(0)
    model = Shifted().double()
    x, y = (torch.cat([part, part])[:160] for part in _rows())
    counts, _ = SHIFTED[communicator.size]
    own = slice(sum(counts[: communicator.rank]), sum(counts[: communicator.rank + 1]))
    grower = Grower(
        model, None, F.cross_entropy, PricePolicy(kappa=1.0), communicator=communicator, seed=1
    )
    found = grower.score_candidates(
        [({"x": x[own], "table": torch.ones(length, 6, dtype=torch.float64)}, y[own])]
    )
    return [grower.eta, *(one.held_out_gain for one in found)]


def units(communicator: Communicator) -> dict[str, Any]:
    """Scores of every unit, what is kept of the data, and whose accounts this process keeps."""
    torch.manual_seed(0)
    model, (x, y), arguments, _ = _case("width and depth")
    own = communicator.local_slice(SAMPLES)
    grower = Grower(
        model.double(), None, F.cross_entropy, communicator=communicator, seed=1, **arguments
    )
    found = grower.score_units([(x[own], y[own])])
    figures = ("gain", "gain_lower_bound", "held_out_gain", "held_out_stderr", "gradient_norm")
    assert grower._session is not None
    pool = grower._session.pool(SAMPLES, grower.budget)
    return {
        "scores": {place: [getattr(one, name) for name in figures] for place, one in found.items()},
        "factors": [
            matrix
            for one in found.values()
            for of in one.readers.values()
            for matrix in (of.A, of.S, of.G)
        ],
        "known": [one["factor"] for one in grower.state_dict()["known"].values()],
        "owned": [*pool.layer_gains],
        "maps": [*pool.eta_by_map],
    }


def operations(communicator: Communicator) -> list[Any]:
    """Sums, samples and results that one rank alone gets or makes: (what came, what should) on each."""
    size, rank = communicator.size, communicator.rank
    shapes = [(3, 5), (7,), (0,), (1,), (40, 40)]
    generators = [torch.Generator().manual_seed(one) for one in range(size)]
    by_rank = [[torch.randn(shape, generator=one) for shape in shapes] for one in generators]
    destinations = [(2 * i + 1) % size for i in range(len(shapes))]
    found: list[Any] = []
    for dtype in (None, torch.bfloat16):
        sent = [[x if dtype is None else x.to(dtype).float() for x in one] for one in by_rank]
        sums = communicator.reduce("sum", by_rank[rank], destinations, dtype=dtype)
        for i, total in enumerate(sums):
            wanted = sum(one[i] for one in sent) if destinations[i] == rank else None
            found.append((total, wanted))
    counts = [2, 0, 3][:size]
    positions = torch.randperm(sum(counts), generator=torch.Generator().manual_seed(9))
    own = torch.split(positions, counts)[rank]
    groups = [(own, [own.double(), torch.stack([own, own], 1)]) for _ in range(2)]
    ordered = torch.arange(sum(counts))
    for i, got in enumerate(communicator.gather("gather", groups, [size - 1] * 2)):
        wanted = (
            [ordered.double(), torch.stack([ordered, ordered], 1)] if rank == size - 1 else None
        )
        found += (
            [(got, wanted)] if wanted is None or got is None else [*zip(got, wanted, strict=True)]
        )
        assert i < 2
    result = communicator.broadcast_result("send", size - 1, lambda: [torch.full((2, 3), rank)])
    return [*found, (result[0], torch.full((2, 3), size - 1))]


def fit(communicator: Communicator) -> dict[str, Any]:
    """A run of `fit_model` with growth, validation and averages; and the state that one would go on with."""
    torch.manual_seed(0)
    x, y = _rows()
    model = MLP(6, (2,), 3).double()
    recipe = TrainConfig(
        epochs=6,
        batch_size=25,
        average="ema",
        policy=PricePolicy(kappa=1e-4),
        candidates_per_layer=8,
        max_width=6,
    )
    weight = torch.rand(len(y), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    rows = Rows(x=x[:90], y=y[:90], weight=weight[:90] / weight[:90].mean())
    held_out = Rows(x=x[90:], y=y[90:])
    checkpointer = WorkerCheckpointer(communicator, Signals(), None)
    generator = torch.Generator().manual_seed(2)
    run = fit_model(
        model,
        rows,
        held_out,
        task="classification",
        recipe=recipe,
        generator=generator,
        checkpointer=checkpointer,
    )
    losses = [record["train_loss"] for record in run.history if record["event"] == "epoch"]
    state = {"weights": model.state_dict(), "step": 3, "losses": losses}
    sent = shared_state(communicator, state if communicator.rank == 0 else None, Path())
    return {
        "architecture": run.architecture,
        "losses": losses,
        "weights": run.model.state_dict(),
        "sent": sent,
    }


def endings(rank: int, folder: str) -> list[str]:
    """How rounds end in which one rank is another or fails: what each rank says of it. The last one's rank 1 dies."""
    patient, hasty = ProcessGroupCommunicator(), ProcessGroupCommunicator(timeout=6)
    torch.manual_seed(0)
    x, y = (part[40 * rank : 40 * rank + 40] for part in _rows())
    said = []

    def attempt(model: nn.Module, change: str, policy: PricePolicy | None = None) -> None:
        policy = policy or PricePolicy(kappa=1e-4, confidence=0.0)
        optimizer = torch.optim.Adam(model.parameters())
        patient.all_gather_object("begin")
        communicator = hasty if change in ("late", "death") else patient
        grower = Grower(
            model, optimizer, F.cross_entropy, policy, samples=10_000, communicator=communicator
        )
        before = copy.deepcopy(model.state_dict())
        inputs = x[:, :5] if change == "shape" and rank == 2 else x
        targets: Any = y.tolist() if change == "type" and rank == 2 else y
        try:
            if change == "late" and rank == 1:
                while len([*Path(folder).iterdir()]) < 2:  # until the others have given up
                    time.sleep(0.1)
            if change == "death" and rank == 1:  # in the middle of a sum
                unittest.mock.patch(
                    "torch.distributed.all_to_all_single", side_effect=lambda *_, **__: os._exit(1)
                ).start()
            if change == "surgery" and rank == 1:
                error = SurgeryError("the outputs changed")
                with unittest.mock.patch(
                    "senn.scoring.applied_round.transaction", side_effect=error
                ):
                    events = grower.grow([(inputs, targets)], ("width",))
            elif change in ("call", "late") and rank == 1:
                communicator.all_gather_object("do something else")
            else:
                events = grower.grow([(inputs, targets)], ("width",))
            left_out = change == "surgery" and not events
            same = all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
            said.append(grower.rejections[-1] if left_out and same else "nothing")
        except SennError as error:
            if change == "late":
                (Path(folder) / str(rank)).touch()
            same = all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
            said.append(f"{type(error).__name__}: {error}" if same else "the model has changed")

    model = MLP(6, (3,), 3).double()
    for change in ("weight", "shape", "type", "policy", "surgery", "call", "late", "death"):
        other = copy.deepcopy(model)
        if change == "weight" and rank == 1:
            with torch.no_grad():
                other.body[0].weight[0, 0] += 1e-12
        attempt(other, change, PricePolicy(kappa=0.5) if change == "policy" and rank == 2 else None)
    return said


def _interrupted(communicator: Communicator, rank: int) -> str:
    """What ends a sum once rank 1 has had a signal; the next one takes place."""
    signals = Signals()
    with signals.between_steps(communicator):
        if rank == 1:
            signals.number = signal.SIGTERM  # at boot, so that its grace is over
        try:
            with communicator.fail_together("sum"):
                communicator.all_reduce("sum", [torch.ones(2)])
        except KeyboardInterrupt as error:
            return f"{error}; {communicator.all_reduce('sum', [torch.ones(1)])[0].item()}"
    return "nothing"


def meetings(rank: int) -> list[list[Any]]:
    """What ranks say to each other, and rounds, with meetings in the store, in the group, and gradients in bfloat16."""
    found = []
    for place, dtype in (("store", None), ("group", None), ("group", torch.bfloat16)):
        communicator = ProcessGroupCommunicator(meets_in=place)
        said: list[Any] = [communicator.all_gather_object("talk", ["x" * (300 * rank), rank])]
        try:
            with communicator.fail_together("fail"):
                if rank == 1:
                    raise ValueError("no")
        except (ValueError, SennError) as error:
            said.append(str(error))
        try:
            communicator.all_gather_object("be elsewhere" if rank == 1 else "be here")
        except SennError as error:
            said.append(str(error))
        said.append(_interrupted(communicator, rank))
        config = RoundConfig(reduce_dtype=dtype)
        run = grow("weights", (50, 0, 70), rank, communicator, steps=1, round_config=config)
        found.append([*said, run["events"]])
    return found


def several(rank: int, cases: Sequence[tuple[str, Sequence[int]]]) -> bytes:
    """All cases, one after the other."""
    communicator = default_communicator()
    scores = shifted(communicator, SHIFTED[communicator.size][1])
    found = [
        *(grow(name, counts, rank, communicator) for name, counts in cases),
        units(communicator),
        operations(communicator),
        scores,
        fit(communicator),
    ]
    buffer = io.BytesIO()
    torch.save(found, buffer)
    return buffer.getvalue()
