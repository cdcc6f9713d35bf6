"""Layers that are rebuilt from a description alone: this table, and nothing else, says what a file may have built."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from math import isfinite
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from senn.errors import SennError, UnsupportedError
from senn.nn import MLP, ConvNet, DenseConvNet, Rational, Residual

Arguments = tuple[str, ...]
Class = type[nn.Module]


def _each(names: str, arguments: str) -> dict[Class, Arguments]:
    """Classes of torch.nn that take the same arguments."""
    return dict.fromkeys((getattr(nn, name) for name in names.split()), tuple(arguments.split()))


def _dims(name: str, arguments: str, dims: str = "123") -> dict[Class, Arguments]:
    return _each(" ".join(f"{name}{dim}d" for dim in dims), arguments)


_CONV = "in_channels out_channels kernel_size stride padding dilation groups bias padding_mode"
_POOL = "kernel_size stride padding ceil_mode count_include_pad"
_RUNNING = "num_features eps momentum affine track_running_stats bias"
_RECURRENT = "input_size hidden_size num_layers bias batch_first dropout bidirectional"
_WORDS = "num_embeddings embedding_dim padding_idx max_norm norm_type scale_grad_by_freq sparse"
_LAYER = "d_model nhead dim_feedforward dropout activation layer_norm_eps batch_first norm_first bias"
_ATTENTION = "embed_dim num_heads dropout bias add_bias_kv add_zero_attn kdim vdim batch_first"

CONSTRUCTORS: dict[Class, Arguments] = {
    **_each("Linear", "in_features out_features bias"),
    **_each("Bilinear", "in1_features in2_features out_features bias"),
    **_dims("Conv", _CONV),
    **_dims("ConvTranspose", f"{_CONV} output_padding"),
    **_dims("BatchNorm", _RUNNING),
    **_dims("InstanceNorm", _RUNNING),
    **_each("LayerNorm", "normalized_shape eps elementwise_affine bias"),
    **_each("RMSNorm", "normalized_shape eps elementwise_affine"),
    **_each("GroupNorm", "num_groups num_channels eps affine bias"),
    **_each("LocalResponseNorm", "size alpha beta k"),
    **_each("Embedding", _WORDS),
    **_each("EmbeddingBag", f"{_WORDS} mode include_last_offset"),
    **_each("RNN", f"{_RECURRENT} nonlinearity"),
    **_each("LSTM", f"{_RECURRENT} proj_size"),
    **_each("GRU", _RECURRENT),
    **_each("RNNCell", "input_size hidden_size bias nonlinearity"),
    **_each("LSTMCell GRUCell", "input_size hidden_size bias"),
    **_each("MultiheadAttention", _ATTENTION),
    **_each("TransformerEncoderLayer TransformerDecoderLayer", _LAYER),
    **_dims("MaxPool", "kernel_size stride padding dilation return_indices ceil_mode"),
    **_dims("AvgPool", _POOL, "1"),
    **_dims("AvgPool", f"{_POOL} divisor_override", "23"),
    **_dims("LPPool", "norm_type kernel_size stride ceil_mode"),
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
    **_each("PixelShuffle", "upscale_factor"),
    **_each("PixelUnshuffle", "downscale_factor"),
    **_each("ChannelShuffle", "groups"),
    **_each("Fold", "output_size kernel_size dilation padding stride"),
    **_each("Unfold", "kernel_size dilation padding stride"),
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
"""The classes, with those arguments of their constructors that say what they are: attributes of the same name, unless
`_READERS` knows better."""

_Reader = Callable[[Any], Any]
_IN_LAYER: dict[str, _Reader] = {
    "d_model": lambda layer: layer.self_attn.embed_dim,
    "nhead": lambda layer: layer.self_attn.num_heads,
    "dim_feedforward": lambda layer: layer.linear1.out_features,
    "dropout": lambda layer: layer.dropout.p,
    "activation": lambda layer: {F.relu: "relu", F.gelu: "gelu"}[layer.activation],
    "layer_norm_eps": lambda layer: layer.norm1.eps,
    "batch_first": lambda layer: layer.self_attn.batch_first,
    "bias": lambda layer: layer.self_attn.in_proj_bias is not None,
}
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
}

CONTAINERS: dict[Class, Callable[[Collection[str]], nn.Module]] = {
    nn.Sequential: lambda parts: nn.Sequential(),
    nn.ModuleList: lambda parts: nn.ModuleList(),
    nn.ModuleDict: lambda parts: nn.ModuleDict(),
    MLP: lambda parts: MLP(1, (1,), 1, shortcut="shortcut" in parts),
    ConvNet: lambda parts: ConvNet(1, ((1,),), 1),
    DenseConvNet: lambda parts: DenseConvNet(1, ((1,),), 1),
    Residual: lambda parts: Residual(nn.Identity()),
}
"""Classes of which all that matters is their children, made from those's names."""

HOLDERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
"""Containers that hold any children under any names."""

_NAMES = {cls: f"{'senn' if cls.__module__.startswith('senn') else 'torch'}.nn.{cls.__name__}"
          for cls in (*CONSTRUCTORS, *CONTAINERS)}  # fmt: skip
KNOWN = {name: cls for cls, name in _NAMES.items()}

_INFINITE = {"inf": float("inf"), "-inf": float("-inf")}


def class_name(module: nn.Module) -> str:
    """What a description calls a module's class; one that isn't in the table by its own name, without a home."""
    return _NAMES.get(type(module), type(module).__qualname__)


def arguments_of(module: nn.Module) -> dict[str, Any] | None:
    """What the constructor of a layer in the table would be called with; None if something there isn't plain."""
    cls = type(module)
    if cls not in CONSTRUCTORS:
        return None
    try:
        found = {name: _plain(_argument(module, name)) for name in CONSTRUCTORS[cls]}
    except (AttributeError, KeyError, TypeError):  # altered by its owner: then it takes the owner to build another
        return None
    return {name: value for name, value in found.items() if name != "bias" or value is not None}


def _argument(module: nn.Module, name: str) -> Any:
    reader = _READERS.get(type(module), {}).get(name)
    if reader is not None:
        return reader(module)
    value = getattr(module, name)
    return value is not None if name == "bias" and not isinstance(value, bool) else value


def _plain(value: Any) -> Any:
    """As JSON has it; infinities by name."""
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not isfinite(value):
        return {number: name for name, number in _INFINITE.items()}[value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{value!r} is not plain")


def _back(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_back(item) for item in value)
    return _INFINITE.get(value, value) if isinstance(value, str) else value


def construct(name: str, arguments: Mapping[str, Any] | None, parts: Collection[str], tensors: int) -> nn.Module:
    """A layer of the table, without memory for its tensors.

    Args:
        name: as `class_name` gives it.
        arguments: of its constructor, from a file.
        parts: names of the children it is to have.
        tensors: how many tensors of its own it is to have.

    Raises:
        UnsupportedError: the class isn't in the table.
        SennError: its constructor doesn't take these arguments.
    """
    cls = KNOWN.get(name)
    if cls is None or (cls in CONSTRUCTORS and arguments is None):
        raise UnsupportedError(f"a {name} can't be built from its description")
    with torch.device("meta"):
        if cls in CONTAINERS:
            return CONTAINERS[cls](parts)
        given = {key: _back(value) for key, value in (arguments or {}).items()}
        layers = given.get("num_layers", 1)
        if set(given) - set(CONSTRUCTORS[cls]) or not isinstance(layers, int) or layers > max(tensors, 1):
            raise SennError(f"these are no arguments of a {name} with {tensors} tensors")
        try:
            return cls(**given)
        except Exception as error:  # a constructor may fail in any way on arguments that nobody checked
            raise SennError(" ".join(str(error).split())) from error
