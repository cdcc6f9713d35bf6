"""Models made of standard layers alone come back without any code of their owner's."""

import inspect
import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from surgery_cases import widen
from torch import nn

import senn
from senn import atomic_files
from senn.checkpoint.construct import json_arguments
from senn.checkpoint.constructors import CONSTRUCTORS, CONTAINERS
from senn.errors import SennError, UnsupportedError
from senn.graph import analyze
from senn.nn import MLP, ConvNet, DenseConvNet, Ensemble, Rational, Residual, SinhOutput
from senn.surgery import transaction

ROW, SEQUENCE, IMAGE, VOLUME = (2, 4), (2, 4, 6), (2, 4, 6, 6), (2, 4, 4, 4, 4)
WORDS = torch.tensor([[1, 3, 2], [0, 3, 3]])
SHAPED = {1: SEQUENCE, 2: IMAGE, 3: VOLUME}


def by_dimension():
    """Samples of layers that exist in one, two and three dimensions."""
    for dims, shape in SHAPED.items():

        def of(name, dims=dims):
            return getattr(nn, f"{name}{dims}d")

        yield of("Conv")(4, 6, 3, 2, "valid", 1, 2, padding_mode="circular"), shape
        yield of("Conv")(4, 2, 3, padding="same", bias=False), shape
        yield of("ConvTranspose")(4, 6, 3, 2, 1, 1, 2), shape
        yield of("BatchNorm")(4, 1e-3, None), shape
        yield of("BatchNorm")(4, affine=False, track_running_stats=False), shape
        yield of("InstanceNorm")(4, momentum=0.2, affine=True, track_running_stats=True), shape
        yield of("MaxPool")(3, 2, 1, 1, ceil_mode=True), shape
        yield of("MaxUnpool")(2, 3, 0), (shape, torch.arange(shape[2]).expand(shape))
        yield of("AvgPool")(2, 1, 1, count_include_pad=False), shape
        yield of("LPPool")(1.5, 2), shape
        yield of("AdaptiveAvgPool")(2), shape
        yield of("AdaptiveMaxPool")(2), shape
        yield of("ConstantPad")(1, float("-inf")), shape
        yield of("Dropout")(0.3), shape
        for kind in ("ZeroPad", "ReflectionPad", "ReplicationPad", "CircularPad"):
            yield of(kind)(1), shape
    yield nn.AdaptiveAvgPool2d((None, 2)), IMAGE
    yield nn.AvgPool2d(2, divisor_override=3), IMAGE


