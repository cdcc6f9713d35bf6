"""Low-rank pairs: the layers of PEFT whose rank can change, and the dependency graph that they make."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from senn._extras import importing
from senn._validate import check, whole
from senn.errors import SennError, UnsupportedError
from senn.graph import ChannelGroup, CoupledDim, DependencyGraph, LinearMap, SizeAttribute

with importing("senn.peft", "peft"):
    from peft.tuners.adalora import AdaLoraLayer
    from peft.tuners.lora import LoraLayer


@dataclass(frozen=True, kw_only=True)
class LowRankPair:
    """Two linear layers that follow each other, x -> B A x, beside a frozen layer.

    Attributes:
        name: full name of the adapted layer.
        down: full name of the first factor's module, A (rank, inputs); the name of the group of its units.
        up: full name of the second one's, B (outputs, rank).
        inputs: size of x.
        outputs: size of B A x.
        rank: number of units between them.
        has_bias: True if the second layer has a bias.
    """

    name: str
    down: str
    up: str
    inputs: int
    outputs: int
    rank: int
    has_bias: bool

    @property
    def per_rank(self) -> int:
        """Parameters of one unit: a row of A and a column of B."""
        return self.inputs + self.outputs


def find_pairs(
    model: nn.Module, adapter: str | None = None, ignore: Collection[str] = ()
) -> list[LowRankPair]:
    """Find the low-rank pairs of a model of PEFT, in the order of its modules.

    Args:
        model: with LoRA layers.
        adapter: name of the adapter; None for the one that is active.
        ignore: full names of layers to leave out, or names of what contains them.

    Raises:
        SennError: there is no such adapter, or none at all, or not a single active one.
        UnsupportedError: the rank of a layer can't change; the sentence names it.
    """
    left_out = tuple(f"{name}." for name in ignore)
    found = [
        _pair(name, layer, _adapter_of(name, layer) if adapter is None else adapter)
        for name, layer in model.named_modules()
        if isinstance(layer, LoraLayer) and not f"{name}.".startswith(left_out)
        if adapter is None or adapter in {*layer.lora_A, *layer.lora_embedding_A}
    ]
    if not found:
        which = "" if adapter is None else f" of an adapter {adapter!r}"
        raise SennError(f"the model has no LoRA layers{which} whose ranks could change")
    return found


def uniform_params(model: nn.Module, rank: int, adapter: str | None = None) -> int:
    """Count the parameters that all adapters would have at one rank, which may serve as a budget.

    Args:
        model: with LoRA layers, of any ranks.
        rank: the rank.
        adapter: name of the adapter; None for the one that is active.

    Raises:
        SennError: as of `find_pairs`.
    """
    check("rank", rank, whole(low=1))
    return rank * sum(pair.per_rank for pair in find_pairs(model, adapter))


def pair_graph(pairs: Sequence[LowRankPair]) -> DependencyGraph:
    """Write down the dependency graph of low-rank pairs: a group of units for each, and nothing else.

    Args:
        pairs: of one model.
    """
    return DependencyGraph(
        linear_maps=tuple(one for pair in pairs for one in _maps(pair)),
        groups=tuple(_group(pair) for pair in pairs),
        insertion_points=(),
    )


def _adapter_of(name: str, layer: LoraLayer) -> str:
    active = [*layer.active_adapters]
    if len(active) != 1:
        said = " and ".join(map(repr, active)) or "none"
        raise SennError(f"'{name}' has {said} as active adapters: say by adapter=... whose ranks")
    return str(active[0])


def _pair(name: str, layer: LoraLayer, adapter: str) -> LowRankPair:
    reason = next(_objections(layer, adapter), None)
    if reason is not None:
        raise UnsupportedError(
            f"the rank of '{name}' can't change: {reason} (ignore=[{name!r}] leaves it as it is)"
        )
    down, up = (getattr(layer, one)[adapter] for one in ("lora_A", "lora_B"))
    rank, inputs = down.get_parameter("weight").shape
    return LowRankPair(
        name=name,
        down=f"{name}.lora_A.{adapter}",
        up=f"{name}.lora_B.{adapter}",
        inputs=inputs,
        outputs=len(up.get_parameter("weight")),
        rank=rank,
        has_bias=getattr(up, "bias", None) is not None,
    )


def _objections(layer: LoraLayer, adapter: str) -> Iterator[str]:
    """Yield reasons why the rank of a layer can't change."""
    if isinstance(layer, AdaLoraLayer):
        yield "AdaLoRA allocates its ranks itself"
    elif adapter in layer.lora_embedding_A:
        yield "it adapts an embedding, whose factors aren't linear layers"
    elif adapter in layer.lora_variant:
        kind = type(layer.lora_variant[adapter]).__name__
        yield f"its variant of LoRA ({kind}) computes more than B A x"
    elif layer.merged:
        yield "its adapter is merged into the weight, so unmerge it first"
    elif layer.disable_adapters:
        yield "its adapters are disabled"
    for factor in (layer.lora_A, layer.lora_B):
        if adapter in factor and type(factor[adapter]) is not nn.Linear:
            yield f"a factor of it is a {type(factor[adapter]).__name__} and no linear layer"


def _maps(pair: LowRankPair) -> tuple[LinearMap, LinearMap]:
    bias = f"{pair.up}.bias" if pair.has_bias else None
    return (
        LinearMap(name=pair.down, weight=f"{pair.down}.weight", bias=None),
        LinearMap(name=pair.up, weight=f"{pair.up}.weight", bias=bias),
    )


def _group(pair: LowRankPair) -> ChannelGroup:
    index = torch.arange(pair.rank)[:, None]
    return ChannelGroup(
        name=pair.down,
        width=pair.rank,
        dims=(
            CoupledDim(role="producer", module=pair.down, tensor="weight", dim=0, index=index),
            CoupledDim(role="consumer", module=pair.up, tensor="weight", dim=1, index=index),
        ),
        attributes=(
            SizeAttribute(module=pair.down, name="out_features", per_unit=1),
            SizeAttribute(module=pair.up, name="in_features", per_unit=1),
        ),
    )
