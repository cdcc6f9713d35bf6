"""Units of residual streams behind norms: scores of the rows that write them, against dense factors in float64."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import senn
from senn.candidates.stream_units import Writer
from senn.graph.model_copy import copy_model
from senn.kfac.factors import DAMPING, damped
from senn.scoring.account_steps import joint_step
from senn.scoring.births import Birth
from senn.scoring.formulas import width_gain, width_gain_bound
from senn.scoring.gains import LayerGains
from senn.scoring.planned_size import select
from senn.scoring.pool import CandidatePool
from senn.scoring.residual_statistics import UNIT_DAMPING
from senn.scoring.stream_births import all_birth_steps
from senn.surgery import apply_moves, transaction

WIDTH, HIDDEN, TOKENS, VOCABULARY = 5, 6, 4, 7
UNITS = 3


class Branch(nn.Module):
    """Mixing over former tokens and a feed-forward part, each behind a norm, with biases where they write."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.norm1, self.value, self.out = (
            norm(WIDTH),
            nn.Linear(WIDTH, HIDDEN),
            nn.Linear(HIDDEN, WIDTH),
        )
        self.norm2, self.up, self.down = (
            norm(WIDTH),
            nn.Linear(WIDTH, HIDDEN, bias=False),
            nn.Linear(HIDDEN, WIDTH),
        )

    def forward(self, x: Tensor) -> Tensor:
        mixed = torch.tanh(self.value(self.norm1(x))).cumsum(1) / TOKENS
        x = x + self.out(mixed)
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Decoder(nn.Module):
    """Tokens and positions in tables, one block, a norm and a head."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.embed, self.position = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(TOKENS, WIDTH)
        self.block, self.norm = Branch(norm), norm(WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, x: Tensor) -> Tensor:
        y = self.embed(x) + self.position.weight[: x.shape[1]]
        return self.head(self.norm(self.block(y)))


def rms_norm(width: int) -> nn.Module:
    return nn.RMSNorm(width, eps=1e-3)


class FixedNorm(nn.Module):
    """RMSNorm whose eps stands in the code, so that surgery multiplies what is written instead."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-2) * self.weight


NORMS: dict[str, Any] = {"rms": rms_norm, "fixed": FixedNorm, "layer": nn.LayerNorm}


