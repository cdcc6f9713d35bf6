"""Every path that a model's forward takes is looked at: training mode, other calls, switches of modes."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import senn
from senn.graph import analyze
from senn.surgery import Insert, Prune, Widen, transaction

X = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Two layers and a third one, with a forward pass given as a function."""

    def __init__(self, forward, third=(6, 2)):
        super().__init__()
        self.body, self.head, self.third = nn.Linear(3, 6), nn.Linear(6, 2), nn.Linear(*third)
        self.register_buffer("mask", torch.ones(6), persistent=False)
        self.code, self.scaled = forward, False

    def forward(self, *args, **kwargs):
        return self.code(self, *args, **kwargs)


def hidden(model, x):
    return model.body(x).relu()


def with_head_of_training(model, x):
    h = hidden(model, x)
    return model.head(h) + model.third(h) if model.training else model.head(h)


def with_mask_of_training(model, x):
    h = hidden(model, x)
    return model.head(h * model.mask if model.training else h)


def returning_the_hidden_layer_in_training(model, x):
    h = hidden(model, x)
    return (model.head(h), h) if model.training else model.head(h)


def counting_in_training(model, x):
    h = hidden(model, x)
    return model.head(h.view(len(h), 6) if model.training else h)


def rescaling_at_a_switch(model, x):
    if model.scaled == model.training:
        with torch.no_grad():
            model.head.weight.mul_(2.0 if model.training else 0.5)
        model.scaled = not model.training
    z = model.head(hidden(model, x))
    return z if model.training else 2 * z


def with_a_mask_given(model, x, mask=None):
    h = hidden(model, x)
    return model.head(h if mask is None else h * mask)


def consumers(graph, name="body"):
    return {coupled.map for coupled in graph.group(name).dims_of("consumer")}


def test_a_head_that_only_training_runs_reads_the_units_and_grows_along():
    model = Net(with_head_of_training)
    graph = analyze(model, X)
    assert consumers(graph) == {"head", "third"}
    # Scoring runs the model in evaluation mode, where nothing of the third map can be recorded.
    assert graph.scored_maps == ("body", "head")
    assert not graph.map("third").has_factors
    values = {"body.weight": torch.randn(2, 3), "body.bias": torch.randn(2)}
    transaction(model, [Widen("body", 2, values)], graph, probe=X)
    model.train()(X).sum().backward()
    assert model.third.weight.grad.shape == (2, 8)


def test_a_mask_that_only_training_reads_goes_along_with_the_units():
    graph = analyze(Net(with_mask_of_training), X)
    carried = {coupled.name for coupled in graph.group("body").dims_of("elementwise")}
    assert carried == {"mask"}


@pytest.mark.parametrize(
    ("forward", "reason"),
    [
        (returning_the_hidden_layer_in_training, "its units are the model's outputs"),
        (counting_in_training, "the forward pass fixes its size"),
    ],
)
def test_what_only_training_fixes_is_refused(forward, reason):
    graph = analyze(Net(forward), X)
    assert graph.groups == ()
    assert reason in {one.place: one.reason for one in graph.refusals}["body"]


def test_a_training_mode_that_does_not_run_is_said_and_keeps_the_rest():
    def forward(model, x, targets=None):
        z = model.head(hidden(model, x))
        return F.cross_entropy(z, targets) if model.training else z

    graph = analyze(Net(forward), X)
    assert [group.name for group in graph.groups] == ["body"]
    (said,) = (one.reason for one in graph.refusals if one.place == "")
    assert said.startswith("what only training runs isn't known: in training mode")


def test_several_example_inputs_are_all_looked_at():
    model, masked = Net(with_a_mask_given), (X, torch.rand(8, 6))
    assert [group.name for group in analyze(model, X).groups] == ["body"]
    both = analyze(model, [X, masked])
    assert both.groups == ()
    assert "meet the model's own input" in str(senn.explain(model, [X, masked]))
    # One argument that is a list is not several examples.
    listed = analyze(Net(lambda model, several: model.head(hidden(model, several[0]))), ([X],))
    assert [group.name for group in listed.groups] == ["body"]


