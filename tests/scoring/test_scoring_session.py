"""Scores of whole networks against dense float64 truth: the unit or layer inserted, then g and F written out."""

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call, jacrev
from torch.nn import functional as F

import senn.scoring.gains
import senn.scoring.residual_statistics
from senn.candidates.candidate_config import CandidateConfig
from senn.candidates.new_layers import IdentityLayer
from senn.graph import analyze
from senn.kfac.factors import damped, kronecker_factors
from senn.kfac.loss_metric import LossMetric
from senn.kfac.per_sample import PerSampleFactors
from senn.nn import Rational
from senn.policies import Budget
from senn.scoring.data_covariance import DataCovariance
from senn.scoring.gains import Fold, LayerGains
from senn.scoring.pool import CandidatePool, select
from senn.scoring.scoring_session import ScoringSession
from senn.surgery import apply_moves

SAMPLES = 90


@pytest.fixture(autouse=True)
def undamped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(senn.scoring.gains, "DAMPING", 1e-11)
    monkeypatch.setattr(senn.scoring.residual_statistics, "UNIT_DAMPING", 1e-11)


class Wide(nn.Module):
    """One hidden group with two consumers, or two groups in one consumer."""

    def __init__(self, concatenated: bool) -> None:
        super().__init__()
        self.concatenated = concatenated
        self.one, self.two = nn.Linear(3, 4), nn.Linear(3, 2)
        self.left = nn.Linear(6 if concatenated else 4, 1)
        self.right = nn.Linear(4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        one = torch.tanh(self.one(x))
        if self.concatenated:
            # the second group comes first, so that the order of use is not the order of columns
            return self.left(torch.cat([torch.tanh(self.two(x)), one], 1))
        return self.left(one) + self.right(one)


def plain(outputs: int = 1, hidden: int = 4, activation: nn.Module | None = None) -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, hidden), activation or nn.Tanh(), nn.Linear(hidden, outputs))