def loss(logits: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
    return F.cross_entropy(logits.mT, targets, reduction=reduction)


def decoder(norm: str) -> Decoder:
    torch.manual_seed(0)
    model = Decoder(NORMS[norm])
    for one in model.modules():
        if isinstance(one, nn.RMSNorm | nn.LayerNorm | FixedNorm):
            nn.init.uniform_(one.weight, 0.5, 1.5)
    return model


def batch(samples: int = 24) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randint(VOCABULARY, (samples, TOKENS), generator=generator)
    return x, (x + x.roll(1, 1)) % VOCABULARY


def scored(model: nn.Module, **options: Any) -> tuple[senn.Grower, CandidatePool]:
    """A grower that was given a batch, and its pool."""
    config = senn.CandidateConfig(units=4, stream_units=UNITS)
    options = {"moves": ("width",), "candidate_config": config, "samples": 1_000} | options
    grower = senn.Grower(model, loss=loss, **options)
    return grower, grower._pool([batch()])


def widened(model: nn.Module, pool: CandidatePool, units: list[int]) -> nn.Module:
    """A float64 copy to which surgery has added candidate units of the stream."""
    copied = copy_model(model)
    move = select(pool.candidate_set.of_group("embed"), units, pool.graph.group("embed"))
    apply_moves(copied, [move], pool.graph)
    return copied.double()


def rows_of(tensor: Tensor, coupled: Any) -> Tensor:
    """Entries by unit, (units, c)."""
    return tensor.movedim(coupled.dim, 0).flatten(1)


def gradient(model: nn.Module, writer: Writer, factor: float, *, centered: bool) -> Tensor:
    """Gradient of the loss along the one new row, which the mean of the existing rows is taken off where norms do."""
    x, y = batch()
    names = [writer.coupled.name] + ([writer.map.bias] if writer.map and writer.map.bias else [])
    own = dict(model.named_parameters())
    grads = torch.autograd.grad(loss(model(x), y), [own[name] for name in names])
    rows = rows_of(grads[0], writer.coupled)
    if len(grads) > 1:
        rows = torch.cat([rows, grads[1][:, None]], 1)
    row = rows[WIDTH] - rows[:WIDTH].mean(0) if centered else rows[WIDTH]
    return row * factor


@pytest.mark.parametrize("norm", NORMS)
def test_gradients_of_rows_are_those_of_autograd_at_a_single_silent_row(norm: str) -> None:
    model = decoder(norm).double()
    _, pool = scored(model)
    stream = pool.candidate_set.streams["embed"]
    assert {one.name for one in stream.writers} == {
        "embed.weight",
        "position.weight",
        "block.out",
        "block.down",
    }
    is_fixed = any(one.fixed_eps for one in pool.graph.group("embed").norms)
    assert is_fixed == (norm == "fixed")
    factor = ((WIDTH + 1) / WIDTH) ** 0.5 if is_fixed else 1.0
    for unit in range(UNITS):
        alone = widened(model, pool, [unit])
        for writer in stream.writers:
            factors = pool.stream.units["embed"].parts[writer.name].factors
            found = factors.locations * factors.G[:, WIDTH + unit]
            wanted = gradient(alone, writer, factor, centered=norm == "layer")
            assert wanted.abs().max() > 1e-4
            assert torch.allclose(found, wanted, rtol=1e-6, atol=1e-9), (writer.name, unit)


@pytest.mark.parametrize("norm", NORMS)
def test_scores_are_those_of_the_factors_of_each_map(norm: str) -> None:
    """Factors of existing rows are the map's own, exchanged; gains are the formulas of the paper on them."""
    model = decoder(norm).double()
    _, pool = scored(model)
    center = torch.eye(WIDTH, dtype=torch.float64)
    if norm == "layer":
        center = center - 1 / WIDTH
    for name in ("block.out", "block.down"):
        gains, own = pool.stream.units["embed"].parts[name], pool.layer_gains[name].factors
        new, c = gains.factors, pool.layer_gains[name].existing
        assert torch.allclose(new.A[:WIDTH, :WIDTH], center @ own.S @ center, atol=1e-10)
        assert torch.allclose(new.S, own.A[:c, :c])
        assert torch.allclose(new.G[:, :WIDTH], (center @ own.G[:, :c]).mT, atol=1e-10)
        inverse = torch.linalg.inv(damped(new.A[:WIDTH, :WIDTH], DAMPING))
        side = new.A[:WIDTH, WIDTH:]
        residual = new.G[:, WIDTH:] - new.G[:, :WIDTH] @ inverse @ side
        every = torch.arange(UNITS)[:, None]
        kept = {"locations": new.locations, "damping": DAMPING}
        for unit in range(UNITS):
            row, moment = residual[:, [unit]], new.A[[WIDTH + unit]][:, [WIDTH + unit]]
            moment = moment * (
                1 + UNIT_DAMPING - DAMPING
            )  # the formulas' own damping is the other one
            across = side[:, [unit]]
            wanted = width_gain(row, moment, across, new.A[:WIDTH, :WIDTH], new.S, **kept)
            bound = width_gain_bound(row, moment, new.S, **kept)
            assert float(gains.gain(every)[unit]) == pytest.approx(float(wanted), rel=1e-3)
            assert float(gains.gain_lower_bound(every)[unit]) == pytest.approx(
                float(bound), rel=1e-3
            )


def test_frequencies_are_the_curvature_of_tables() -> None:
    model = decoder("rms")
    _, pool = scored(model)
    x, _ = batch()
    parts = pool.stream.units["embed"].parts
    counts = x.flatten().bincount(minlength=VOCABULARY) / x.numel()
    assert torch.allclose(parts["embed.weight"].factors.S, counts.double())
    positions = torch.full((TOKENS,), 1 / TOKENS, dtype=torch.float64)
    assert torch.allclose(parts["position.weight"].factors.S, positions)


def slope(gains: LayerGains, columns: Tensor) -> float:
    """First-order decrease on the fitting fold by the joint step of some columns."""
    # as they were before anything was accepted: the steps are those of all of them together
    fresh = LayerGains(*gains.folds, gains.existing)
    _, white = joint_step(fresh, columns)
    return gains.locations * float((white * fresh.fit.cross[:, columns]).sum())


@pytest.mark.parametrize("norm", NORMS)
def test_units_change_nothing_at_birth_and_small_steps_bring_what_is_promised(norm: str) -> None:
    model = decoder(norm).double()
    grower, pool = scored(model)
    session = grower._session
    assert session is not None
    assert session.last_batch is not None
    x, y, _ = session.last_batch.first(12)  # the fold that steps are fitted on
    before = float(loss(model(x), y))
    for place in ("embed", "embed", "block.up"):
        pool.commit(next(one for one in pool.candidates() if one.place == place))
    units, hidden = torch.tensor(pool.grown["embed"]), pool.grown["block.up"]
    columns = pool.columns["block.down"].groups["block.up"][hidden].flatten()
    promised = slope(pool.layer_gains["block.down"], columns)
    promised += sum(slope(one, units) for one in pool.stream.units["embed"].parts.values())
    inputs = session.probe_inputs
    outputs = model(inputs).detach()
    receipt = transaction(model, pool.to_moves(), pool.graph, probe=inputs)
    for mode in (True, False):
        assert torch.allclose(model.train(mode)(inputs), outputs, atol=1e-10)
    steps = all_birth_steps(pool, receipt)
    birth = Birth(model=model, steps=steps, communicator=session.communicator, groups={})
    length = 1e-5
    birth.give(length)
    brought = (before - float(loss(model(x), y))) / length
    assert abs(promised) > 1e-3
    assert brought == pytest.approx(promised, rel=2e-3)


def text(samples: int = 64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randint(VOCABULARY, (samples, TOKENS), generator=generator)
    return x, (x + x.roll(1, 1)) % VOCABULARY


def figures(pool: CandidatePool) -> dict[str, tuple[float, Tensor, Tensor]]:
    """Locations, gradient of existing rows, and covariance of inputs at all that writes the stream."""
    parts = pool.stream.units["embed"].parts
    found = {name: one.factors for name, one in parts.items()}
    return {name: (one.locations, one.G[:, :WIDTH], one.S) for name, one in found.items()}


def test_weights_padding_and_several_batches_are_what_they_stand_for() -> None:
    model, (x, y) = decoder("rms").double(), batch()
    config = senn.CandidateConfig(stream_units=UNITS)

    grower = senn.Grower(model, loss=loss, moves=("width",), candidate_config=config)

    def found(*batches: Any) -> dict[str, Any]:
        grower.reset()
        return figures(grower._pool(batches))

    def are_close(one: dict[str, Any], other: dict[str, Any]) -> None:
        for name, (locations, *rest) in one.items():
            assert locations == pytest.approx(other[name][0])
            for a, b in zip(rest, other[name][1:], strict=True):
                assert torch.allclose(a, b, rtol=1e-6, atol=1e-9), name

    are_close(found((x, y)), found((x[:10], y[:10]), (x[10:], y[10:])))
    twice = torch.ones(len(x), dtype=torch.float64)
    twice[:4] = 2
    are_close(found((x, y, twice)), found((torch.cat([x, x[:4]]), torch.cat([y, y[:4]]))))
    ignored = y.clone()
    ignored[:, -1] = -100  # nothing before it can see the last token
    other = x.clone()
    other[:, -1] = 0
    one = found((x, ignored))
    assert one["position.weight"][0] == TOKENS - 1
    assert one["position.weight"][2].tolist() == pytest.approx([1 / 3] * 3 + [0])
    are_close(one, found((other, ignored)))


@pytest.mark.parametrize("norm", ["rms", "layer"])
def test_a_stepped_birth_lowers_the_loss_on_other_samples_and_keeps_the_optimizer(
    norm: str,
) -> None:
    model = decoder(norm)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(5):
        optimizer.zero_grad()
        loss(model(batch()[0]), batch()[1]).backward()
        optimizer.step()
    former = {
        name: optimizer.state[one]["exp_avg"].clone() for name, one in model.named_parameters()
    }
    x, y = text()
    other, wanted = text(512)
    before = float(loss(model(other), wanted))
    grower = senn.Grower(
        model,
        optimizer,
        loss=loss,
        moves=("width",),
        policy=senn.PricePolicy(1e-9),
        candidate_config=senn.CandidateConfig(stream_units=8),
        max_width={"embed": WIDTH + 1, "block.value": HIDDEN, "block.up": HIDDEN},
        samples=1_000,
    )
    (event,) = grower.grow([(x, y)])
    assert (event.place, event.width_after) == ("embed", WIDTH + 1)
    assert event.step_length > 0
    assert float(loss(model(other), wanted)) < before
    for name, one in model.named_parameters():
        own = optimizer.state[one]
        corner = tuple(slice(0, size) for size in former[name].shape)
        # as it was, but for what norms of a fixed eps would multiply
        assert own["exp_avg"].shape == one.shape
        assert torch.equal(own["exp_avg"][corner], former[name])
    event.undo()
    assert model.embed.embedding_dim == WIDTH


def test_a_round_takes_stream_units_of_a_gpt_where_these_alone_are_allowed() -> None:
    sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
    from gpt_model import GPT, Config

    torch.manual_seed(0)
    config = Config(width=12, head_size=4, heads=2, hidden=16, context=6)
    model, x = GPT(config, VOCABULARY), torch.randint(VOCABULARY, (64, 6))
    grower = senn.Grower(
        model,
        torch.optim.AdamW(model.parameters()),
        loss=loss,
        moves=("width",),
        policy=senn.PricePolicy(1e-9),
        candidate_config=senn.CandidateConfig(stream_units=8),
        round_to=4,
        max_width={"embed": 16, "blocks.0.attention.query": 2, "blocks.0.feed.up": 16},
    )
    (event,) = grower.grow([(x, (x + 1) % VOCABULARY)])
    assert (event.place, event.units, model.norm.weight.shape[0]) == ("embed", 4, 16)
    assert grower.score_candidates([(x, (x + 1) % VOCABULARY)]) is not None
    assert event.realized_decrease is not None


def test_streams_without_a_norm_over_units_stay_ordinary_groups() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))
    config = senn.CandidateConfig(stream_units=8)
    grower = senn.Grower(model, loss=F.cross_entropy, moves=("width",), candidate_config=config)
    x = torch.randn(32, 3, generator=torch.Generator().manual_seed(0))
    grower.score_candidates([(x, (x[:, 0] > 0).long())])
    assert not grower.candidate_set.streams
    assert set(grower.candidate_set.widen) == {"0"}