SAMPLES = [
    *by_dimension(),
    *(
        (cls(), ROW)
        for cls in (nn.Identity, nn.Tanh, nn.Tanhshrink, nn.Sigmoid, nn.LogSigmoid, nn.Softsign)
    ),
    *(
        (cls(True), ROW)
        for cls in (nn.ReLU, nn.ReLU6, nn.SELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.Hardsigmoid)
    ),
    *((cls(0.7), ROW) for cls in (nn.ELU, nn.CELU, nn.LeakyReLU, nn.Hardshrink, nn.Softshrink)),
    *((cls(-1), ROW) for cls in (nn.GLU, nn.Softmax, nn.LogSoftmax, nn.Softmin)),
    *((cls(0.2), ROW) for cls in (nn.Dropout, nn.AlphaDropout, nn.FeatureAlphaDropout)),
    (nn.RReLU(0.1, 0.2), ROW),
    (nn.Softplus(2.0, 5.0), ROW),
    (nn.Threshold(0.1, -1.0), ROW),
    (nn.Hardtanh(float("-inf"), 0.5), ROW),
    (nn.GELU("tanh"), ROW),
    (nn.PReLU(4), ROW),
    (Rational(4), ROW),
    (nn.Softmax2d(), IMAGE),
    (nn.Linear(4, 3, bias=False), ROW),
    (nn.Bilinear(4, 4, 3), (ROW, ROW)),
    (nn.LayerNorm((4, 6), 1e-3, bias=False), SEQUENCE),
    (nn.LayerNorm(6, elementwise_affine=False), SEQUENCE),
    (nn.RMSNorm(6), SEQUENCE),
    (nn.RMSNorm((4, 6), 1e-3, False), SEQUENCE),
    (nn.GroupNorm(2, 4, 1e-3), IMAGE),
    (nn.GroupNorm(2, 4, affine=False), IMAGE),
    (nn.LocalResponseNorm(2, 0.1, 0.5, 2.0), IMAGE),
    (nn.Embedding(5, 4, padding_idx=-1, max_norm=1.0, scale_grad_by_freq=True), WORDS),
    (nn.EmbeddingBag(5, 4, mode="max"), WORDS),
    (nn.RNN(6, 3, 2, nonlinearity="relu", bidirectional=True), SEQUENCE),
    (nn.LSTM(6, 5, 2, proj_size=3, batch_first=True, dropout=0.1), SEQUENCE),
    (nn.GRU(6, 3, bias=False), SEQUENCE),
    (nn.RNNCell(4, 3, nonlinearity="relu"), ROW),
    (nn.LSTMCell(4, 3, bias=False), ROW),
    (nn.GRUCell(4, 3), ROW),
    (nn.MultiheadAttention(6, 3, 0.1, batch_first=True), (SEQUENCE,) * 3),
    (
        nn.MultiheadAttention(6, 2, 0.0, False, True, True, kdim=6, vdim=4),
        (SEQUENCE, SEQUENCE, (2, 4, 4)),
    ),
    (nn.TransformerEncoderLayer(6, 3, 7, 0.2, "gelu", 1e-3, True, True, False), SEQUENCE),
    (nn.TransformerDecoderLayer(6, 2, 7), (SEQUENCE, SEQUENCE)),
    (
        nn.TransformerEncoder(
            nn.TransformerEncoderLayer(6, 3, 7, 0.2, "gelu"), 2, nn.LayerNorm(6), False
        ),
        SEQUENCE,
    ),
    (
        nn.TransformerEncoder(
            nn.TransformerEncoderLayer(6, 2, 7, batch_first=True), 2, mask_check=False
        ),
        SEQUENCE,
    ),
    (
        nn.TransformerEncoder(
            nn.TransformerEncoderLayer(6, 2, 7, activation=nn.ELU(0.5)), 1, nn.RMSNorm(6), False
        ),
        SEQUENCE,
    ),
    (
        nn.TransformerDecoder(nn.TransformerDecoderLayer(6, 2, 7, bias=False), 2),
        (SEQUENCE, SEQUENCE),
    ),
    (nn.Transformer(6, 2, 2, 1, 7, 0.1, "gelu", batch_first=True), (SEQUENCE, SEQUENCE)),
    (nn.SyncBatchNorm(4, 1e-3, None), IMAGE),
    (nn.SyncBatchNorm.convert_sync_batchnorm(nn.BatchNorm1d(4, affine=False)), SEQUENCE),
    (nn.UpsamplingNearest2d(scale_factor=2), IMAGE),
    (nn.UpsamplingBilinear2d((3, 4)), IMAGE),
    (nn.FractionalMaxPool2d(2, output_ratio=(0.5, 0.7)), IMAGE),
    (nn.FractionalMaxPool3d(2, output_size=(2, 1, 2), return_indices=True), VOLUME),
    (nn.CrossMapLRN2d(2, 0.1, 0.5, 2.0), IMAGE),
    (nn.CosineSimilarity(-1, 1e-3), (ROW, ROW)),
    (nn.PairwiseDistance(1.0, 1e-3, keepdim=True), (ROW, ROW)),
    (nn.AdaptiveLogSoftmaxWithLoss(4, 6, [2, 4], 2.0, head_bias=True), (ROW, torch.tensor([1, 5]))),
    (nn.Flatten(0, 1), SEQUENCE),
    (nn.Unflatten(1, (2, 2)), SEQUENCE),
    (nn.Upsample(scale_factor=(2.0, 1.5), mode="bilinear", align_corners=True), IMAGE),
    (nn.Upsample((3, 4)), IMAGE),
    (nn.PixelShuffle(2), IMAGE),
    (nn.PixelUnshuffle(2), IMAGE),
    (nn.ChannelShuffle(2), IMAGE),
    (nn.Fold((3, 2), (2, 1), padding=(0, 0)), (2, 4, 4)),
    (nn.Unfold(2, padding=1), IMAGE),
    (nn.Sequential(nn.Linear(4, 3), nn.Sequential(nn.ReLU(), Residual(nn.Linear(3, 3)))), ROW),
    (Ensemble([nn.Linear(4, 3), MLP(4, (2,), 3)]), ROW),
    (SinhOutput.fit(MLP(4, (2,), 3), torch.arange(15.0).view(5, 3).exp()), ROW),
    (MLP(4, (3,), 2, norm="batch", shortcut=True), ROW),
    (ConvNet(4, ((3,), (5, 2)), 2), IMAGE),
    (DenseConvNet(4, ((3, 2), (2,)), 3, bias=True), IMAGE),
]


