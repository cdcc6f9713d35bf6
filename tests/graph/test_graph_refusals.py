"""What cannot change size is refused by name, and the rest of the model still works."""

import functools

import pytest
import torch
from graph_nets import Net, batch, linear_pair, names, reasons
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from senn.errors import SennError, UnsupportedError
from senn.graph import analyze, explain

OWN = "the model's own forward (Net)"
UNKNOWN = "which isn't understood yet"
MEET = "its units meet"
INPUT = f"{MEET} the model's own input, whose size the data give, in {OWN}"

REFUSED = {
    "softmax": (
        linear_pair(lambda m, x: m.b(m.soft(m.a(x))), soft=nn.Softmax(-1)),
        "soft (Softmax) mixes its units (softmax)",
    ),
    "mean": (
        linear_pair(lambda m, x: m.b((h := m.a(x)) + h.mean(1, keepdim=True))),
        f"{OWN} mixes its units (mean)",
    ),
    "batch norm over tokens": (
        Net(
            lambda m, x: m.b(m.norm(m.a(x.expand(5, 4, 3)))),
            a=(3, 6),
            norm=nn.BatchNorm1d(4),
            b=(6, 2),
        ),
        "its units are not along the feature dimension in norm (BatchNorm1d)",
    ),
    "filled with a unit": (
        linear_pair(lambda m, x: m.b(torch.ones(4, 4).fill_(m.a(x)[0, 0]))),
        f"its units meet fill in {OWN}, {UNKNOWN}",
    ),
    "cut into bytes": (
        Net(lambda m, x: m.b(m.a(x).view(torch.int16).float()), a=(3, 4), b=(8, 2)),
        f"its units meet view in {OWN}, {UNKNOWN}",
    ),
    "raw input": (Net(lambda m, x: m.b(m.a(x) + x), a=(3, 3), b=(3, 2)), INPUT),
    "constant": (
        linear_pair(lambda m, x: m.b(m.a(x) * torch.arange(4.0))),
        f"{MEET} numbers that the forward computes in {OWN}",
    ),
    "gate": (
        Net(lambda m, x: m.b(m.a(x) * m.c(x)), a=(3, 1), c=(3, 4), b=(4, 2)),
        f"its units are spread over other units in {OWN}",
    ),
    "item": (
        linear_pair(lambda m, x: m.b((h := m.a(x)) * (1 if h[0, 0].item() > 0 else 2))),
        f"its values steer Python code in {OWN}",
    ),
    "no reader": (
        linear_pair(lambda m, x: (m.a(x), m.b(torch.ones(1, 4)))[1]),
        "no linear map reads its units",
    ),
    "bare matrix": (
        linear_pair(lambda m, x: m.b(m.a(x) @ torch.eye(4))),
        f"its units are multiplied with others and summed in {OWN}",
    ),
    "bare layer": (
        linear_pair(lambda m, x: m.b(F.linear(m.a(x), m.b.weight.T @ m.b.weight))),
        f"its units are read by a weight that is computed from b.weight by mm in {OWN}",
    ),
    "part of the units": (
        Net(lambda m, x: m.b(m.a(x)[:, :2]), a=(3, 4), b=(2, 2)),
        "its units own different numbers of positions in b.weight",
    ),
    "a unit overwritten": (
        linear_pair(lambda m, x: ((h := m.a(x))[:, 0].fill_(0), m.b(h))[1]),
        "its units own different numbers of positions in b.weight",
    ),
    "unlike sums": (
        Net(
            lambda m, x: m.b(torch.cat([m.a(x), m.c(x)], 1) + m.d(x)),
            a=(3, 4),
            c=(3, 2),
            d=(3, 6),
            b=(6, 2),
        ),
        "its units don't correspond one to one to the rows of c",
    ),
    "token mixing": (
        Net(lambda m, x: m.b(m.a(x.expand(5, 4, 3)).transpose(1, 2)), a=(3, 6), b=(4, 2)),
        "its units are the model's outputs",
    ),
    "flip": (
        linear_pair(lambda m, x: m.b(m.a(x).flip(1))),
        "its units lie in b.weight in an order that isn't understood",
    ),
    "units choose entries": (
        linear_pair(lambda m, x: m.b(torch.gather(torch.ones(2, 4), 0, (m.a(x) > 0).long()))),
        f"its units meet gather in {OWN}, {UNKNOWN}",
    ),
    "layer norm without a weight": (
        linear_pair(lambda m, x: m.b(F.layer_norm(h := m.a(x), h.shape[1:]).tanh())),
        f"the model's own forward normalizes over its units and has no weight to make up for it: tanh in {OWN} comes "
        "after",
    ),
    "number in the shape": (
        linear_pair(lambda m, x: m.b(m.a(x).view(4, 4))),
        "the forward pass fixes its size: with one more unit it fails (RuntimeError: shape '[4, 4]' is invalid for "
        "input of size 20, at test_graph_refusals.py:",
    ),
    "number in the value": (
        linear_pair(lambda m, x: m.b((h := m.a(x)) / h.shape[1])),
        "the outputs depend on the number of its units",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_groups_say_why(case):
    model, reason = REFUSED[case]
    graph = analyze(model, batch(4, 3))
    assert names(graph) == (["c"] if case == "gate" else [])
    said = reasons(graph)["a"]
    assert said.startswith(reason) if reason.endswith(".py:") else said == reason
    assert {"a", "b"} & set(graph.scored_maps)


def test_a_size_that_a_call_fixes_is_refused_with_the_line_of_the_call():
    model = Net(lambda m, x: m.b(m.a(x).view(x.shape[0], 2, 2).flatten(1)), a=(3, 4), b=(4, 2))
    (refused,) = [one for one in analyze(model, batch(5, 3)).refusals if one.place == "a"]
    assert refused.reason == f"its size is fixed by view in {OWN}"
    assert refused.line.startswith("test_graph_refusals.py:")
    assert "view(x.shape[0], 2, 2)" in refused.line


@functools.lru_cache
def _by_heads(shape, heads):
    return shape[0], heads, shape[1] // heads


def test_a_mixing_reduction_is_refused_with_its_own_line():
    def forward(m, x):
        hidden = m.a(x)
        total = hidden.sum(1, keepdim=True)
        angle = total.cos()
        return m.b(hidden * angle)

    model = Net(forward, a=(3, 4), b=(4, 2))
    (refused,) = [one for one in analyze(model, batch(5, 3)).refusals if one.place == "a"]
    assert refused.reason == f"{OWN} mixes its units (sum)"
    assert "hidden.sum(1, keepdim=True)" in refused.line


def test_a_private_number_of_heads_follows():
    def forward(m, x):
        hidden = m.a(x)
        return m.b(hidden.view(len(x), m._heads, -1).softmax(-1).flatten(1))

    model = Net(forward, a=(3, 4), b=(4, 2))
    model._heads = 2
    (group,) = analyze(model, batch(5, 3)).groups
    assert group.width == 2
    assert [(one.name, one.per_unit) for one in group.attributes][-1] == ("_heads", 1)


def test_units_that_lie_in_a_weight_in_an_odd_way_are_refused_with_a_line():
    model = Net(lambda m, x: m.b(m.a(x)[:, :2]), a=(3, 4), b=(2, 2))
    (refused,) = [one for one in analyze(model, batch(4, 3)).refusals if one.place == "a"]
    assert refused.reason == "its units own different numbers of positions in b.weight"
    assert "m.b(m.a(x)[:, :2])" in refused.line


@pytest.mark.parametrize("transform", [torch.fft.fft, torch.fft.rfft])
def test_a_fourier_transform_mixes_units_along_its_own_dimension_only(transform):
    net = {"a": (3, 4), "b": (4, 2)}
    along_tokens = Net(lambda m, x: m.b(transform(m.a(x), dim=1).abs()), **net)
    (group,) = analyze(along_tokens, batch(4, 6, 3)).groups
    assert group.width == 4
    along_units = Net(lambda m, x: m.b(torch.fft.fft(m.a(x)).abs()), **net)
    assert reasons(analyze(along_units, batch(4, 3)))["a"] == f"{OWN} mixes its units (fft_r2c)"


def test_a_function_that_remembers_shapes_fixes_no_size():
    def forward(m, x):
        hidden = m.a(x)
        return m.b(hidden.view(_by_heads(hidden.shape, m.heads)).softmax(-1).flatten(1))

    model = Net(forward, a=(3, 4), b=(4, 2))
    model.heads = 2
    for _ in range(2):  # what the first analysis left in there included
        model(batch(5, 3))
        (group,) = analyze(model, batch(5, 3)).groups
        assert group.width == 2
        assert [attribute.name for attribute in group.attributes][-1] == "heads"


def test_a_window_of_one_unit_mixes_none():
    pool = nn.AvgPool2d((2, 1))
    model = Net(lambda m, x: m.b(m.pool(m.a(x).unsqueeze(1))), a=(3, 4), pool=pool, b=(4, 2))
    assert names(analyze(model, batch(5, 6, 3))) == ["a"]


def test_what_a_parametrization_consists_of_is_refused_with_it():
    model = nn.Sequential(nn.Linear(3, 4), parametrizations.weight_norm(nn.Linear(4, 2)))
    refused = reasons(analyze(model, batch(5, 3)))
    assert not [place for place in refused if place.startswith("1.")]


def test_a_group_of_one_norm_takes_the_blame_of_no_other():
    """Behind a norm and a linear map, a stream that a second norm reads after a third one (post-norm)."""
    layers = [nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 6), nn.LayerNorm(6)]
    model = Net(
        lambda m, x: m.out(m.last((h := m.body(x)) + m.branch(h).relu())),
        body=nn.Sequential(*layers),
        branch=(6, 6),
        last=nn.LayerNorm(6),
        out=(6, 2),
    )
    refused = reasons(analyze(model, batch(5, 3)))
    assert refused["body.2"].startswith("last normalizes over its units")


def test_a_group_whose_size_is_fixed_leaves_the_others():
    model = Net(lambda m, x: m.c(m.b(m.a(x)).view(5, 5)), a=(3, 4), b=(4, 5), c=(5, 2))
    graph = analyze(model, batch(5, 3))
    assert names(graph) == ["a"]
    assert (
        "with one more unit it fails (RuntimeError: shape '[5, 5]' is invalid"
        in reasons(graph)["b"]
    )


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (
            parametrizations.weight_norm,
            "has a weight that is computed from other tensors (a parametrization)",
        ),
        (
            parametrizations.orthogonal,
            "has a weight that is computed from other tensors (a parametrization)",
        ),
        (
            nn.utils.spectral_norm,
            "has a weight that is computed from other tensors (a parametrization)",
        ),
        (lambda linear: linear.requires_grad_(False), "has a frozen weight"),
    ],
)
def test_a_linear_map_that_must_keep_its_shape_fixes_both_its_sides(make, problem):
    model = nn.Sequential(
        nn.Linear(3, 4),
        nn.ReLU(),
        make(nn.Linear(4, 4)),
        nn.ReLU(),
        nn.Linear(4, 6),
        nn.Linear(6, 2),
    )
    graph = analyze(model, batch(5, 3))
    assert graph.scored_maps == ("0", "4", "5")
    assert [insertion_point.module for insertion_point in graph.insertion_points] == ["0", "4", "5"]
    assert names(graph) == ["4"]
    assert "2" in reasons(graph)["0"]
    assert reasons(graph)["2"] == f"it {problem}"