def data(outputs: int = 1, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(SAMPLES, 3, generator=g, dtype=torch.float64)
    noise = torch.randn(SAMPLES, outputs, generator=g, dtype=torch.float64)
    return x, torch.sin(2 * x[:, :1]) + x[:, 1:2] * x[:, 2:] + 0.3 * noise


def pool_of(
    model: nn.Module, x: torch.Tensor, y: torch.Tensor, *moves: str, seed: int = 0
) -> CandidatePool:
    session = ScoringSession(
        model,
        analyze(model, x[:8]),
        metric=LossMetric(F.mse_loss),
        moves=moves,
        known={},
        candidate_config=CandidateConfig(units=8, residual_units=5, identity_bases=1),
        generator=torch.Generator().manual_seed(seed),
    )
    session.add_batch(x, y)
    return session.pool(len(x), Budget())


def dense_eta(
    model: nn.Module, names: list[str], x: torch.Tensor, y: torch.Tensor, H: torch.Tensor
) -> float:
    """g^T F^+ g over the named parameters, every entry of F written out."""
    wanted = {name: p.detach() for name, p in model.named_parameters() if name in names}
    assert len(wanted) == len(names)
    rest = {name: p.detach() for name, p in model.named_parameters() if name not in names}
    found = jacrev(lambda p: functional_call(model, {**rest, **p}, (x,)))(wanted)
    J = torch.cat([found[name].reshape(len(x), y.shape[1], -1) for name in wanted], 2)
    output = model(x).detach()
    slope = 2 * (output - y) / y.shape[1]
    g = torch.einsum("nmi,nm->i", J, slope) / len(x)
    fisher = torch.einsum("nmi,mk,nkj->ij", J, H, J) / len(x)
    return float(g @ torch.linalg.pinv(fisher, rcond=1e-11, hermitian=True) @ g)


def metric_of(pool: CandidatePool, name: str) -> torch.Tensor:
    """The output metric as the random signs estimated it: exact truth for maps that make the outputs themselves."""
    root = pool.layer_gains[name].whitener
    return root @ root.mT


def affine(name: str) -> list[str]:
    return [f"{name}.weight", f"{name}.bias"]


@pytest.mark.parametrize(
    ("build", "group", "consumers"),
    [
        (plain, "0", ["2"]),
        (lambda: Wide(False), "one", ["left", "right"]),
        (lambda: Wide(True), "one", ["left"]),
        (lambda: Wide(True), "two", ["left"]),
    ],
)
def test_width_gain_is_the_difference_of_dense_etas(build, group, consumers):
    torch.manual_seed(0)
    model, (x, y) = build().double(), data()
    pool = pool_of(model, x, y, "width")
    H = torch.full((1, 1), 2.0, dtype=torch.float64)
    before = [dense_eta(model, affine(name), x, y, H) for name in consumers]
    assert [pool.layer_gains[name].eta for name in consumers] == pytest.approx(before, rel=1e-6)
    gains = sum(pool.layer_gains[name].gain(pool.columns[name].groups[group]) for name in consumers)
    for unit in range(8):
        grown = copy.deepcopy(model)
        apply_moves(
            grown,
            [select(pool.candidate_set.widen[group], [unit], pool.graph.group(group))],
            pool.graph,
        )
        torch.testing.assert_close(grown(x), model(x))
        after = [dense_eta(grown, affine(name), x, y, H) for name in consumers]
        assert float(gains[unit]) == pytest.approx(sum(after) - sum(before), rel=1e-5, abs=1e-9)


def test_greedy_choice_of_units_adds_up_to_the_dense_gain_of_all():
    torch.manual_seed(0)
    model, (x, y) = plain().double(), data()
    pool = pool_of(model, x, y, "width")
    H = torch.full((1, 1), 2.0, dtype=torch.float64)
    before = pool.eta
    first, second = (pool.candidates()[0] for _ in range(2))
    assert first.gain == second.gain
    pool.commit(second)
    third = pool.candidates()[0]
    pool.commit(third)
    assert third.eta == pytest.approx(before + first.gain)  # brought up to date within the round
    grown = copy.deepcopy(model)
    apply_moves(grown, pool.to_moves(), pool.graph)
    gain = dense_eta(grown, affine("2"), x, y, H) - dense_eta(model, affine("2"), x, y, H)
    assert pool.eta - before == pytest.approx(gain, rel=1e-5)


@pytest.mark.parametrize(
    ("hidden", "outputs"), [(4, 1), (4, 3), (2, 3)], ids=["wide", "wide, 3 outputs", "tall"]
)
def test_residual_insertion_gain_is_that_of_its_live_weights(hidden, outputs):
    torch.manual_seed(0)
    model, (x, y) = plain(outputs, hidden).double(), data(outputs)
    pool = pool_of(model, x, y, "depth")
    layer, H = pool.candidate_set.layers["2"][0], metric_of(pool, "2")
    gains = pool.layer_gains["2"].gain(
        pool.columns["2"].layers[0], pool.insertions.output_basis("2")
    )
    before = dense_eta(model, affine("2"), x, y, H)
    for unit in range(5):
        grown = copy.deepcopy(model)
        apply_moves(grown, [layer.move([unit])], pool.graph)
        torch.testing.assert_close(grown(x), model(x))
        (last,) = (n for n, p in grown.named_parameters() if p.shape == (hidden, 1) and not p.any())
        after = dense_eta(grown, [*affine("2.1"), last], x, y, H)
        assert float(gains[unit]) == pytest.approx(after - before, rel=1e-4, abs=1e-8)


@pytest.mark.parametrize("activation", [nn.PReLU, lambda: Rational(4)], ids=["PReLU", "Rational"])
def test_identity_insertion_gain_is_that_of_its_activation_parameters(activation):
    torch.manual_seed(0)
    model, (x, y) = plain(2, activation=activation()).double(), data(2)
    pool = pool_of(model, x, y, "depth")
    (number,) = (
        i
        for i, layer in enumerate(pool.candidate_set.layers["2"])
        if isinstance(layer, IdentityLayer)
    )
    layer, H = pool.candidate_set.layers["2"][number], metric_of(pool, "2")
    (candidate,) = (c for c in pool.candidates() if c.place == "2" and c.detail == layer.name)
    grown = copy.deepcopy(model)
    apply_moves(grown, [layer.move()], pool.graph)
    torch.testing.assert_close(
        grown(x), model(x), rtol=1e-5, atol=1e-6
    )  # the basis is drawn in float32
    live = [
        n
        for n, _ in grown.named_parameters()
        if n.startswith("2.") and n not in (*affine("2.0"), *affine("2.2"))
    ]
    truth = dense_eta(grown, [*affine("2.2"), *live], x, y, H) - dense_eta(
        model, affine("2"), x, y, H
    )
    assert candidate.gain == pytest.approx(
        truth, rel=2e-3
    )  # `scores.diagonal_gain` keeps its damping


def test_pruning_cost_is_the_rise_of_the_loss_after_exact_re_optimisation():
    torch.manual_seed(0)
    model, (x, y) = plain().double(), data()
    pool = pool_of(model, x, y, "prune")
    columns = pool.graph.group("0").dims[-1].index
    cost = pool.removals.costs["2"].costs(torch.arange(4)[:, None])
    a = torch.cat([torch.tanh(model[0](x)).detach(), torch.ones(len(x), 1, dtype=x.dtype)], 1)

    def best(columns: list[int]) -> float:
        weight = torch.linalg.lstsq(a[:, columns], y).solution
        return float((a[:, columns] @ weight - y).square().mean())

    assert columns.numel()
    for unit in range(4):
        truth = best([i for i in range(5) if i != unit]) - best(list(range(5)))
        assert float(cost[unit]) / 2 == pytest.approx(truth, rel=1e-6, abs=1e-10)
    pool.removals.costs["2"].remove(torch.tensor([1]))
    after = pool.removals.costs["2"].costs(torch.tensor([[3]]))
    assert float(cost[1] + after) / 2 == pytest.approx(
        best([0, 2, 4]) - best(list(range(5))), rel=1e-6
    )


def test_compensation_is_the_least_squares_prediction_of_what_goes():
    torch.manual_seed(0)
    model, (x, y) = plain().double(), data()
    pool = pool_of(model, x, y, "prune")
    a = torch.cat([torch.tanh(model[0](x)).detach(), torch.ones(len(x), 1, dtype=x.dtype)], 1)
    truth = torch.linalg.lstsq(a[:, [0, 2, 4]], a[:, [1, 3]]).solution.mT
    torch.testing.assert_close(
        pool.removals.costs["2"].coefficients(torch.tensor([1, 3])), truth, rtol=1e-6, atol=1e-8
    )


def test_a_unit_that_does_nothing_is_free_and_a_copy_of_another_is_free():
    torch.manual_seed(0)
    model, (x, y) = plain(hidden=6).double(), data()
    with torch.no_grad():
        model[2].weight[0, 3] = 0
        model[0].weight[5], model[0].bias[5] = model[0].weight[1].clone(), model[0].bias[1].clone()
    # at the optimum of what the others can do, so that the natural step leaves the dead unit alone
    a = torch.cat([torch.tanh(model[0](x)).detach(), torch.ones(len(x), 1, dtype=x.dtype)], 1)
    kept = [0, 1, 2, 4, 6]
    y = a[:, kept] @ torch.linalg.lstsq(a[:, kept], y).solution
    pool = pool_of(model, x, y, "prune")
    cost = pool.removals.costs["2"].costs(torch.arange(6)[:, None])
    assert float(cost[3]) < 1e-9
    assert float(cost[1]) < 1e-6
    assert float(cost[5]) < 1e-6
    assert float(cost[[0, 2, 4]].min()) > 1e-4


def test_the_moments_of_the_trial_are_those_of_the_candidates_activations():
    torch.manual_seed(0)
    model, (x, y) = plain().double(), data()
    session = ScoringSession(
        model,
        analyze(model, x[:8]),
        metric=LossMetric(F.mse_loss),
        moves=("width", "depth"),
        known={},
        candidate_config=CandidateConfig(units=8, residual_units=5, identity_bases=1),
        generator=torch.Generator().manual_seed(0),
    )
    session.add_batch(x, y)
    draw = session.candidate_set
    assert draw is not None
    old = torch.tanh(model[0](x)).detach()
    values = {name: value.double() for name, value in draw.widen["0"].values.items()}
    new = torch.tanh(x @ values["0.weight"].mT + values["0.bias"])
    layers = [layer.features(old) for layer in draw.layers["2"]]
    a = torch.cat([old, torch.ones(len(x), 1, dtype=x.dtype), new, *layers], 1)
    found = session._fit.maps["2"].factors + session._held_out.maps["2"].factors
    slope = 2 * (model(x) - y).detach()
    torch.testing.assert_close(found.A, a.mT @ a / len(x))
    torch.testing.assert_close(found.G, slope.mT @ a / len(x))
    torch.testing.assert_close(found.S, torch.full((1, 1), 2.0, dtype=torch.float64))
    # the first map's input: data, the constant, then layers' features
    a = torch.cat(
        [
            x,
            torch.ones(len(x), 1, dtype=x.dtype),
            *(layer.features(x) for layer in draw.layers["0"]),
        ],
        1,
    )
    hidden = slope @ model[2].weight.detach() * (1 - old**2)
    found = session._fit.maps["0"].factors + session._held_out.maps["0"].factors
    torch.testing.assert_close(found.A, a.mT @ a / len(x))
    torch.testing.assert_close(found.G, hidden.mT @ a / len(x))


def test_candidates_of_equal_layers_differ():
    torch.manual_seed(0)
    layers = [nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 1)]
    layers[2].load_state_dict(layers[0].state_dict())
    model, (x, y) = nn.Sequential(*layers).double(), data()
    values = pool_of(model, x, y, "width").candidate_set.widen
    assert not torch.equal(values["0"].values["0.weight"], values["2"].values["2.weight"])


