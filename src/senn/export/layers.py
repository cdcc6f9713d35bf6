"""What a layer of torch.nn would be constructed with: its constructor's signature, read back from its attributes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from senn.errors import UnsupportedError

_Reader = Callable[[Any], Any]

# Decide on what a fresh layer holds, not on what it is; the last two are old names of others.
_IRRELEVANT = {"self", "device", "dtype", "init", "args", "kwargs", "min_value", "max_value"}
# Plain numbers that say what they are.
_POSITIONAL = {"p", "num_parameters", "negative_slope"}
# A single number stands for all of a tuple's.
_SIZES = {"kernel_size", "stride", "padding", "dilation", "output_padding", "output_size", "normalized_shape", "size"}


def _last(module: nn.Module) -> nn.Linear:
    """The linear map itself, whatever has been inserted before it."""
    return [part for part in module.modules() if isinstance(part, nn.Linear)][-1]


_IN_LAYER: dict[str, _Reader] = {
    "d_model": lambda layer: layer.self_attn.embed_dim,
    "nhead": lambda layer: layer.self_attn.num_heads,
    "dim_feedforward": lambda layer: _last(layer.linear1).out_features,
    "dropout": lambda layer: layer.dropout.p,
    "layer_norm_eps": lambda layer: layer.norm1.eps,
    "batch_first": lambda layer: layer.self_attn.batch_first,
    "bias": lambda layer: layer.self_attn.in_proj_bias is not None,
}
_READERS: dict[type[nn.Module], dict[str, _Reader]] = {
    nn.MultiheadAttention: {
        "bias": lambda layer: layer.in_proj_bias is not None,
        "add_bias_kv": lambda layer: layer.bias_k is not None,
        "kdim": lambda layer: None if layer._qkv_same_embed_dim else layer.kdim,
        "vdim": lambda layer: None if layer._qkv_same_embed_dim else layer.vdim,
    },
    nn.TransformerEncoderLayer: _IN_LAYER,
    nn.TransformerDecoderLayer: _IN_LAYER,
    nn.TransformerEncoder: {"encoder_layer": lambda stack: stack.layers[0]},
    nn.TransformerDecoder: {"decoder_layer": lambda stack: stack.layers[0]},
}


def is_layer(module: nn.Module) -> bool:
    """Whether a module is exactly of a class that `torch.nn` offers."""
    return getattr(nn, type(module).__name__, None) is type(module)


def arguments(module: nn.Module) -> dict[str, Any]:
    """All arguments of the constructor of a layer of torch.nn, by name, in order; sizes as single numbers if they can.

    Raises:
        UnsupportedError: the layer doesn't keep one of them.
    """
    return {name: _argument(module, name, parameter) for name, parameter in _signature(module).items()}


def told(module: nn.Module) -> tuple[list[Any], dict[str, Any]]:
    """What has to be said of these: positional ones, and those by keyword that aren't the default."""
    found, signature = arguments(module), _signature(module)
    positional: list[Any] = []
    keywords: dict[str, Any] = {}
    for name, value in found.items():
        default = signature[name].default
        if default is inspect.Parameter.empty:
            positional.append(value)
        elif isinstance(value, nn.Module) or _differs(value, default):
            if name == "stride" and default is None and value == found.get("kernel_size"):
                continue  # as pooling has it
            if name in _POSITIONAL and not keywords:
                positional.append(value)
            else:
                keywords[name] = value
    return positional, keywords


def _differs(value: Any, default: Any) -> bool:
    default = {F.relu: "relu", F.gelu: "gelu"}.get(default, default) if callable(default) else default
    return bool(value != default) or type(value) is bool is not type(default)


def _signature(module: nn.Module) -> Mapping[str, inspect.Parameter]:
    """The parameters of the constructor that decide on what the layer is."""
    known: dict[str, inspect.Parameter] = {}
    if isinstance(module, nn.RNNBase):  # whose subclasses take anything
        known |= inspect.signature(nn.RNNBase.__init__).parameters
        del known["mode"]
        if isinstance(module, nn.RNN):
            known["nonlinearity"] = inspect.Parameter("nonlinearity", inspect.Parameter.KEYWORD_ONLY, default="tanh")
    else:
        known |= inspect.signature(type(module).__init__).parameters
    return {name: one for name, one in known.items() if name not in _IRRELEVANT and not name.startswith("_")}


def _argument(module: nn.Module, name: str, parameter: inspect.Parameter) -> Any:
    reader = _READERS.get(type(module), {}).get(name)
    try:
        value = getattr(module, name) if reader is None else reader(module)
    except (AttributeError, IndexError) as error:
        kind = type(module).__name__
        raise UnsupportedError(f"a {kind} can't be written as source: it doesn't keep its {name!r}") from error
    if name == "bias" and not isinstance(value, bool):
        has_none = getattr(module, "affine", True) and getattr(module, "elementwise_affine", True)
        return value is not None or not has_none
    if name == "activation" and not isinstance(value, nn.Module):
        return _function(module, value)
    if isinstance(value, tuple | list):
        value = tuple(value)
        if name in _SIZES and value and len(set(value)) == 1 and type(value[0]) is int:
            return value[0]
    return value


class Name(str):
    """Source of its own, no text."""


def _function(module: nn.Module, function: Any) -> str:
    """How a function is called in source: by the name that the layer knows, or where torch has it."""
    known = {F.relu: "relu", F.gelu: "gelu"}
    if function in known:
        return known[function]
    name = getattr(function, "__name__", "")
    for place, holder in (("torch", torch), ("F", F)):
        if name and getattr(holder, name, None) is function:
            return Name(f"{place}.{name}")
    kind = type(module).__name__
    raise UnsupportedError(f"a {kind} can't be written as source: its activation {name or function!r} isn't torch's")
