"""The graph says what can change size, whatever the model's forward looks like."""

import pytest
import torch
from graph_nets import Net, batch, columns, coupled_dims, each, linear_pair, names, reasons
from torch import nn
from torch.nn import functional as F

from senn.errors import SennError
from senn.graph import SizeAttribute, analyze, explain
from senn.nn import MLP, Rational, Residual


def test_a_plain_chain_is_found_whole():
    model = nn.Sequential(
        nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 5, bias=False), nn.Linear(5, 3)
    )
    graph = analyze(model, batch(4, 6))
    assert graph.scored_maps == ("0", "3", "4")
    assert names(graph) == ["0", "3"]
    first = graph.group("0")
    assert (first.width, first.granularity) == (8, 1)
    assert coupled_dims(first) == {
        "0.weight": ("producer", 0, each(8)),
        "0.bias": ("producer", 0, each(8)),
        "1.weight": ("elementwise", 0, each(8)),
        "1.bias": ("elementwise", 0, each(8)),
        "1.running_mean": ("elementwise", 0, each(8)),
        "1.running_var": ("elementwise", 0, each(8)),
        "3.weight": ("consumer", 1, each(8)),
    }
    assert first.attributes == (
        SizeAttribute(module="0", name="out_features", per_unit=1),
        SizeAttribute(module="1", name="num_features", per_unit=1),
        SizeAttribute(module="3", name="in_features", per_unit=1),
    )
    assert coupled_dims(graph.group("3")) == {
        "3.weight": ("producer", 0, each(5)),
        "4.weight": ("consumer", 1, each(5)),
    }
    assert [
        (insertion_point.module, insertion_point.features, insertion_point.activation)
        for insertion_point in graph.insertion_points
    ] == [
        ("0", 6, "ReLU"),
        ("3", 8, "ReLU"),
        ("4", 5, "ReLU"),
    ]
    assert reasons(graph) == {"4": "its units are the model's outputs"}


@pytest.mark.parametrize("shape", [(4, 6), (4, 3, 6), (6,), (2, 3, 2, 6)])
def test_any_number_of_leading_dimensions(shape):
    graph = analyze(
        nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2, bias=False)), batch(*shape)
    )
    assert coupled_dims(graph.group("0"))["2.weight"] == ("consumer", 1, each(8))


def test_a_transposed_input_takes_another_road_through_torch():
    model = Net(lambda m, x: m.b(m.a(x.transpose(0, 1))), a=(6, 8), b=(8, 2))
    assert names(analyze(model, batch(4, 3, 6))) == ["a"]


def test_residual_streams_are_one_group():
    def forward(m, x):
        h = m.stem(x)
        h = h + m.up1(F.relu(m.down1(h)))
        h = h + m.up2(F.relu(m.down2(h)))
        return m.head(h)

    sizes = {
        "stem": (6, 4),
        "down1": (4, 7),
        "up1": (7, 4),
        "down2": (4, 3),
        "up2": (3, 4),
        "head": (4, 2),
    }
    graph = analyze(Net(forward, **sizes), batch(5, 6))
    assert names(graph) == ["stem", "down1", "down2"]
    stream = graph.group("stem")
    assert [s.name for s in stream.dims_of("producer")] == [
        f"{m}.{t}" for m in ("stem", "up1", "up2") for t in ("weight", "bias")
    ]
    assert [s.module for s in stream.dims_of("consumer")] == ["down1", "down2", "head"]


def test_a_map_from_a_stream_to_itself_has_both_its_dimensions_in_the_group():
    model = Net(lambda m, x: m.out((h := m.a(x)) + F.relu(m.b(h))), a=(3, 4), b=(4, 4), out=(4, 2))
    group = analyze(model, batch(5, 3)).group("a")
    assert [(s.role, s.dim) for s in group.dims if s.name == "b.weight"] == [
        ("producer", 0),
        ("consumer", 1),
    ]