def test_the_layer_gains_of_a_known_input_moment_agrees_with_one_that_computes_it():
    torch.manual_seed(0)
    model, (x, y) = plain().double(), data()
    known: dict[str, DataCovariance] = {}

    def figures() -> torch.Tensor:
        session = ScoringSession(
            model,
            analyze(model, x[:8]),
            metric=LossMetric(F.mse_loss),
            moves=("depth",),
            known=known,
            candidate_config=CandidateConfig(units=8, residual_units=5, identity_bases=1),
            generator=torch.Generator().manual_seed(0),
        )
        session.add_batch(x, y)
        layer_gains = session.pool(SAMPLES, Budget()).layer_gains["0"]
        columns = torch.arange(8)[:, None]
        return torch.stack(
            [
                layer_gains.gain(columns),
                layer_gains.gain_lower_bound(columns),
                torch.full((8,), layer_gains.eta),
            ]
        )

    first = figures()
    assert set(known) == {"0"}
    torch.testing.assert_close(first, figures(), rtol=1e-5, atol=1e-8)


def test_the_input_moment_of_a_few_samples_is_not_kept():
    torch.manual_seed(0)
    model, (x, y), known = plain().double(), data(), {}
    session = ScoringSession(
        model,
        analyze(model, x),
        metric=LossMetric(F.mse_loss),
        candidate_config=CandidateConfig(units=2),
        moves=("width",),
        generator=torch.Generator().manual_seed(0),
        known=known,
    )
    session.add_batch(x[:4], y[:4])
    session.pool(4, Budget())
    assert not known
    session.add_batch(x[4:], y[4:])
    session.pool(SAMPLES, Budget())
    assert set(known) == {"0"}


