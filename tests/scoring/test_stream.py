"""Layers before convolutions and copies of residual blocks: what is scored is what training would do."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from exhaustive import some
from growth_cases import X, Y, train
from torch import nn
from torch.nn import functional as F
from zoo import ZOO
from zoo.entry import randomised

import senn
from senn import pytree
from senn.candidates.candidate_config import CandidateConfig
from senn.candidates.initialization import sample_conv_layer
from senn.candidates.sampling import is_scorable
from senn.graph import InsertionPoint, analyze, function_preserving_copy
from senn.kfac.batch_layout import infer_batch_layouts
from senn.kfac.capture import capture
from senn.kfac.loss_metric import LossMetric
from senn.scoring.stream import after_block, before_convolution
from senn.surgery import Append, transaction

IMAGES = X.view(-1, 1, 8, 8)
WITH_BLOCKS = [name for name, entry in ZOO.items() if entry.blocks]


@pytest.mark.parametrize("name", some(WITH_BLOCKS, 2))
def test_what_a_copy_would_add_is_the_gradient_of_its_silent_weights(name: str) -> None:
    entry = ZOO[name]
    check_copy(entry.build(), entry.inputs(5), entry.output)


class Normed(nn.Module):
    """A block whose last layer is a BatchNorm of rows, one or several for a sample."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.lin, self.bn, self.kind = nn.Linear(3, 3), nn.BatchNorm1d(3), kind

    def forward(self, x):
        x = x.transpose(0, 1) if self.kind == "time-major" else x
        y = torch.tanh(self.lin(x))
        y = x + self.bn(y if self.kind == "rows" else y.flatten(0, 1)).view_as(x)
        return y.transpose(0, 1) if self.kind == "time-major" else y


@pytest.mark.parametrize("kind", ["rows", "tokens", "time-major"])
def test_a_block_may_end_in_a_norm_of_rows(kind: str) -> None:
    shape = (5, 3) if kind == "rows" else (5, 4, 3)
    model = nn.Sequential(
        nn.Linear(3, 3), Normed(kind), nn.Flatten(), nn.Linear(math.prod(shape[1:]), 2)
    )
    check_copy(model, torch.randn(shape, generator=torch.Generator().manual_seed(1)))


class WithTable(nn.Module):
    """A block that adds a table with an entry for each sample and head, as ALiBi has in BLOOM."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(4, 4)

    def forward(self, x, table):
        return x + self.lin(torch.tanh(x)) * table.view(len(x), 2, 1).sum(1)


class Tables(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(64, 4), nn.Linear(4, 10)
        self.blocks = nn.ModuleList([WithTable()])

    def forward(self, x):
        table, x = torch.ones(2 * len(x), 1), self.first(x)
        for block in self.blocks:
            x = block(x, table)
        return self.last(x)


def test_a_block_that_runs_on_whole_batches_only_does_not_cost_the_round() -> None:
    torch.manual_seed(0)
    grower = senn.Grower(Tables(), samples=1000)
    with pytest.warns(UserWarning, match="no copy of the block 'blocks.0' is scored: on some"):
        found = grower.score_candidates([(X[:200], Y[:200])])
    assert found
    assert all("copy" not in one.detail for one in found)


def check_copy(model: nn.Module, inputs, output=None) -> None:
    """The cross moment at its silent maps is autograd's gradient once the copy stands there."""
    torch.manual_seed(0)
    model = randomised(model).double().eval()
    inputs = pytree.map_leaves(lambda t: t.double() if t.is_floating_point() else t, inputs)
    output = output or (lambda result: pytree.prediction(result).flatten(1))
    graph = analyze(model, inputs)
    readings = infer_batch_layouts(
        model, {name: graph.map(name).n_uses for name in graph.scored_maps}, inputs, output
    )
    block = graph.residual_blocks[0]
    assert is_scorable(model, block, readings)
    y = torch.randn_like(output(pytree.call(model, pytree.clone(inputs))))
    move = Append(block.module, function_preserving_copy(model, block))
    seen = capture(
        model, graph.scored_maps, inputs, y, LossMetric(F.mse_loss), generator=torch.Generator(), find=output,
        layouts=readings, blocks=[block.module],
    )  # fmt: skip
    parts = after_block(seen.blocks[block.module], move, block.output_params, readings)
    assert parts
    transaction(model, [move], graph, probe=inputs)
    new = next(m for m in model.modules() if m is not model and _is_copy(m, move.copy))
    model.eval()
    F.mse_loss(output(pytree.call(model, inputs)), y).backward()
    for silent, part in parts.items():
        layer = new.get_submodule(silent)
        together = part.layer_input.cross(part.output_grad) / 5
        grad = layer.weight.grad
        if grad.dim() == 1:  # a norm: unit by unit
            found = together[:, 1:].diagonal()
        else:
            conv1d = type(layer).__name__ == "Conv1D"
            grad = grad.mT if conv1d else grad.flatten(1)
            found = together[:, 1:]
        assert torch.allclose(found, grad, rtol=1e-5, atol=1e-7), silent
        if getattr(layer, "bias", None) is not None:
            assert torch.allclose(together[:, 0], layer.bias.grad, rtol=1e-5, atol=1e-7), silent