def test_concatenation_gives_each_group_its_own_columns():
    def forward(m, x):
        return m.out(m.norm(torch.cat([F.relu(m.a(x)), x, F.gelu(m.b(x))], dim=1)))

    model = Net(forward, a=(3, 4), b=(3, 2), norm=nn.BatchNorm1d(9), out=(9, 2))
    graph = analyze(model, batch(5, 3))
    assert names(graph) == ["a", "b"]
    assert columns(graph, "a", "out") == (each(4), False)
    assert columns(graph, "b", "out") == (each(2, start=7), False)
    assert coupled_dims(graph.group("b"))["norm.running_var"] == (
        "elementwise",
        0,
        each(2, start=7),
    )
    assert graph.group("a").attributes[1:] == (
        SizeAttribute(module="norm", name="num_features", per_unit=1),
        SizeAttribute(module="out", name="in_features", per_unit=1),
    )


def test_flattened_channels_are_neighbors_and_flattened_tokens_alternate():
    tokens = Net(lambda m, x: m.b(F.relu(m.a(x)).flatten(1)), a=(6, 2), b=(6, 2))
    assert columns(analyze(tokens, batch(4, 3, 6)), "a", "b") == ([[0, 2, 4], [1, 3, 5]], True)
    channels = Net(lambda m, x: m.b(m.a(x).transpose(1, 2).flatten(1)), a=(6, 2), b=(6, 2))
    graph = analyze(channels, batch(4, 3, 6))
    assert columns(graph, "a", "b") == ([[0, 1, 2], [3, 4, 5]], False)
    assert SizeAttribute(module="b", name="in_features", per_unit=3) in graph.group("a").attributes


@pytest.mark.parametrize(("swap", "interleaved"), [(False, True), (True, False)])
def test_a_single_unit_is_told_apart_by_the_widened_copy(swap, interleaved):
    def forward(m, x):
        h = m.a(x)
        return m.b((h.transpose(1, 2) if swap else h).flatten(1))

    graph = analyze(Net(forward, a=(6, 1), b=(3, 2)), batch(4, 3, 6))
    assert columns(graph, "a", "b") == ([[0, 1, 2]], interleaved)


def test_units_read_twice_own_two_columns():
    model = Net(lambda m, x: m.b(torch.cat([(h := m.a(x)), x, h.relu()], 1)), a=(3, 2), b=(7, 2))
    assert columns(analyze(model, batch(5, 3)), "a", "b") == ([[0, 5], [1, 6]], True)


@pytest.mark.parametrize("width", [1, 4])
def test_rational_parameters_are_carriers(width):
    graph = analyze(MLP(3, (width,), 2, activation=Rational), batch(5, 3))
    (group,) = graph.groups
    assert {s.tensor: s.index.tolist() for s in group.dims_of("elementwise")} == {
        tensor: each(width) for tensor in "vcl"
    }
    assert any(attribute.name == "num_parameters" for attribute in group.attributes)
    assert {insertion_point.activation for insertion_point in graph.insertion_points} == {
        "Rational"
    }


@pytest.mark.parametrize(
    ("slopes", "width", "carried"), [(4, 4, True), (1, 4, False), (1, 1, False)]
)
def test_prelu_carries_one_slope_per_unit_or_shares_one(slopes, width, carried):
    graph = analyze(
        nn.Sequential(nn.Linear(3, width), nn.PReLU(slopes), nn.Linear(width, 2)), batch(5, 3)
    )
    group = graph.group("0")
    assert bool(group.dims_of("elementwise")) is carried
    assert (
        SizeAttribute(module="1", name="num_parameters", per_unit=1) in group.attributes
    ) is carried
    assert graph.insertion_points[1].activation == "PReLU"


def test_bare_parameters_are_carriers_along_the_dimension_of_the_units():
    model = Net(lambda m, x: m.b(m.a(x) * m.scale + m.table), a=(6, 4), b=(4, 2))
    model.scale, model.table = nn.Parameter(batch(4)), nn.Parameter(batch(3, 4))
    found = coupled_dims(analyze(model, batch(2, 3, 6)).group("a"))
    assert found["scale"] == ("elementwise", 0, each(4))
    assert found["table"] == ("elementwise", 1, each(4))


