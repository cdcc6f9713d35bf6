"""The table of constructors: read by `load`, which builds no other class, and by the export of source code.

A layer's constructor arguments are read back from the layer itself: from its attributes of the same names, or by one of
`_READERS` where the layer keeps them elsewhere. An argument may be a layer itself: the one that a stack repeats.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from senn.errors import UnsupportedError
from senn.nn import MLP, ConvNet, DenseConvNet, Ensemble, Rational, Residual, SinhOutput

Arguments = tuple[str, ...]
Class = type[nn.Module]


def _each(names: str, arguments: str) -> dict[Class, Arguments]:
    """Make a table of classes of torch.nn that take the same arguments."""
    classes = [getattr(nn, name) for name in names.split()]
    return dict.fromkeys(classes, tuple(arguments.split()))


def _dims(name: str, arguments: str, dims: str = "123") -> dict[Class, Arguments]:
    """Make a table of a class's variants for one, two and three dimensions."""
    return _each(" ".join(f"{name}{dim}d" for dim in dims), arguments)


_CONV = "in_channels out_channels kernel_size stride padding dilation groups bias padding_mode"
_POOL = "kernel_size stride padding ceil_mode count_include_pad"
_RUNNING = "num_features eps momentum affine track_running_stats bias"
_RECURRENT = "input_size hidden_size num_layers bias batch_first dropout bidirectional"
_WORDS = "num_embeddings embedding_dim padding_idx max_norm norm_type scale_grad_by_freq sparse"
_LAYER = (
    "d_model nhead dim_feedforward dropout activation layer_norm_eps batch_first norm_first bias"
)
_ATTENTION = "embed_dim num_heads dropout bias add_bias_kv add_zero_attn kdim vdim batch_first"

CONSTRUCTORS: dict[Class, Arguments] = {
    **_each("Linear", "in_features out_features bias"),
    **_each("Bilinear", "in1_features in2_features out_features bias"),
    **_dims("Conv", _CONV),
    **_dims("ConvTranspose", f"{_CONV} output_padding"),
    **_dims("BatchNorm", _RUNNING),
    **_dims("InstanceNorm", _RUNNING),
    **_each("SyncBatchNorm", f"{_RUNNING} process_group"),
    **_each("LayerNorm", "normalized_shape eps elementwise_affine bias"),
    **_each("RMSNorm", "normalized_shape eps elementwise_affine"),
    **_each("GroupNorm", "num_groups num_channels eps affine bias"),
    **_each("LocalResponseNorm CrossMapLRN2d", "size alpha beta k"),
    **_each("Embedding", _WORDS),
    **_each("EmbeddingBag", f"{_WORDS} mode include_last_offset"),
    **_each("RNN", f"{_RECURRENT} nonlinearity"),
    **_each("LSTM", f"{_RECURRENT} proj_size"),
    **_each("GRU", _RECURRENT),
    **_each("RNNCell", "input_size hidden_size bias nonlinearity"),
    **_each("LSTMCell GRUCell", "input_size hidden_size bias"),
    **_each("MultiheadAttention", _ATTENTION),
    **_each("TransformerEncoderLayer TransformerDecoderLayer", _LAYER),
    **_each("TransformerEncoder", "encoder_layer num_layers norm enable_nested_tensor mask_check"),
    **_each("TransformerDecoder", "decoder_layer num_layers norm"),
    **_each(
        "Transformer",
        f"{_LAYER} num_encoder_layers num_decoder_layers custom_encoder custom_decoder",
    ),
    **_dims("MaxPool", "kernel_size stride padding dilation return_indices ceil_mode"),
    **_dims("AvgPool", _POOL, "1"),
    **_dims("AvgPool", f"{_POOL} divisor_override", "23"),
    **_dims("LPPool", "norm_type kernel_size stride ceil_mode"),
    **_dims("FractionalMaxPool", "kernel_size output_size output_ratio return_indices", "23"),
    **_dims("MaxUnpool", "kernel_size stride padding"),
    **_dims("AdaptiveAvgPool", "output_size"),
    **_dims("AdaptiveMaxPool", "output_size return_indices"),
    **_dims("ConstantPad", "padding value"),
    **_dims("ZeroPad", "padding"),
    **_dims("ReflectionPad", "padding"),
    **_dims("ReplicationPad", "padding"),
    **_dims("CircularPad", "padding"),
    **_dims("Dropout", "p inplace"),
    **_each("Dropout AlphaDropout FeatureAlphaDropout", "p inplace"),
    **_each("Flatten", "start_dim end_dim"),
    **_each("Unflatten", "dim unflattened_size"),
    **_each("Upsample", "size scale_factor mode align_corners recompute_scale_factor"),
    **_each("UpsamplingNearest2d UpsamplingBilinear2d", "size scale_factor"),
    **_each("PixelShuffle", "upscale_factor"),
    **_each("PixelUnshuffle", "downscale_factor"),
    **_each("ChannelShuffle", "groups"),
    **_each("Fold", "output_size kernel_size dilation padding stride"),
    **_each("Unfold", "kernel_size dilation padding stride"),
    **_each("CosineSimilarity", "dim eps"),
    **_each("PairwiseDistance", "p eps keepdim"),
    **_each("AdaptiveLogSoftmaxWithLoss", "in_features n_classes cutoffs div_value head_bias"),
    **_each("PReLU", "num_parameters"),
    Rational: ("num_parameters",),
    **_each("ELU CELU", "alpha inplace"),
    **_each("LeakyReLU", "negative_slope inplace"),
    **_each("RReLU", "lower upper inplace"),
    **_each("Softplus", "beta threshold"),
    **_each("Threshold", "threshold value inplace"),
    **_each("Hardtanh", "min_val max_val inplace"),
    **_each("Hardshrink Softshrink", "lambd"),
    **_each("GELU", "approximate"),
    **_each("GLU Softmax LogSoftmax Softmin", "dim"),
    **_each("ReLU ReLU6 SELU SiLU Mish Hardswish Hardsigmoid", "inplace"),
    **_each("Identity Tanh Tanhshrink Sigmoid LogSigmoid Softsign Softmax2d", ""),
}
"""Class -> arguments of its constructor that decide what the layer is (not its device, dtype or first numbers).

They are read from attributes of the same names, or by `_READERS`."""