def test_a_linear_map_called_twice_is_one_group():
    model = Net(
        lambda m, x: m.out(m.twice(m.twice(m.a(x)).relu())),
        a=(3, 4),
        twice=(4, 4),
        out=(4, 2),
    )
    graph = analyze(model, batch(5, 3))
    assert graph.scored_maps == ("a", "twice", "out")
    assert graph.map("twice").n_uses == 2
    assert names(graph) == ["a"]


def test_tied_weights_that_read_units_and_data_are_refused():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    model[2].weight = model[0].weight
    graph = analyze(model, batch(5, 4))
    assert graph.scored_maps == ("0", "4")
    assert reasons(graph)["0"] == "0.weight reads its units and also a tensor that has no units"
    assert names(graph) == []
    model[2].weight = nn.Parameter(model[0].weight.data)  # another Parameter, the same memory
    assert "shares its memory with" in reasons(analyze(model, batch(5, 4)))["0"]


def test_a_tied_carrier_makes_one_group():
    model = nn.Sequential(
        nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)
    )
    model[3].weight = model[1].weight
    assert names(analyze(model, batch(5, 3))) == ["0"]


def test_a_weight_whose_columns_are_outputs_grows_on_its_other_side_only():
    model = linear_pair(lambda m, x: m.b(m.a(x)) @ m.b.weight)
    graph = analyze(model, batch(5, 3))
    assert "a" in reasons(graph)
    assert names(graph) == ["b"]