def given(shapes):
    torch.manual_seed(1)
    several = shapes if isinstance(shapes, tuple) and isinstance(shapes[0], tuple) else (shapes,)
    return [
        shape if isinstance(shape, torch.Tensor) else torch.rand(shape) + 0.1 for shape in several
    ]


def run(layer, shapes):
    """All that a layer returns, its own random numbers being the same each time."""
    with torch.random.fork_rng():
        return tensors(layer(*given(shapes)))


def tensors(result):
    return (
        [result]
        if isinstance(result, torch.Tensor)
        else [x for item in result for x in tensors(item)]
    )


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize(
    "number", range(len(SAMPLES)), ids=lambda n: f"{type(SAMPLES[n][0]).__name__}-{n}"
)
def test_a_layer_comes_back(tmp_path, number):
    layer, shapes = SAMPLES[number]
    layer.eval()
    senn.save(tmp_path, nn.ModuleList([layer]))
    (back,) = senn.load(tmp_path)
    assert type(back) is type(layer)
    assert repr(back) == repr(layer)
    assert json_arguments(back) == json_arguments(layer)
    state = back.state_dict()
    assert list(state) == list(layer.state_dict())
    assert all(torch.equal(state[key], value) for key, value in layer.state_dict().items())
    outputs, expected = run(back, shapes), run(layer, shapes)
    assert outputs
    assert all(map(torch.equal, outputs, expected))


def test_every_class_of_the_table_has_a_sample():
    inside = {type(module) for layer, _ in SAMPLES for module in layer.modules()}
    assert set(CONSTRUCTORS) <= inside
    assert (
        set(CONTAINERS) - {nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict}
        <= inside
    )


NOT_CALLED = {"Module", "Container", "RNNBase", "RNNCellBase", "DataParallel"}
"""Bases of others, and a wrapper."""


def test_the_table_has_all_layers_of_torch():
    offered = {
        name: cls
        for name, cls in vars(nn).items()
        if isinstance(cls, type) and issubclass(cls, nn.Module)
    }
    layers = {
        cls
        for name, cls in offered.items()
        if not name.startswith("Lazy") and "Loss" not in name.removesuffix("WithLoss")
    }
    assert layers - {offered[name] for name in NOT_CALLED} <= {*CONSTRUCTORS, *CONTAINERS}


def test_lists_of_parameters_come_back(tmp_path):
    parameters = nn.ParameterList([torch.randn(2, 3), torch.randn(4)])
    named = nn.ParameterDict([("scale", torch.randn(2)), ("a b", torch.randn(()))])
    senn.save(tmp_path, nn.ModuleList([parameters, named]))
    back = senn.load(tmp_path)
    assert [type(part) for part in back] == [nn.ParameterList, nn.ParameterDict]
    assert len(back[0]) == 2
    assert list(back[1]) == ["scale", "a b"]
    assert all(map(torch.equal, [*back[0], *back[1].values()], [*parameters, *named.values()]))
    source = senn.export.python_source(nn.ModuleDict({"list": parameters, "named": named}))
    assert "nn.ParameterList([torch.zeros((2, 3)), torch.zeros((4,))])" in source