def test_gating_by_product_unites_gate_and_value():
    model = Net(lambda m, x: m.out(m.a(x).sigmoid() * m.b(x)), a=(3, 4), b=(3, 4), out=(4, 2))
    graph = analyze(model, batch(5, 3))
    assert names(graph) == ["a"]
    assert [s.module for s in graph.group("a").dims_of("producer")] == ["a", "a", "b", "b"]


def test_units_written_into_a_buffer_are_followed():
    def forward(m, x):
        both = torch.zeros(len(x), 3 + m.a.out_features)
        both[:, 3:] = m.a(x)
        both[:, :3] = x
        return m.b(both.relu_())

    graph = analyze(Net(forward, a=(3, 4), b=(7, 2)), batch(5, 3))
    assert columns(graph, "a", "b") == (each(4, start=3), False)


def test_padding_belongs_to_no_unit():
    model = Net(lambda m, x: m.b(F.pad(m.a(x), (1, 2), value=1.0)), a=(3, 4), b=(7, 2))
    assert columns(analyze(model, batch(5, 3)), "a", "b") == (each(4, start=1), False)


def test_slices_of_a_concatenation_find_their_group_again():
    def forward(m, x):
        parts = torch.cat([m.a(x), m.b(x)], 1).split([m.a.out_features, m.b.out_features], 1)
        return m.c(parts[1]) + m.d(parts[0])

    model = Net(forward, a=(3, 4), b=(3, 5), c=(5, 2), d=(4, 2))
    graph = analyze(model, batch(5, 3))
    assert {name: graph.group(name).dims_of("consumer")[0].module for name in names(graph)} == {
        "a": "d",
        "b": "c",
    }


def test_several_inputs_nested_modules_and_dict_outputs():
    def forward(m, x, extra):
        return {"y": m.head(torch.cat([m.body(x), m.side(extra["z"])], 1))}

    body = nn.Sequential(
        nn.Linear(3, 4), nn.Dropout(0.5), nn.Sequential(nn.SiLU(), nn.Linear(4, 4), nn.ELU())
    )
    model = Net(forward, body=body, side=(2, 3), head=(7, 2))
    graph = analyze(model, (batch(5, 3), {"z": batch(5, 2)}))
    assert names(graph) == ["body.0", "body.2.1", "side"]
    assert {
        insertion_point.module: insertion_point.activation
        for insertion_point in graph.insertion_points
    }["body.2.1"] == "SiLU"


def test_branches_of_two_batches_that_one_map_reads_are_one_group():
    model = Net(lambda m, x: m.c(torch.cat([m.a(x), m.b(x)], 0)), a=(3, 4), b=(3, 4), c=(4, 2))
    assert names(analyze(model, batch(5, 3))) == ["a"]


def test_pooling_and_normalising_over_other_dimensions_is_fine():
    def forward(m, x):
        h = m.a(x).transpose(1, 2)
        return m.b(m.norm(h).softmax(-1).mean(2))

    model = Net(forward, a=(6, 4), norm=nn.LayerNorm(3), b=(4, 2))
    assert names(analyze(model, batch(2, 3, 6))) == ["a"]


def test_activation_hints_follow_functions_and_fall_back_on_the_usual_one():
    def forward(m, x):
        return m.d(F.softplus(m.c(F.leaky_relu(m.b(torch.tanh(m.a(x)).flatten(1))))))

    model = Net(forward, **dict.fromkeys("abcd", (4, 4)))
    hints = {
        insertion_point.module: insertion_point.activation
        for insertion_point in analyze(model, batch(5, 4)).insertion_points
    }
    assert hints == {"a": "Tanh", "b": "Tanh", "c": "LeakyReLU", "d": "Softplus"}
    assert (
        analyze(nn.Sequential(nn.Linear(3, 2)), batch(5, 3)).insertion_points[0].activation
        == "ReLU"
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes(dtype):
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).to(dtype)
    assert names(analyze(model, batch(4, 6).to(dtype))) == ["0"]