def test_a_weight_used_without_calling_its_module_can_grow():
    model = linear_pair(lambda m, x: m.b(F.linear(x, m.a.weight, m.a.bias)))
    graph = analyze(model, batch(5, 3))
    assert graph.scored_maps == ("a", "b")
    assert names(graph) == ["a"]


def test_one_module_under_two_names_can_grow_but_takes_no_layer():
    model = Net(lambda m, x: m.b(m.a(x)), a=(3, 4), b=(4, 2))
    model.alias = model.a
    graph = analyze(model, batch(5, 3))
    assert names(graph) == ["a"]
    assert [insertion_point.module for insertion_point in graph.insertion_points] == ["b"]
    assert (
        reasons(graph)["a"]
        == "no layer can be inserted before it: the model holds it under two names"
    )


def test_a_model_that_is_one_linear_map():
    graph = analyze(nn.Linear(3, 2), batch(5, 3))
    assert (graph.scored_maps, graph.groups, graph.insertion_points) == (("weight",), (), ())
    assert "(the model)" in explain(graph)


def test_unused_modules_and_parameters_are_named():
    model = linear_pair(lambda m, x: m.b(m.a(x)), spare=nn.Sequential(nn.Linear(3, 4), nn.ReLU()))
    model.register_parameter("left", nn.Parameter(batch(2)))
    found = reasons(analyze(model, batch(5, 3)))
    assert found["spare.0"] == found["left"] == "it is never used in the forward pass"