def test_a_grown_stack_and_a_grown_decoder_layer_come_back_without_their_owner(tmp_path):
    torch.manual_seed(0)
    stack = nn.Sequential(
        nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 4, batch_first=True), 2),
        nn.Flatten(),
        nn.Linear(48, 3),
    ).eval()
    x = torch.randn(4, 6, 8)
    graph = analyze(stack, x)
    (first,) = [group for group in graph.groups if group.name == "0.layers.0.linear1"]
    transaction(stack, [widen(stack, graph, first.name, 2)], graph, probe=x)
    assert [layer.linear1.out_features for layer in stack[0].layers] == [6, 4]
    senn.save(tmp_path / "stack", stack)
    assert torch.equal(senn.load(tmp_path / "stack")(x), stack(x))
    decoder = nn.TransformerDecoderLayer(8, 2, 4).eval()
    decoder.linear1 = nn.Sequential(
        nn.Linear(8, 8), nn.ReLU(), decoder.linear1
    )  # as an insertion leaves it
    senn.save(tmp_path / "decoder", decoder)
    assert torch.equal(senn.load(tmp_path / "decoder")(x, x), decoder(x, x))


def test_a_stack_of_before_the_table_knew_it_is_regrown(tmp_path):
    """The folder has the class under its bare name."""
    fresh = nn.Sequential(
        nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 2, batch_first=True), 2),
        nn.UpsamplingNearest2d(scale_factor=1),
    )
    folder = Path(__file__).parents[1] / "saved" / "version_2_stack"
    saved = safetensors.torch.load_file(folder / "model.safetensors")
    assert senn.load(folder, into=fresh) is fresh
    assert fresh[0].layers[1].linear1.out_features == 3
    assert all(torch.equal(value, saved[key]) for key, value in fresh.state_dict().items())
    with pytest.raises(UnsupportedError, match="build one and pass it as into"):
        senn.load(folder)


@pytest.mark.parametrize(
    ("alter", "sentence"),
    [
        (lambda arguments: arguments.update(num_layers=10**9), "with 24 tensors"),
        (
            lambda arguments: arguments.update(encoder_layer={"class": "torch.nn.Linear"}),
            "neither a plain value nor a layer",
        ),
        (
            lambda arguments: arguments["encoder_layer"].update({"class": "os.System"}),
            "no arguments of a os.System",
        ),
        (lambda arguments: arguments.update(encoder_layer=3), "int is not a Module subclass"),
    ],
)
def test_forged_arguments_of_a_stack_are_refused(tmp_path, alter, sentence):
    senn.save(
        tmp_path,
        nn.Sequential(nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 3), 2, None, False)),
    )
    path = tmp_path / "model.json"
    document = json.loads(path.read_text())
    alter(document["model"]["children"]["0"]["arguments"])
    path.write_bytes(atomic_files.to_checksummed_json(document))
    with pytest.raises(SennError, match=sentence):
        senn.load(tmp_path)


NOT_SAID = {
    "self",
    "device",
    "dtype",
    "init",
    "_weight",
    "_freeze",
    "_random_samples",
    "min_value",
    "max_value",
}
"""Parameters that say nothing about what a layer is: where it lies, what it starts with, names of old."""


@pytest.mark.parametrize("cls", CONSTRUCTORS, ids=lambda cls: cls.__name__)
def test_the_table_has_all_arguments_of_a_constructor(cls):
    own = nn.RNNBase if issubclass(cls, nn.RNNBase) else cls
    parameters = inspect.signature(own.__init__).parameters
    anything = {
        name
        for name, one in parameters.items()
        if one.kind in (one.VAR_POSITIONAL, one.VAR_KEYWORD)
    }
    expected = set(parameters) - NOT_SAID - anything
    if issubclass(cls, nn.RNNBase):  # which hand on what they don't name themselves
        expected = expected - {"mode", "proj_size"} | {
            nn.RNN: {"nonlinearity"},
            nn.LSTM: {"proj_size"},
        }.get(cls, set())
    if issubclass(cls, nn.modules.batchnorm._NormBase | nn.GroupNorm):
        expected |= {
            "bias"
        }  # newer than the oldest PyTorch that is supported; only written if it was used
    assert set(CONSTRUCTORS[cls]) == expected
    assert len(set(CONSTRUCTORS[cls])) == len(CONSTRUCTORS[cls])