def test_a_kept_input_moment_is_made_anew_by_a_window_with_twice_the_rows():
    torch.manual_seed(0)
    model, (x, y) = plain().double(), data()
    graph, known = analyze(model, x[:8]), {}

    def look(*batches: slice) -> DataCovariance:
        session = ScoringSession(
            model, graph, metric=LossMetric(F.mse_loss), candidate_config=CandidateConfig(units=2), moves=("width",),
            generator=torch.Generator().manual_seed(0), known=known,
        )  # fmt: skip
        for batch in batches:
            session.add_batch(x[batch], y[batch])
        session.pool(SAMPLES, Budget())
        return known["0"]

    def truth(rows: int) -> torch.Tensor:
        a = torch.cat([x[:rows], torch.ones(rows, 1, dtype=x.dtype)], 1)
        return torch.linalg.cholesky(a.mT @ a / rows)

    first = look(slice(20))
    torch.testing.assert_close(first.factor, truth(20), rtol=1e-6, atol=1e-8)
    again = look(slice(39))
    assert (again.factor is first.factor, again.rows, again.outgrown) == (True, 20, False)
    second = look(slice(40))
    assert second.rows == 40
    torch.testing.assert_close(second.factor, truth(40), rtol=1e-6, atol=1e-8)
    # a window whose first batch does not tell how large it will be is noted, and the next like it takes its place
    halves = slice(45), slice(45, 90)
    assert look(*halves).outgrown
    assert look(slice(10)).factor is second.factor
    third = look(*halves)
    assert (third.rows, third.outgrown) == (90, False)
    torch.testing.assert_close(third.factor, truth(90), rtol=1e-6, atol=1e-8)