class Scaled(nn.Module):
    """A stream that a branch writes through a scale of its own; a head that is tied to a table, if asked for."""

    def __init__(self, norm: Any, *, tied: bool) -> None:
        super().__init__()
        self.embed, self.norm, self.up = nn.Embedding(7, 4), norm(4), nn.Linear(4, 5)
        self.down, self.scale = nn.Linear(5, 4), nn.Parameter(torch.full((4,), 0.5))
        self.last, self.head = norm(4), nn.Linear(4, 7, bias=False)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        y = self.embed(x)
        y = y + self.scale * self.down(torch.relu(self.up(self.norm(y))))
        return self.head(self.last(y))


@pytest.mark.parametrize("tied", [False, True])
def test_what_cannot_be_read_is_left_out_by_name(tied: bool) -> None:
    config = senn.CandidateConfig(stream_units=UNITS)

    def writers(norm: Any) -> dict[str, list[str]]:
        torch.manual_seed(0)
        model = Scaled(norm, tied=tied)
        grower = senn.Grower(model, loss=loss, moves=("width",), candidate_config=config)
        streams = grower._pool([batch()]).candidate_set.streams
        return {name: [one.name for one in units.writers] for name, units in streams.items()}

    (found,) = writers(nn.RMSNorm).values()
    assert found == (["down"] if tied else ["embed.weight", "down"])
    with pytest.warns(UserWarning, match="no units .* stream embed: scale scales what down writes"):
        assert not writers(nn.LayerNorm)