def _is_copy(module: nn.Module, copy: nn.Module) -> bool:
    """Whether a module has the copy's parameters, zeros included."""
    ours, theirs = module.state_dict(), copy.state_dict()
    return type(module) is type(copy) and ours.keys() == theirs.keys() and all(
        ours[key].shape == theirs[key].shape and torch.equal(ours[key], theirs[key]) for key in ours
    )  # fmt: skip


@pytest.mark.parametrize(
    "settings", [{"padding": 1}, {"stride": 2}, {"dilation": 2, "padding": (2, 1)}]
)
def test_what_a_layer_before_a_convolution_would_add_is_the_gradient_of_its_last_map(
    settings,
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        *(
            nn.Conv2d(1, 3, 3),
            nn.Tanh(),
            nn.Conv2d(3, 4, 3, **settings),
            nn.ReLU(),
            nn.Flatten(),
            nn.LazyLinear(10),
        ),
    ).double()
    x, y = IMAGES[:20].double(), Y[:20]
    model(x)
    layer = sample_conv_layer(
        InsertionPoint(module="2", features=3, activation="ReLU", spatial=2),
        torch.randn(50, 27, dtype=torch.float64),
        CandidateConfig(residual_units=5),
        torch.Generator(),
    )
    graph, metric = analyze(model, x), LossMetric(F.cross_entropy)
    (part,) = capture(model, ["2"], x, y, metric, generator=torch.Generator()).rows["2"].chunks
    inner, columns = before_convolution(part, model[2].weight, layer)
    transaction(model, [layer.move([0, 2, 3])], graph, probe=x)
    F.cross_entropy(model(x), y).backward()
    together = inner.layer_input.cross(inner.output_grad)[:, columns.existing :] / 20
    residual = model[2][0].branch
    assert torch.allclose(together[:, [0, 2, 3]], residual[2].weight.grad.flatten(1))


class Deepest(senn.Policy):
    """Accept the best insertion at a place, however little it promises; births are silent."""

    birth = "silent"

    def __init__(self, place: str) -> None:
        self.place = place

    def choose(self, candidates, accepted):
        return max(
            (c for c in candidates if c.place == self.place and not accepted),
            key=lambda c: c.held_out_gain,
            default=None,
        )


def residual_net() -> nn.Module:
    torch.manual_seed(0)

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x):
            return x + self.last(self.first(x).relu())

    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.Sequential(Block()),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16, 10),
    )


def fitted(model: nn.Module, names: list[str], x: torch.Tensor) -> float:
    """The loss after these parameters alone are fitted."""
    model = copy.deepcopy(model)
    own = dict(model.named_parameters())
    chosen = [own[name] for name in names]
    optimizer = torch.optim.LBFGS(chosen, max_iter=60, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), Y)
        loss.backward()
        return loss

    optimizer.step(closure)
    return F.cross_entropy(model(x), Y).item()


@pytest.mark.parametrize(
    ("place", "kind", "beside"),
    [("1.0", "a copy after it", []), ("1.0.first", "residual ReLU", ["1.0.first.1."])],
)
def test_the_grower_deepens_a_convolutional_net_and_the_promise_is_no_exaggeration(
    place, kind, beside
) -> None:
    """Fitting the new silent weights, and the map that takes their linear part, brings about what was promised."""
    model, x = residual_net(), IMAGES
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    train(model, optimizer, 30, x, Y)
    before = {id(p) for p in model.parameters()}
    white = senn.CandidateConfig(
        data_direction_fraction=0.0
    )  # directions that follow the data promise more than this step can fit
    grower = senn.Grower(
        model,
        optimizer,
        policy=Deepest(place),
        moves=("depth",),
        samples=len(x),
        candidate_config=white,
    )
    (event,) = grower.grow([(x, Y)])
    assert (event.kind, event.detail) == ("insert", kind)
    assert event.output_change <= 1e-5
    new = {name: p for name, p in model.named_parameters() if id(p) not in before}
    silent = [name for name, p in new.items() if not p.any()]
    also = [
        name
        for name, _ in model.named_parameters()
        if any(name.startswith(prefix) for prefix in beside)
    ]
    assert silent
    assert len(also) == 2 * len(beside)
    fallen = (fitted(model, also, x) if also else F.cross_entropy(model(x), Y).item()) - fitted(
        model, silent + also, x
    )
    assert fallen > 0
    assert event.expected_decrease < fallen
    train(model, optimizer, 3, x, Y)
    assert all(p in optimizer.state for p in new.values())


