"""What gets neither gradient nor curvature weighs nothing: padding changes no score, no draw and no decision."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import senn
from senn.kfac.capture import capture
from senn.kfac.live_locations import live_gradients
from senn.kfac.live_outputs import live_outputs
from senn.kfac.loss_metric import LossMetric
from senn.kfac.pseudo_grad import draw_signs

N, LENGTH = 60, 3
FEW = senn.CandidateConfig(units=8, residual_units=4, identity_bases=1)
Loss = Callable[[Tensor, Tensor], Tensor]


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tokens(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs.flatten(0, -2), targets.flatten(), ignore_index=-100)


def pixels(outputs: Tensor, targets: Tensor) -> Tensor:
    return tokens(outputs.movedim(1, -1), targets)


def masked_squares(outputs: Tensor, targets: Tensor) -> Tensor:
    counted = torch.isfinite(targets)
    return ((outputs - targets.nan_to_num())[counted] ** 2).sum() / counted.sum()


def classes(x: Tensor) -> Tensor:
    return (x[..., 0] > 0).long() + (x[..., 1] > 0).long()


def pad(x: Tensor, after: int, value: float, before: int = 0) -> Tensor:
    """Pad the second dimension."""
    sides = [(0, 0)] * (x.dim() - 2) + [(before, after)]
    return F.pad(x, [size for pair in sides for size in pair], value=value)


def net(activation: type[nn.Module] = nn.Tanh, hidden: int = 4, outputs: int = 3) -> nn.Module:
    torch.manual_seed(0)
    first, second = nn.Linear(4, hidden), nn.Linear(hidden, hidden)
    return nn.Sequential(
        first, activation(), second, activation(), nn.Linear(hidden, outputs)
    ).double()


def round_of(
    model: nn.Module, batches: list[Any], loss: Loss, **options: Any
) -> tuple[list[float], list[str], Tensor]:
    """All figures of a round, what is decided, and the state of the generator after it."""
    options = {"moves": ("width", "prune"), "candidate_config": FEW, **options}
    grower = senn.Grower(copy.deepcopy(model), None, loss, samples=4000, **options)
    events = grower.grow(batches)
    held = grower.last_round
    assert held is not None

    figures = [*held.eta_by_map.values(), held.score_limit]
    for decision in (*held.accepted, *held.refused):
        one = decision.candidate
        figures += [one.gain, one.gain_lower_bound, one.held_out_gain, one.held_out_stderr]
    decided = [f"{event.kind} {event.place} {event.width_after}" for event in events]
    return figures, decided, grower._generator.get_state()


def assert_same(
    model: nn.Module, one: list[Any], other: list[Any], loss: Loss, **options: Any
) -> None:
    first, second = (round_of(model, batches, loss, **options) for batches in (one, other))
    assert second[0] == pytest.approx(first[0], rel=1e-7, abs=1e-10)
    assert first[1] == second[1]
    assert torch.equal(first[2], second[2])


X = randn(N, LENGTH, 4)
Y = classes(X)


@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU])
@pytest.mark.parametrize(("after", "before", "value"), [(9, 0, 0.0), (3, 0, 1e4), (2, 40, 1.5)])
def test_the_length_and_the_value_of_padding_change_nothing(
    activation: type[nn.Module], after: int, before: int, value: float
) -> None:
    """Two units of a ReLU layer are often off together: such rows stay, rows of padding go."""
    padded = pad(X, after, value, before), pad(Y, after, -100, before)
    assert_same(net(activation, hidden=2), [(X, Y)], [padded], tokens)


@pytest.mark.parametrize("options", [
    {"metric": "euclidean"},
    {"moves": ("depth",)},
    {"moves": ("width",), "candidate_config": senn.CandidateConfig(ascent_steps=2, units=8)},
])  # fmt: skip
def test_padding_changes_neither_new_layers_nor_the_ascent_nor_the_metric_of_the_outputs(
    options: dict[str, Any],
) -> None:
    assert_same(net(), [(X, Y)], [(pad(X, 9, 1.5), pad(Y, 9, -100))], tokens, **options)


def test_masked_squared_errors_are_those_of_the_others_alone() -> None:
    y = X[..., :1] * X[..., 1:2]
    padded = pad(X, 9, 3.0, 2), pad(y, 9, float("nan"), 2)
    assert_same(net(outputs=1), [(X, y)], [padded], masked_squares)


def test_batches_may_be_padded_to_lengths_of_their_own() -> None:
    half = N // 2
    halves = [(X[:half], Y[:half]), (X[half:], Y[half:])]
    padded = [(pad(x, n, 2.0), pad(y, n, -100)) for (x, y), n in zip(halves, (1, 4), strict=True)]
    assert_same(net(), halves, padded, tokens)


@pytest.mark.parametrize("weighted", [False, True])
def test_samples_whose_targets_are_all_ignored_take_no_place_in_a_fold(weighted: bool) -> None:
    more = [torch.cat([part[:9], new, part[9:]]) for part, new in (
        (X, randn(7, LENGTH, 4, seed=1)), (Y, Y.new_full((7, LENGTH), -100)),
    )]  # fmt: skip
    one, other = [[X, Y], [X[:, 0], Y[:, 0]]], [more, [part[:, 0] for part in more]]
    if weighted:  # no target is ignored, but the sample has no weight
        batch, longer = one[1], [other[1][0], other[1][1].clamp_min(0)]
        weights = torch.rand(N, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        zeros = torch.cat([weights[:9], torch.zeros(7), weights[9:]]).double()
        assert_same(net(), [(*batch, weights)], [(*longer, zeros)], F.cross_entropy)
        return
    assert_same(net(), [tuple(one[0])], [tuple(other[0])], tokens)
    assert_same(net(), [tuple(one[1])], [tuple(other[1])], F.cross_entropy)


class Embedded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.table, self.first, self.last = nn.Embedding(9, 6), nn.Linear(6, 3), nn.Linear(3, 4)

    def forward(self, ids: Tensor) -> Tensor:
        result: Tensor = self.last(torch.relu(self.first(self.table(ids))))
        return result


def ragged(length: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, length + 1, (N,), generator=g)
    ids = torch.randint(1, 9, (N, length), generator=g)
    dead = torch.arange(length) >= lengths[:, None]
    return ids.masked_fill(dead, 0), (ids * 7 % 4).masked_fill(dead, -100)


def test_samples_of_different_lengths_are_padded_on_any_side() -> None:
    ids, targets = ragged(12)
    model = Embedded().double()
    left = [x.flip(1) for x in (ids, targets)]  # a net of tokens doesn't know their order
    longer = pad(ids, 20, 3), pad(targets, 20, -100)
    assert_same(model, [(ids, targets)], [longer], tokens)
    with_last_first = round_of(model, [tuple(left)], tokens)[0]
    assert with_last_first[:2] == pytest.approx(
        round_of(model, [(ids, targets)], tokens)[0][:2], rel=0.2
    )


@pytest.mark.parametrize("size", [1, 3])
def test_ignored_borders_of_images_change_nothing(size: int) -> None:
    image, edge = randn(20, 2, 5, 5), size // 2
    target = classes(image.movedim(1, -1))[:, edge : 5 - edge, edge : 5 - edge]
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 3, 1), nn.ReLU(), nn.Conv2d(3, 3, size), nn.ReLU(), nn.Conv2d(3, 3, 1)
    ).double()
    padded = F.pad(image, (2, 2, 2, 2), value=1.7), F.pad(target, (2, 2, 2, 2), value=-100)
    # a layer before the convolution of size 3 would see the border itself
    moves = ("width", "prune") if size > 1 else ("depth",)
    assert_same(model, [(image, target)], [padded], pixels, moves=moves)


class Graph(nn.Module):
    """Messages along edges, an output for each node or, from their mean, for each graph."""

    def __init__(self, pooled: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.pooled = pooled
        self.first, self.second, self.last = nn.Linear(4, 5), nn.Linear(5, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        h = torch.relu(edges @ self.first(x))
        h = torch.relu(edges @ self.second(h) + h)
        if self.pooled:
            there = (edges.sum(2, keepdim=True) > 0).to(h)
            h = (h * there).sum(1) / there.sum(1).clamp_min(1)
        result: Tensor = self.last(h)
        return result


@pytest.mark.parametrize("pooled", [False, True])
def test_nodes_that_pad_a_graph_change_nothing(pooled: bool) -> None:
    nodes = torch.arange(6) < torch.randint(
        2, 7, (N, 1), generator=torch.Generator().manual_seed(0)
    )
    edges = ((randn(N, 6, 6) > 0) & nodes[:, None] & nodes[:, :, None]).double()
    x = randn(N, 6, 4, seed=1) * nodes[..., None]
    y = classes(x[:, 0]) if pooled else classes(x).masked_fill(~nodes, -100)
    padded = (pad(x, 5, 9.0), F.pad(edges, (0, 5, 0, 5))), y if pooled else pad(y, 5, -100)
    assert_same(
        Graph(pooled).double(), [((x, edges), y)], [padded], F.cross_entropy if pooled else tokens
    )


class Attention(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.kind = kind
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 3)
        self.layer = nn.TransformerEncoderLayer(
            8, 2, 6, dropout=0.0, batch_first=True, norm_first=True
        )

    def forward(self, x: Tensor, missing: Tensor) -> Tensor:
        causal = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        if self.kind == "causal":
            return self.last(self.layer(self.first(x), src_mask=causal))
        h = self.layer(self.first(x), src_key_padding_mask=missing)
        if self.kind == "maximum":
            h = h.masked_fill(missing[..., None], -1e9).amax(1)
        result: Tensor = self.last(h)
        return result


@pytest.mark.parametrize("kind", ["tokens", "causal", "maximum"])
def test_tokens_that_attention_masks_out_change_nothing(kind: str) -> None:
    lengths = torch.randint(1, 6, (N, 1), generator=torch.Generator().manual_seed(0))
    missing, x = torch.arange(6) >= lengths, randn(N, 6, 4)
    y = classes(x[:, 0]) if kind == "maximum" else classes(x).masked_fill(missing, -100)
    longer = y if kind == "maximum" else pad(y, 5, -100)
    padded = (pad(x, 5, 2.0), F.pad(missing, (0, 5), value=True)), longer
    loss = F.cross_entropy if kind == "maximum" else tokens
    assert_same(Attention(kind).double(), [((x, missing), y)], [padded], loss, moves=("width",))


def test_eta_of_padded_samples_is_that_of_dense_factors_of_the_live_rows() -> None:
    """By independent code: rows of all samples joined, without any notion of padding."""
    ids, targets = ragged(5)
    model = Embedded().double()
    grower = senn.Grower(copy.deepcopy(model), None, tokens, samples=4000)
    grower.grow([(ids, targets)])
    assert grower.last_round is not None
    used = targets != -100
    a = torch.cat([model.table(ids)[used], torch.ones(int(used.sum()), 1)], 1).detach()
    z = model.first(model.table(ids)).detach().requires_grad_()
    p = model.last(torch.relu(z)).softmax(2).detach()
    scale = N / used.sum()
    back = lambda rows: torch.autograd.grad(  # noqa: E731
        model.last(torch.relu(z)), z, rows * used[..., None], retain_graph=True
    )[0][used]
    dz = back(scale * (p - F.one_hot(targets.clamp_min(0), 4)))
    # the exact root of the softmax's Hessian, column by column
    root = p.sqrt().diag_embed() - p[..., None] * p.sqrt()[..., None, :]
    s = torch.stack([back(scale.sqrt() * root[..., c]) for c in range(4)])
    A, G = a.mT @ a / len(a), dz.mT @ a / len(a)
    S = torch.einsum("crm,crn->mn", s, s) / len(a)
    damped = [M + 1e-4 * M.diagonal().mean() * torch.eye(len(M)) for M in (A, S)]
    step = torch.linalg.solve(damped[1], G) @ torch.linalg.inv(damped[0])
    eta = len(a) / N * (step * G).sum()
    # signs in place of the root's columns: noise of one draw
    assert grower.last_round.eta_by_map["first"] == pytest.approx(float(eta), rel=0.2)


def test_locations_of_a_batch_are_live_or_dead_by_paths_not_by_the_numbers_of_the_moment() -> None:
    """Units that are off, and pixels that a maximum passes over, are part of the data."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv1d(2, 1, 1), nn.ReLU(), nn.MaxPool1d(2), nn.Conv1d(1, 2, 1)
    ).double()
    x, y = randn(30, 2, 8), torch.randint(2, (30, 4), generator=torch.Generator().manual_seed(0))
    y[:, 3] = -100

    def parts(targets: Tensor) -> dict[str, Tensor | None]:
        found = capture(
            model, ["0", "3"], x, targets, LossMetric(pixels), generator=torch.Generator()
        )
        assert (found.rows["0"].chunks[0].output_grad == 0).all(2).any()
        return {name: rows.live for name, rows in found.rows.items()}

    live = parts(y)
    assert live["0"] is not None
    assert live["3"] is not None
    assert torch.equal(live["0"].view(30, 8), (torch.arange(8) < 6).expand(30, 8))
    assert torch.equal(live["3"].view(30, 4), (torch.arange(4) < 3).expand(30, 4))
    assert parts(y.clamp_min(0)) == {"0": None, "3": None}