def test_curvature_along_a_step_sums_over_the_locations_of_a_sample_before_squaring():
    generator = torch.Generator().manual_seed(0)
    samples, locations, existing, m = 40, 5, 3, 2

    def fold() -> Fold:
        shared = torch.randn(
            samples, 1, 1, generator=generator, dtype=torch.float64
        )  # locations are alike
        a, s, dz = (
            (
                torch.randn(samples, locations, size, generator=generator, dtype=torch.float64)
                + 2 * shared
            ).flatten(0, 1)
            for size in (existing + 1, m, m)
        )
        return Fold.of(
            kronecker_factors(a, dz, s, locations=locations),
            PerSampleFactors(a=a, pseudo_grad=s, output_grad=dz, locations=locations),
        )

    fit, held = fold(), fold()
    value, error = LayerGains(fit, held, existing).held_out_gain(torch.tensor([[0]]))

    def dense(one: Fold) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Gradient and, for each sample, its own, by the residual activation; the curvature factor's rows."""
        A = damped(one.factors.A[:existing, :existing])
        kept = one.samples
        rest = kept.a[:, existing] - kept.a[:, :existing] @ torch.linalg.solve(
            A, one.factors.A[:existing, existing]
        )
        by_sample = [
            (rows * rest[:, None]).view(samples, locations, m).sum(1)
            for rows in (kept.output_grad, kept.pseudo_grad)
        ]
        return by_sample[0].mean(0), by_sample[0], by_sample[1]

    S = damped((fit.factors + held.factors).S)
    gradient, _, signs = dense(fit)
    A = damped(fit.factors.A[:existing, :existing])
    rest = fit.samples.a[:, existing] - fit.samples.a[:, :existing] @ torch.linalg.solve(
        A, fit.factors.A[:existing, existing]
    )
    step = torch.linalg.solve(S, gradient / locations) / rest.square().mean()
    length = gradient @ step / max((signs @ step).square().mean(), gradient @ step)
    gradient, slopes, signs = dense(held)
    gains = 2 * length * slopes @ step - length**2 * (signs @ step).square()
    assert float(value) == pytest.approx(float(gains.mean()), rel=0.01)
    assert float(error) == pytest.approx(float(gains.std(correction=0)) / samples**0.5, rel=0.02)


def test_width_gain_and_pruning_of_convolutions_are_those_of_dense_etas(monkeypatch):
    """The second convolution has one location, so K-FAC is exact; each unit owns all its taps."""
    # taps at the border read nearly the same
    monkeypatch.setattr(senn.scoring.gains, "DAMPING", 1e-13)
    monkeypatch.setattr(senn.scoring.residual_statistics, "UNIT_DAMPING", 1e-13)
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 3, 2, padding=1), nn.Tanh(), nn.Conv2d(3, 1, (2, 3)), nn.Flatten()
    ).double()
    g = torch.Generator().manual_seed(0)
    x = torch.randn(SAMPLES, 2, 1, 2, generator=g, dtype=torch.float64)
    y = torch.sin(2 * x.sum((1, 2, 3)))[:, None] + 0.3 * torch.randn(
        SAMPLES, 1, generator=g, dtype=torch.float64
    )
    graph = analyze(model, x[:4])
    session = ScoringSession(
        model,
        graph,
        metric=LossMetric(F.mse_loss),
        candidate_config=CandidateConfig(units=5),
        moves=("width", "prune"),
        generator=torch.Generator().manual_seed(0),
        known={},
    )
    session.add_batch(x, y)
    pool = session.pool(SAMPLES, Budget())
    H = torch.full((1, 1), 2.0, dtype=torch.float64)
    before = dense_eta(model, affine("2"), x, y, H)
    assert pool.layer_gains["2"].eta == pytest.approx(before, rel=1e-6)
    assert pool.layer_gains["0"].locations == 6
    gains = pool.layer_gains["2"].gain(pool.columns["2"].groups["0"])
    for unit in range(5):
        grown = copy.deepcopy(model)
        apply_moves(grown, [select(pool.candidate_set.widen["0"], [unit], graph.group("0"))], graph)
        torch.testing.assert_close(grown(x), model(x))
        assert float(gains[unit]) == pytest.approx(
            dense_eta(grown, affine("2"), x, y, H) - before, rel=1e-5, abs=1e-9
        )
    a = torch.cat(
        [torch.tanh(model[0](x)).detach().flatten(1), torch.ones(SAMPLES, 1, dtype=x.dtype)], 1
    )

    def best(columns: list[int]) -> float:
        return float(
            (a[:, columns] @ torch.linalg.lstsq(a[:, columns], y).solution - y).square().mean()
        )

    cost = pool.removals.costs["2"].costs(
        pool.removals.owned(graph.group("0").dims_of("consumer")[0])
    )
    for unit in range(3):
        kept = [i for i in range(19) if i // 6 != unit]
        assert float(cost[unit]) / 2 == pytest.approx(best(kept) - best(list(range(19))), rel=1e-6)