_Reader = Callable[[Any], Any]
_FUNCTION_NAMES = {F.relu: "relu", F.gelu: "gelu"}


def _linear1(layer: Any) -> nn.Linear:
    """Find the feed-forward map itself, which stands last when layers were inserted before it."""
    return [part for part in layer.linear1.modules() if isinstance(part, nn.Linear)][-1]


# These layers keep hardly any of their arguments; their parts show the rest.
_IN_LAYER: dict[str, _Reader] = {
    "d_model": lambda layer: layer.self_attn.embed_dim,
    "nhead": lambda layer: layer.self_attn.num_heads,
    "dim_feedforward": lambda layer: _linear1(layer).out_features,
    "dropout": lambda layer: layer.dropout.p,
    "activation": lambda layer: _FUNCTION_NAMES.get(layer.activation, layer.activation),
    "layer_norm_eps": lambda layer: layer.norm1.eps,
    "batch_first": lambda layer: layer.self_attn.batch_first,
    "norm_first": lambda layer: layer.norm_first,
    "bias": lambda layer: layer.self_attn.in_proj_bias is not None,
}


def _first_layer(transformer: Any) -> Any:
    """Return the first layer of a Transformer, whose constructor makes them all alike."""
    standard = nn.TransformerEncoderLayer | nn.TransformerDecoderLayer
    layers = [layer for layer in transformer.modules() if isinstance(layer, standard)]
    return layers[0]


def _in_first_layer(read: _Reader) -> _Reader:
    return lambda transformer: read(_first_layer(transformer))


_READERS: dict[Class, dict[str, _Reader]] = {
    nn.MultiheadAttention: {
        "bias": lambda layer: layer.in_proj_bias is not None,
        "add_bias_kv": lambda layer: layer.bias_k is not None,
        # Nothing reads these where all three widths are one, and growth leaves alone what nothing reads.
        "kdim": lambda layer: None if layer._qkv_same_embed_dim else layer.kdim,
        "vdim": lambda layer: None if layer._qkv_same_embed_dim else layer.vdim,
    },
    # Arguments of newer versions of PyTorch: None, and so not written, unless they were used.
    **{
        cls: {"bias": lambda layer: False if layer.affine and layer.bias is None else None}
        for cls in CONSTRUCTORS
        if issubclass(cls, nn.modules.batchnorm._NormBase | nn.GroupNorm)
    },
    nn.TransformerEncoderLayer: _IN_LAYER,
    nn.TransformerDecoderLayer: _IN_LAYER,
    # Growth in depth lengthens the list and needn't know of `num_layers`, so the list is what counts.
    nn.TransformerEncoder: {
        "encoder_layer": lambda stack: stack.layers[0],
        "num_layers": lambda stack: len(stack.layers),
    },
    nn.TransformerDecoder: {
        "decoder_layer": lambda stack: stack.layers[0],
        "num_layers": lambda stack: len(stack.layers),
    },
    nn.Transformer: {
        **{name: _in_first_layer(read) for name, read in _IN_LAYER.items()},
        "num_encoder_layers": lambda transformer: len(transformer.encoder.layers),
        "num_decoder_layers": lambda transformer: len(transformer.decoder.layers),
        "custom_encoder": lambda t: None if type(t.encoder) is nn.TransformerEncoder else t.encoder,
        "custom_decoder": lambda t: None if type(t.decoder) is nn.TransformerDecoder else t.decoder,
    },
    # It keeps `p` under another name.
    nn.PairwiseDistance: {"p": lambda layer: layer.norm},
    nn.AdaptiveLogSoftmaxWithLoss: {
        "cutoffs": lambda layer: layer.cutoffs[:-1]
    },  # it appends the number of classes
}