def test_autocast_inside_the_forward():
    def forward(m, x):
        with torch.autocast("cpu", torch.bfloat16):
            return m.b(F.relu(m.a(x)))

    assert names(analyze(Net(forward, a=(3, 4), b=(4, 2)), batch(5, 3))) == ["a"]


def test_inserted_residual_and_rational_layers_keep_the_stream_growable():
    branch = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 4))
    model = nn.Sequential(
        nn.Linear(3, 4),
        nn.ReLU(),
        nn.Sequential(Residual(branch), nn.Linear(4, 4), Rational(4), nn.Linear(4, 2)),
    )
    graph = analyze(model, batch(5, 3))
    assert names(graph) == ["0", "2.0.branch.0", "2.1"]


def test_the_model_is_left_as_it_was():
    model = nn.Sequential(
        nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 4), nn.Linear(4, 2)
    )
    model[2].eval()
    model(batch(5, 3)).sum().backward()
    seen = []
    handle = model[0].register_forward_hook(lambda module, args, output: seen.append(output.shape))
    model[3].register_forward_pre_hook(lambda module, args: (args[0] * 2,))

    def state():
        tensors = {
            name: (id(t), t._version, t.clone())
            for name, t in model.state_dict(keep_vars=True).items()
        }
        grads = {name: (id(p.grad), p.grad.clone()) for name, p in model.named_parameters()}
        hooks = {
            n: (list(m._forward_hooks), list(m._forward_pre_hooks))
            for n, m in model.named_modules()
        }
        return tensors, grads, hooks, [m.training for m in model.modules()], torch.get_rng_state()

    before = state()
    graph = analyze(model, batch(5, 3))
    after = state()
    assert names(graph) == ["0", "3"]
    assert len(seen) > 0
    handle.remove()
    torch.testing.assert_close(before, after, rtol=0, atol=0)


def test_state_that_the_forward_pass_keeps_is_restored():
    def forward(m, x):
        m.count += 1
        m.last = x.add_(1).mean()
        return m.b(m.a(x) + 0 * torch.rand(1))

    model = linear_pair(forward)
    model.register_buffer("count", torch.zeros(()))
    model.register_buffer("last", torch.zeros(()))
    x = batch(5, 3)
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    assert names(analyze(model, x)) == ["a"]
    assert torch.equal(torch.rand(2), expected)
    assert model.count == model.last == 0
    assert torch.equal(x, batch(5, 3))


def test_a_failing_forward_leaves_nothing_behind():
    model = linear_pair(lambda m, x: m.b(m.a(x)[:, :3]))
    model.train()
    with pytest.raises(SennError):
        analyze(model, batch(5, 3))
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert torch.is_grad_enabled()


def test_analysis_is_the_same_in_train_and_eval_and_twice():
    model = MLP(3, (4, 5), 2, norm="batch", dropout=0.3)
    first = explain(analyze(model, batch(5, 3)))
    assert explain(analyze(model.eval(), batch(5, 3))) == first
    assert explain(analyze(model, batch(2, 3))) == first


def test_explain_is_a_table():
    model = Net(lambda m, x: m.b(m.act(m.a(x)).flatten(1)), a=(3, 4), act=Rational(4), b=(8, 2))
    assert explain(analyze(model, batch(5, 2, 3))).splitlines() == [
        "group  units  produced by  elementwise  consumed by",
        "a      4      a            act          b x 2",
        "",
        "layer before  features  activation",
        "a             3         Rational",
        "b             8         Rational",
        "",
        "cannot change  because",
        "b              its units are the model's outputs",
    ]
    assert explain(analyze(nn.Flatten(), batch(5, 3))) == "Nothing in this model can change size."