def test_what_has_no_rule_is_named_and_the_rest_still_works():
    model = Net(lambda m, x: m.c(m.b(torch.sort(m.a(x))[0])), a=(3, 4), b=(4, 5), c=(5, 2))
    graph = analyze(model, batch(2, 3))
    assert names(graph) == ["b"]
    assert reasons(graph)["a"] == f"its units meet sort in {OWN}, {UNKNOWN}"


def test_norms_after_a_residual_keep_the_stream_and_heads_but_not_the_feed_forward_part():
    layer = nn.TransformerEncoderLayer(8, 2, dim_feedforward=12, batch_first=True)
    graph = analyze(nn.Sequential(nn.Linear(4, 8), layer, nn.Linear(8, 2)), batch(2, 5, 4))
    assert names(graph) == ["1.linear1"]
    assert torch.backends.mha.get_fastpath_enabled()
    assert "it has gone through another norm, 1.norm1 (LayerNorm)" in reasons(graph)["0"]
    assert "follows that of 0" in reasons(graph)["1.self_attn.in_proj_weight"]


def test_ignored_modules_keep_their_shapes():
    model = nn.Sequential(
        nn.Linear(3, 4),
        nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 6)),
        nn.Linear(6, 7),
        nn.Linear(7, 2),
    )
    graph = analyze(model, batch(5, 3), ignore=("1",))
    assert names(graph) == ["2"]
    assert graph.scored_maps == ("0", "1.0", "1.1", "2", "3")
    assert [insertion_point.module for insertion_point in graph.insertion_points] == ["0", "2", "3"]
    assert reasons(graph)["1.0"] == "it is ignored as requested"
    assert reasons(graph)["0"] == "1.0, which reads its units, is ignored as requested"
    with pytest.raises(SennError, match="no module named 'nowhere'"):
        analyze(model, batch(5, 3), ignore=["nowhere"])


def test_bad_requests_are_one_sentence():
    model = nn.Sequential(nn.Linear(3, 2))
    with pytest.raises(
        SennError, match="forward pass fails on the example inputs: RuntimeError: mat1 and mat2"
    ):
        analyze(model, batch(5, 4))
    with pytest.raises(SennError, match="hold no sample"):
        analyze(model, torch.zeros(0, 3))
    with pytest.raises(SennError, match="not a function"):
        analyze(lambda x: x, batch(5, 3))
    with pytest.raises(SennError, match=r"0\.weight has no shape yet"):
        analyze(nn.Sequential(nn.LazyLinear(3)), batch(5, 3))
    with pytest.raises(UnsupportedError, match="returns a Box"):
        analyze(Net(lambda m, x: type("Box", (), {})()), batch(5, 3))


def test_a_refusal_names_the_line_of_the_forward():
    model = linear_pair(lambda m, x: m.b(m.a(x).softmax(-1)))
    (refusal,) = [one for one in analyze(model, batch(4, 3)).refusals if one.place == "a"]
    assert refusal.line.startswith("test_graph_refusals.py:")
    assert refusal.line.endswith("`model = linear_pair(lambda m, x: m.b(m.a(x).softmax(-1)))`")
    shown = " ".join(str(explain(model, batch(4, 3))).split())
    assert refusal.line in shown
    plain = analyze(nn.Sequential(nn.Linear(3, 4), nn.Softmax(-1), nn.Linear(4, 2)), batch(4, 3))
    assert [one.line for one in plain.refusals] == ["", ""]


def test_a_submodule_that_its_name_does_not_lead_to_is_named():
    model = Net(lambda m, x: m.b(m.a(x)), a=(3, 4), b=(4, 2))
    model.parameters = nn.ParameterList([*model.a.parameters()])
    with pytest.raises(UnsupportedError, match="the submodule parameters has a name that Net has"):
        analyze(model, batch(5, 3))