Shapes = Mapping[str, tuple[int, ...]]
_Maker = Callable[[Collection[str], Shapes], nn.Module]
CONTAINERS: dict[Class, _Maker] = {
    nn.Sequential: lambda parts, shapes: nn.Sequential(),
    nn.ModuleList: lambda parts, shapes: nn.ModuleList(),
    nn.ModuleDict: lambda parts, shapes: nn.ModuleDict(),
    nn.ParameterList: lambda parts, shapes: nn.ParameterList(
        torch.empty(shape) for shape in shapes.values()
    ),
    nn.ParameterDict: lambda parts, shapes: nn.ParameterDict(
        [(key, torch.empty(shape)) for key, shape in shapes.items()]
    ),
    # Networks of one unit: what they hold is replaced by what is described.
    MLP: lambda parts, shapes: MLP(1, (1,), 1, shortcut="shortcut" in parts),
    ConvNet: lambda parts, shapes: ConvNet(1, ((1,),), 1),
    DenseConvNet: lambda parts, shapes: DenseConvNet(1, ((1,),), 1),
    Residual: lambda parts, shapes: Residual(nn.Identity()),
    Ensemble: lambda parts, shapes: Ensemble(()),
    SinhOutput: lambda parts, shapes: SinhOutput(
        nn.Identity(), **{name: torch.empty(shape) for name, shape in shapes.items()}
    ),
}
"""Classes that are made from what they hold: names of their children, shapes of their own tensors."""

HOLDERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
"""Containers of any children under any names."""

# Without the modules that define them: `torch.nn.modules.linear` and `senn.nn.rational` may move, these names don't.
_NAMES: dict[Class, str] = {}
for _cls in (*CONSTRUCTORS, *CONTAINERS):
    _home = "senn" if _cls.__module__.startswith("senn.") else "torch"
    _NAMES[_cls] = f"{_home}.nn.{_cls.__name__}"
KNOWN = {name: cls for cls, name in _NAMES.items()}

_UNNAMED_BEFORE = {
    *_dims("MaxUnpool", ""), *_dims("FractionalMaxPool", "", "23"),
    *_each("TransformerEncoder TransformerDecoder Transformer SyncBatchNorm CrossMapLRN2d UpsamplingNearest2d "
           "UpsamplingBilinear2d CosineSimilarity PairwiseDistance AdaptiveLogSoftmaxWithLoss ParameterList "
           "ParameterDict", ""),
}  # fmt: skip
"""Classes that joined the table when format version 2 was in use: its older files give their bare names."""


def class_name(module: nn.Module) -> str:
    """Return the name of a module's class in a description.

    Returns:
        "torch.nn.Linear", "senn.nn.Rational", ... for a class of the table; the bare name of any other.
    """
    return _NAMES.get(type(module), type(module).__qualname__)


def is_named(module: nn.Module, name: str, *, bare: bool) -> bool:
    """Return True if a description may call the module's class by this name.

    Args:
        module: the module.
        name: as a description has it.
        bare: True for descriptions of format version 1, which gave bare names to many classes.
    """
    cls = type(module)
    return name == class_name(module) or (
        (bare or cls in _UNNAMED_BEFORE) and name == cls.__qualname__
    )


def constructor_arguments(module: nn.Module) -> dict[str, Any]:
    """Read back the arguments that make a layer like this one: plain values, functions, layers.

    Args:
        module: a layer whose class is in `CONSTRUCTORS`.

    Returns:
        Values by the constructor's names. A `bias` that only newer versions of PyTorch know is left out unless used.

    Raises:
        UnsupportedError: its class isn't in the table, or its owner altered it so that an argument can't be read back.
    """
    cls, found = type(module), {}
    if cls not in CONSTRUCTORS:
        raise UnsupportedError(f"the constructor of a {cls.__name__} isn't known")
    for name in CONSTRUCTORS[cls]:
        try:
            found[name] = _argument(module, name)
        except (AttributeError, KeyError, TypeError, IndexError) as error:
            raise UnsupportedError(
                f"a {cls.__name__} that doesn't keep its {name!r} can't be constructed"
            ) from error
    return {name: value for name, value in found.items() if name != "bias" or value is not None}


def _argument(module: nn.Module, name: str) -> Any:
    reader = _READERS.get(type(module), {}).get(name)
    if reader is not None:
        return reader(module)
    value = getattr(module, name)
    # The attribute `bias` is a tensor or None where the argument is a switch; without any affine map it says nothing.
    if name == "bias" and not isinstance(value, bool):
        could_have = getattr(module, "affine", True) and getattr(module, "elementwise_affine", True)
        return value is not None or not could_have
    return value