def grown_models():
    """Standard layers with every kind of size in them."""
    return {
        "convolutions": (
            nn.Sequential(
                *(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)),
                *(nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.PReLU(4), nn.Conv2d(4, 6, 1), nn.GroupNorm(3, 6)),
                *(nn.Dropout2d(0.1), nn.Conv2d(6, 8, 1), nn.PixelShuffle(2), nn.ConvTranspose2d(2, 5, 2, 2)),
                *(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(20, 3)),
            ),
            torch.randn(2, 3, 8, 8),
        ),
        "signals": (
            nn.Sequential(
                *(nn.Conv1d(2, 4, 3), nn.InstanceNorm1d(4, affine=True), nn.ConstantPad1d(1, 0.0), nn.GELU()),
                *(nn.Conv1d(4, 5, 1), nn.Flatten(), nn.Linear(40, 6), Rational(6), nn.Linear(6, 2)),
            ),
            torch.randn(2, 2, 8),
        ),
        "words": (
            nn.Sequential(
                nn.Embedding(7, 4), nn.LayerNorm(4), nn.Linear(4, 5), nn.Tanh(), nn.RMSNorm(5), nn.Linear(5, 3)
            ),
            torch.tensor([[1, 2, 3], [4, 5, 6]]),
        ),
        "attention": (
            nn.Sequential(
                nn.Linear(3, 8), nn.TransformerEncoderLayer(8, 2, 6, 0.0, batch_first=True, norm_first=True),
                nn.LayerNorm(8), nn.Linear(8, 2),
            ),
            torch.randn(2, 5, 3),
        ),
    }  # fmt: skip


@pytest.mark.parametrize("name", grown_models())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_a_grown_model_of_standard_layers_comes_back_without_its_owner(tmp_path, name, dtype):
    torch.manual_seed(0)
    model, x = grown_models()[name]
    model, x = model.to(dtype).eval(), x.to(dtype) if x.is_floating_point() else x
    graph = analyze(model, x)
    moves = [
        widen(model, graph, group.name, group.granularity)
        for group in graph.groups
        if not group.norms
    ]
    streams = [group for group in graph.groups if group.norms]
    assert moves or streams
    moves += [
        senn.surgery.Widen(group.name, group.granularity, quiet_values(model, group))
        for group in streams
    ]
    transaction(model, moves, graph, probe=x)
    senn.save(tmp_path, model)
    back = senn.load(tmp_path)
    assert torch.equal(back(x), model(x))
    assert all(
        value.dtype == back.state_dict()[key].dtype for key, value in model.state_dict().items()
    )
    into = senn.load(tmp_path, into=grown_models()[name][0].eval())
    assert torch.equal(into(x), model(x))


def quiet_values(model, group):
    """Values for those producers of a stream that take any."""
    found = {}
    for coupled in group.dims_of("producer"):
        if not coupled.behind_norm:
            old = model.get_parameter(coupled.name)
            shape = [
                group.granularity * coupled.index.shape[1] if d == coupled.dim else n
                for d, n in enumerate(old.shape)
            ]
            found[coupled.name] = torch.randn(shape).to(old)
    return found


def test_shared_modules_are_shared_again(tmp_path):
    act, linear = nn.PReLU(3), nn.Linear(3, 3)
    senn.save(tmp_path, nn.Sequential(linear, act, nn.Sequential(linear, act), nn.Linear(3, 1)))
    back = senn.load(tmp_path)
    assert back[2][0] is back[0]
    assert back[2][1] is back[1]
    assert len(list(back.parameters())) == 5


def test_layers_that_their_owner_altered_are_not_built_wrongly(tmp_path):
    model = nn.Sequential(nn.Linear(3, 2), nn.ReLU())
    model[0].register_buffer("scale", torch.ones(2))
    senn.save(tmp_path, model)
    with pytest.raises(SennError, match=r"0 can't be built .* another 'scale'"):
        senn.load(tmp_path)
    layer = nn.TransformerEncoderLayer(4, 2, 5, activation=torch.tanh)
    senn.save(tmp_path, nn.Sequential(layer))
    with pytest.raises(
        SennError,
        match=r"0 is a torch.nn.TransformerEncoderLayer, which senn can't build by itself",
    ):
        senn.load(tmp_path)
    into = nn.Sequential(nn.TransformerEncoderLayer(4, 2, 3, activation=torch.tanh)).eval()
    x = torch.randn(3, 1, 4)
    assert torch.equal(senn.load(tmp_path, into=into)(x), layer.eval()(x))