def test_surgery_is_refused_before_it_begins_if_another_call_would_fail():
    model, masked = Net(with_a_mask_given), (X, torch.rand(8, 6))
    graph, weight = analyze(model, X), model.body.weight
    move = Widen("body", 1, {"body.weight": torch.ones(1, 3), "body.bias": torch.ones(1)})
    with pytest.raises(senn.SurgeryError, match="with it the model would fail in evaluation mode"):
        transaction(model, [move], graph, probe=X, examples=[masked])
    assert model.body.weight is weight
    assert weight.shape == (6, 3)


def test_looking_at_a_model_that_rescales_its_weights_leaves_them():
    model = Net(rescaling_at_a_switch)
    model.train()(X)
    before = [p.detach().clone() for p in model.parameters()]
    grower = senn.Grower(model, None, F.cross_entropy, samples=1000)
    grower.observe(X.repeat(4, 1), torch.arange(32) % 2)
    assert all(map(torch.equal, before, model.parameters()))
    assert not model.scaled
    assert "head" not in {point.module for point in grower.graph.insertion_points}


class LowRank(nn.Linear):
    """A linear layer with a branch that evaluation mode adds to its weight."""

    def __init__(self):
        super().__init__(3, 6)
        self.down, self.up = nn.Parameter(torch.randn(1, 3)), nn.Parameter(torch.randn(6, 1))
        self.merged = False

    def train(self, mode=True):
        super().train(mode)
        if mode == self.merged:
            self.weight.data += (-1 if mode else 1) * (self.up @ self.down)
            self.merged = not mode
        return self

    def forward(self, x):
        z = F.linear(x, self.weight, self.bias)
        return z if self.merged else z + x @ self.down.T @ self.up.T


def test_code_in_train_runs_in_the_trial_and_is_put_back_in_the_model():
    model = nn.Sequential(LowRank(), nn.ReLU(), nn.Linear(6, 2))
    before = [p.detach().clone() for p in model.parameters()]
    grower = senn.Grower(model, None, F.cross_entropy, samples=1000)
    grower.observe(X.repeat(4, 1), torch.arange(32) % 2)
    assert all(map(torch.equal, before, model.parameters()))
    assert not model[0].merged
    made = {coupled.name for coupled in grower.graph.group("0").dims_of("producer")}
    assert made == {"0.weight", "0.up", "0.bias"}


@pytest.mark.parametrize("attribute", ["weight", "out_features"])
def test_a_place_whose_attributes_the_forward_reads_takes_no_layer(attribute):
    def forward(model, x):
        getattr(model.head, attribute)
        return model.head(hidden(model, x))

    graph = analyze(Net(forward), X)
    assert [point.module for point in graph.insertion_points] == ["body"]
    reason = next(one.reason for one in graph.refusals if "no layer" in one.reason)
    assert "'Sequential' object has no attribute" in reason
    assert "test_paths.py" in reason
    assert "getattr(model.head, attribute)" in reason


def test_one_failing_candidate_does_not_cost_the_round():
    class Both(senn.Policy):
        def choose(self, candidates, accepted):
            places = {one.place for one in accepted}
            wanted = [one for one in candidates if one.kind == "insert" and one.place not in places]
            return wanted[0] if wanted else None

    model = Net(lambda m, x: m.head(hidden(m, x)))
    grower = senn.Grower(
        model, torch.optim.Adam(model.parameters()), F.cross_entropy, Both(), samples=1000
    )
    x, y = X.repeat(4, 1), torch.arange(32) % 2
    grower.observe(x, y)
    # From now on the forward reads an attribute of the place that was free when it was looked at.
    model.code = lambda m, x: m.head(hidden(m, x).to(m.head.weight.dtype))
    with pytest.warns(UserWarning, match="other changes go on") as caught:
        events = grower.grow([(x, y)])
    assert [one.filename for one in caught] == [__file__]  # not a line of the library
    refused = [
        one.place for one in grower.graph.refusals if one.reason.startswith("a change failed")
    ]
    assert [(event.kind, event.place) for event in events] == [("insert", "body")]
    assert refused == ["head"]
    assert len(grower.rejections) == 1
    assert grower.last_round is not None
    grower.grow([(x, y)])  # and the next round doesn't meet it again
    assert len(grower.rejections) == 1