def test_nothing_else_changes_in_a_round_that_repeats_a_block() -> None:
    """A copy is one of the block as it is: so it is offered alone, and ends the round."""
    model = residual_net()

    class Greedy(senn.Policy):
        def choose(self, candidates, accepted):
            copies = [c for c in candidates if c.detail == "a copy after it"]
            others = [c for c in candidates if c not in copies]
            return (copies or others or [None])[0]

    events = senn.Grower(model, policy=Greedy(), samples=len(Y), max_width=6).grow([(IMAGES, Y)])
    assert [event.detail for event in events] == ["a copy after it"]
    assert len(model[1]) == 2


@pytest.mark.parametrize("weights", ["copied", "shuffled"])
@pytest.mark.parametrize("birth", ["silent", "stepped", "plain"])
def test_blocks_are_born_as_asked(birth: str, weights: str) -> None:
    model = residual_net()
    loss = F.cross_entropy(model(IMAGES), Y).item()
    grower = senn.Grower(
        model,
        policy=Deepest("1.0"),
        moves=("depth",),
        samples=len(Y),
        candidate_config=senn.CandidateConfig(new_blocks=weights),
        birth=birth,
    )
    (event,) = grower.grow([(IMAGES, Y)])
    old, new = (dict(block.named_parameters()) for block in model[1])
    assert torch.equal(old["first.weight"], new["first.weight"]) == (weights == "copied")
    assert torch.equal(
        old["first.weight"].flatten().sort().values, new["first.weight"].flatten().sort().values
    )
    assert torch.equal(old["last.weight"], new["last.weight"]) == (birth == "plain")
    assert bool(new["last.weight"].any()) == (birth != "silent")
    if birth != "plain":
        assert F.cross_entropy(model(IMAGES), Y).item() <= loss + 1e-6
    event.undo()
    assert len(model[1]) == 1


@pytest.mark.parametrize("plain_helps", [True, False])
def test_of_several_births_the_best_one_on_held_out_rows_is_chosen(plain_helps: bool) -> None:
    """A block that does half of what the rows ask for is worth doing twice; one that does twice as much isn't."""

    class Double(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Linear(4, 4, bias=False)

        def forward(self, x):
            return x + self.last(x)

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(Double()), nn.Linear(4, 2))
    nn.init.eye_(model[0].weight)
    nn.init.eye_(model[1][0].last.weight)
    x = torch.randn(400, 4)
    with torch.no_grad():
        # one block doubles its input, two of them quadruple it
        y = (2 if plain_helps else 0.5) * model(x) - (1 if plain_helps else -0.5) * model[2].bias
        y += 0.01 * torch.randn_like(y)
    silent = F.mse_loss(model(x), y).item()
    grower = senn.Grower(
        model,
        loss=F.mse_loss,
        policy=Deepest("1.0"),
        moves=("depth",),
        samples=len(x),
        birth="best",
    )
    (event,) = grower.grow([(x, y)])
    old, new = (block.last.weight for block in model[1])
    after = F.mse_loss(model(x), y).item()
    assert torch.equal(old, new) == plain_helps
    assert (event.step_length == 0) == plain_helps
    assert after < silent
    if plain_helps:
        assert event.expected_decrease * event.loss_per_nat == pytest.approx(
            silent - after, rel=0.1
        )
    event.undo()
    assert F.mse_loss(model(x), y).item() == pytest.approx(silent)


def test_a_copy_with_more_weights_than_rows_promises_what_a_short_step_brings() -> None:
    """At its own length its step is noise that costs much on other rows; a birth would shorten it."""
    torch.manual_seed(0)

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(16, 64), nn.Linear(64, 16)

        def forward(self, x):
            return x + self.last(self.first(x).relu())

    model = nn.Sequential(nn.Linear(16, 16), Block(), nn.Linear(16, 2))
    x = torch.randn(120, 16)
    y = (x[:, 0] * x[:, 1] > 0).long()
    grower = senn.Grower(model, policy=Deepest("1"), moves=("depth",), samples=len(y))
    (found,) = [c for c in grower.score_candidates([(x, y)]) if c.place == "1"]
    assert found.gain > 0.5
    assert -0.1 < found.held_out_gain < found.gain
