"""Floating-point operations of a forward pass, by the shapes of its operations.

Matrix products, convolutions and attention are counted, as PyTorch's own counter does; elementwise operations aren't.
Kernels that hide products from whoever counts (the fast path of transformer layers, fused recurrent layers) are left
out of the pass, so that a model has the same number on every device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import flop_registry, sdpa_flop_count, shape_wrapper

from senn import pytree
from senn.compilation import WatchMode
from senn.errors import UnsupportedError
from senn.preserve import preserve_model_state
from senn.pytree import Inputs

__all__ = ["ForwardCount", "count_forward", "forward_flops", "known_flops"]

_aten = torch.ops.aten


def _attention(query: Any, key: Any, value: Any, *rest: Any, **others: Any) -> int:
    return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]


FORMULAS: dict[Any, Any] = {
    **flop_registry,
    _aten._scaled_dot_product_flash_attention_for_cpu: shape_wrapper(_attention),  # type: ignore[no-untyped-call]
}
"""Operations by their arguments' sizes, with attention on a CPU, for which PyTorch has no formula."""

# Products that PyTorch has no formula for, and that can't be taken apart.
_UNKNOWN = {
    _aten._trilinear,
    _aten._cudnn_rnn,
    _aten.miopen_rnn,
    _aten.mkldnn_rnn_layer,
    _aten._native_multi_head_attention,
    _aten._transformer_encoder_layer_fwd,
}

_KNOWN_NAMESPACES = ("aten", "prim", "prims")


@dataclass(frozen=True, kw_only=True)
class ForwardCount:
    """Operations of one forward pass.

    Attributes:
        flops: floating-point operations, of all samples together; a product and a sum count as two.
        unknown: names of operations whose work isn't known and isn't in `flops`.
    """

    flops: int
    unknown: tuple[str, ...] = ()


class _Counter(WatchMode):  # type: ignore[no-untyped-call]
    """Counts operations, and notes those that have no formula though they do an unknown amount of work.

    PyTorch's `FlopCounterMode` counts the same, in three times the time and after importing Dynamo: it also says which
    module they belong to.
    """

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = 0
        self.unknown: dict[str, None] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        packet = getattr(func, "_overloadpacket", func)
        formula = FORMULAS.get(packet)
        if formula is not None:
            self.flops += int(formula(*args, **kwargs, out_val=out))
        elif packet in _UNKNOWN or getattr(func, "namespace", "") not in _KNOWN_NAMESPACES:
            # What a library of its own computes (a compiled kernel, a quantized layer) may be any amount of work.
            self.unknown[str(packet)] = None
        return out


# outside of inference mode, where products would arrive as `linear` or `matmul`
@torch.inference_mode(False)
@torch.no_grad()
def count_forward(model: nn.Module, inputs: Inputs) -> ForwardCount:
    """Count the floating-point operations of a forward pass in evaluation mode.

    Args:
        model: any module; it is left as it was.
        inputs: what it takes: a tensor, (samples, ...), or any nesting of tensors.

    Returns:
        Operations of all samples together.
    """
    with preserve_model_state(model, fused=False), _Counter() as counter:
        # a copy, since a forward pass may write to its inputs
        pytree.call(model, pytree.clone(inputs))
    return ForwardCount(flops=counter.flops, unknown=tuple(counter.unknown))


def forward_flops(model: nn.Module, inputs: Inputs) -> int:
    """Count the floating-point operations of a forward pass, per sample.

    Args:
        model: any module; it is left as it was.
        inputs: as of `count_forward`.

    Example:
        >>> import torch
        >>> from senn.flops import forward_flops
        >>> forward_flops(torch.nn.Linear(3, 4), torch.zeros(5, 3))
        24
    """
    return count_forward(model, inputs).flops // max(pytree.count(inputs), 1)


def known_flops(model: nn.Module, inputs: Inputs) -> int:
    """Count as `forward_flops` does, and refuse a model of which that would leave some out.

    Args:
        model: any module; it is left as it was.
        inputs: as of `count_forward`.

    Raises:
        UnsupportedError: the work of some of its operations isn't known.
    """
    count = count_forward(model, inputs)
    if count.unknown:
        names = ", ".join(count.unknown)
        raise UnsupportedError(
            f"the model's operations can't be limited or priced: how much {names} computes isn't known"
        )
    return count.flops // max(pytree.count(inputs), 1)