@pytest.mark.parametrize(
    "gate",
    [
        F.relu_,
        F.hardtanh,
        lambda x: x.clamp(min=0),
        lambda x: F.prelu(x, torch.zeros(3)),
        lambda x: torch.maximum(x, torch.zeros(())),
        lambda x: F.relu(x).square(),
        lambda x: torch.tanh(1000 * x),
        lambda x: F.max_pool1d(x.flatten(1, 2), 2),
        lambda x: F.max_pool2d(x, 2, ceil_mode=True),
        lambda x: F.max_pool2d(x, 3, 2, 1),
        lambda x: F.max_pool3d(x, (3, 2, 2)),
        lambda x: F.adaptive_max_pool2d(x, 2),
        lambda x: x.amax((1, -1)),
        lambda x: x.max(1, keepdim=True).values,
        lambda x: x.max(-1).values,
        lambda x: x.max()[None],
    ],
)
def test_operations_that_stop_a_gradient_by_chance_hand_it_on(
    gate: Callable[[Tensor], Tensor],
) -> None:
    x = torch.linspace(-9, 9, 192).view(2, 3, 4, 8)[:, :, :4, :8].requires_grad_()
    h = x * 1
    edge = torch.autograd.graph.get_gradient_edge(h)
    y = gate(h)
    assert (torch.autograd.grad(y, edge, torch.ones_like(y), retain_graph=True)[0] == 0).any()
    (live,) = live_gradients(y, [edge], None)
    assert live is not None
    assert live.shape == x.shape
    assert (live != 0).all()
    # what a mask stops stays stopped, and nothing is left in the graph
    half = torch.zeros(y.shape, dtype=torch.bool)
    assert not live_gradients(y, [edge], half)[0].any()  # type: ignore[union-attr]
    assert (torch.autograd.grad(y, edge, torch.ones_like(y))[0] == 0).any()


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), more=st.integers(0, 5))
def test_signs_are_drawn_for_live_entries_alone(seed: int, more: int) -> None:
    live = torch.rand(5, 7, generator=torch.Generator().manual_seed(seed)) < 0.5
    wide = F.pad(live, (0, more))
    signs, padded = (
        draw_signs(mask.shape, mask, torch.Generator().manual_seed(1), None)
        for mask in (live, wide)
    )
    assert torch.equal(padded[:, :7], signs)
    assert not padded[:, 7:].any()
    assert torch.equal(signs != 0, live)


def test_a_saturated_likelihood_is_not_a_masked_one() -> None:
    """In float32 a probability of one has neither gradient nor curvature, but the loss still depends on it."""

    def own(outputs: Tensor, targets: Tensor) -> Tensor:
        p = outputs.softmax(-1).gather(-1, targets.clamp_min(0)[..., None])[..., 0]
        counted = targets >= 0
        return (-p.log() * counted).sum() / counted.sum()

    def live(targets: list[list[int]]) -> list[list[bool]] | None:
        metric, labels = LossMetric(own), torch.tensor(targets)
        found = live_outputs(metric, metric.local(outputs, labels), outputs, labels)
        return None if found is None else found.view(2, 2, 2).all(2).tolist()

    outputs = torch.zeros(2, 2, 2)
    outputs[0, 0, 0], outputs[1, 1, 1] = 200.0, 200.0
    metric = LossMetric(own)
    assert (metric.gradient(outputs, torch.tensor([[0, 0], [1, 1]]))[0, :2] == 0).all()
    assert live([[0, 0], [1, 1]]) is None
    assert live([[0, -100], [1, 1]]) == [[True, False], [True, True]]