class SharedHead(nn.Module):
    """Three heads of queries over one head of keys and values, with a mask expanded to all heads."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = nn.Linear(6, 12), nn.Linear(6, 4), nn.Linear(6, 4)
        self.out = nn.Linear(12, 2)

    def forward(self, x, mask=None):
        b, t, _ = x.shape
        q, k, v = (f(x).view(b, t, -1, 4).transpose(1, 2) for f in (self.q, self.k, self.v))
        if mask is not None:
            k, v = (z.repeat_interleave(3, 1) for z in (k, v))
        mixed = F.scaled_dot_product_attention(q, k, v, mask, enable_gqa=mask is None)
        return self.out(mixed.transpose(1, 2).reshape(b, t, -1)).mean(1)


def test_heads_that_share_one_head_of_values_are_no_space_of_one_unit():
    graph = analyze(SharedHead(), torch.randn(2, 5, 6))
    assert graph.groups == ()
    assert {"q", "out"} <= {refusal.place for refusal in graph.refusals}


def test_one_part_that_cannot_be_looked_into_is_left_alone_by_name():
    scripted = torch.jit.script(nn.Sequential(nn.Linear(4, 4), nn.Tanh()))
    model = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 4), scripted, nn.Linear(4, 2))
    graph = analyze(model, X)
    assert [group.name for group in graph.groups] == ["0"]
    reasons = {one.place: one.reason for one in graph.refusals}
    assert reasons["2"].startswith("its units meet 3, which is compiled by TorchScript")
    assert reasons["3"].startswith("it is compiled by TorchScript")
    before = model(X)
    values = {"0.weight": torch.randn(1, 3), "0.bias": torch.randn(1)}
    transaction(model, [Widen("0", 1, values)], graph, probe=X)
    torch.testing.assert_close(model(X), before)


def test_a_tensor_with_a_gradient_history_does_not_keep_a_model_from_being_copied():
    model = Net(lambda m, x: m.head(hidden(m, x)) * m.state["scale"])
    model.state = {"scale": model.third.weight.sum() * 2}
    graph = analyze(model, X)
    assert [group.name for group in graph.groups] == ["body"]
    assert model.state["scale"].grad_fn is not None


def test_an_unused_parameter_is_named_and_not_its_module():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    model[0].spare = nn.Parameter(torch.ones(3))
    unused = [r.place for r in analyze(model, X).refusals if "never used" in r.reason]
    assert unused == ["0.spare"]


class Upcast(nn.Module):
    """A float64 model with a norm that computes in float32."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Linear(3, 6), nn.Linear(6, 2)
        self.norm = nn.LayerNorm(6).float()

    def forward(self, x):
        return self.head(self.norm(self.embed(x).float()).to(x.dtype))


def test_a_step_in_float32_inside_float64_is_found_and_grown():
    model = Upcast().double()
    model.norm.float()
    graph = analyze(model, X.double())
    assert [group.name for group in graph.groups] == ["embed"]
    receipt = transaction(model, [Widen("embed", 1, {})], graph, probe=X.double())
    assert 1e-12 < receipt.output_change < 1e-5


def test_pruning_and_inserting_run_training_too():
    model = Net(with_head_of_training)
    graph = analyze(model, X)
    layer = nn.Sequential(nn.Identity())
    moves = [Prune("body", (0,)), Insert("body", layer)]
    transaction(model, moves, graph, probe=X)
    model.train()(X).sum().backward()


def test_dropout_in_training_changes_nothing_about_a_stream_and_its_norms():
    def net(p):
        layer = nn.TransformerEncoderLayer(8, 2, 6, dropout=p, batch_first=True, norm_first=True)
        return nn.Sequential(nn.Linear(3, 8), layer, nn.Linear(8, 2))

    tokens = torch.randn(4, 5, 3)
    still, dropping = (senn.explain(net(p), tokens) for p in (0.0, 0.3))
    assert dropping == still
    assert "0" in {group.name for group in dropping.graph.groups}
