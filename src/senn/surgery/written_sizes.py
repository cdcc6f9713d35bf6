"""Sizes that are written elsewhere: numbers that nothing computes with, but that say how large a model is.

A LoRA layer keeps its rank as `r`, and so does the configuration from which its library builds it anew. Growth finds
the numbers that a forward pass computes with by following it; those here only tell whoever saves and loads.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from senn.errors import warn
from senn.graph.types import ChannelGroup, DependencyGraph
from senn.surgery.moves import Prune, Widen
from senn.surgery.plan_types import SurgeryPlan
from senn.surgery.undo import Swap, UndoLog

RANKS = frozenset(
    (
        *("r", "rank", "lora_r", "lora_rank", "lora_dim", "adapter_dim", "adapter_size"),
        *("bottleneck", "bottleneck_dim", "bottleneck_size"),
    )
)
"""Attributes that say how many units are between the two maps of an adapter."""

_WIDTHS = frozenset(
    (
        *("hidden_dim", "hidden_size", "hidden_features", "hidden_channels", "inner_dim"),
        *("d_ff", "ffn_dim", "dim_feedforward", "mlp_dim", "intermediate_size"),
    )
)


@dataclass(frozen=True, eq=False, kw_only=True)
class WrittenSize:
    """A number in a module that says the width of a group.

    Attributes:
        module: the module that holds the group's tensors.
        name: full name of the module.
        attribute: where the number is.
        item: its key, where the attribute is a dictionary (by adapter); None for a plain number.
        now: the width after the change; None where several groups say different things.
    """

    module: nn.Module
    name: str
    attribute: str
    item: str | None
    now: int | None

    def swap(self) -> Swap:
        """Exchange of the attribute."""
        held = vars(self.module)
        old = held[self.attribute]
        return (
            held,
            self.attribute,
            old,
            self.now if self.item is None else {**old, self.item: self.now},
        )


def written_sizes(model: nn.Module, graph: DependencyGraph, todo: SurgeryPlan) -> list[WrittenSize]:
    """Find the numbers that say a width that a plan changes.

    Args:
        model: before the change.
        graph: of the model.
        todo: the plan.
    """
    says: dict[tuple[str, str, str | None], set[tuple[int, int]]] = defaultdict(set)
    for group in graph.groups:
        for path, attribute, item in _numbers(model, group):
            if (path, attribute, None) not in todo.attributes:
                says[path, attribute, item].add((group.width, group.width + _added(group, todo)))
    return [
        WrittenSize(
            module=model.get_submodule(path),
            name=path,
            attribute=attribute,
            item=item,
            now=next(iter(widths))[1] if len(widths) == 1 else None,
        )
        for (path, attribute, item), widths in says.items()
        if any(before != after for before, after in widths)
    ]


def _home(group: ChannelGroup) -> str:
    """Return the name of the innermost module that holds all tensors of a group."""
    paths = [coupled.name.split(".")[:-1] for coupled in group.dims]
    common: list[str] = []
    for parts in zip(*paths, strict=False):
        if len({*parts}) > 1:
            break
        common.append(parts[0])
    return ".".join(common)


def _numbers(model: nn.Module, group: ChannelGroup) -> list[tuple[str, str, str | None]]:
    """Return (module, attribute, item) of the numbers that say a group's width: in its home, or a rank further up."""
    parts = {part for coupled in group.dims for part in coupled.name.split(".")}
    path, names = _home(group), RANKS | _WIDTHS
    while True:
        held = vars(model.get_submodule(path))
        found: list[tuple[str, str, str | None]] = []
        for key in sorted(names & held.keys()):
            value = held[key]
            # By adapter where it is a dictionary.
            items = value.items() if isinstance(value, dict) else [(None, value)]
            for item, number in items:
                is_own = item is None or item in parts
                if type(number) is int and number == group.width and is_own:
                    found.append((path, key, item))
        if found or not path:
            return found
        path, names = path.rpartition(".")[0], RANKS


def _added(group: ChannelGroup, todo: SurgeryPlan) -> int:
    added = 0
    for move in todo.moves:
        if isinstance(move, Widen) and move.group == group.name:
            added += move.units
        elif isinstance(move, Prune) and move.group == group.name:
            added -= len(move.units)
    return added


def follow_written_sizes(
    found: Sequence[Sequence[WrittenSize]],
    logs: Sequence[UndoLog],
    outputs: Callable[[], list[Tensor]] | None,
) -> None:
    """Rewrite numbers that say a width, where nothing computes with them; warn where one can't follow.

    Args:
        found: the numbers of the model, and of each of its copies.
        logs: of the changed model and its copies, in the same order.
        outputs: gives the changed model's outputs; None where there is nothing to run it on.
    """
    if not found[0]:
        return
    for number, (size, follows) in enumerate(_tried(found[0], logs[0], outputs)):
        if follows:
            for several, log in zip(found[1:], logs[1:], strict=True):
                log.exchange([several[number].swap()])
        elif size.attribute in RANKS:
            warn(
                f"{size.attribute!r} of '{size.name}' says a rank that has changed, and can't follow: its forward pass "
                "computes with it, or several maps share it, or no batch shows that nothing does",
            )
    for several, log in zip(found, logs, strict=True):
        log.exchange(_adapter_patterns(log.model, {size.module for size in several}))


def _tried(
    sizes: Sequence[WrittenSize], log: UndoLog, outputs: Callable[[], list[Tensor]] | None
) -> list[tuple[WrittenSize, bool]]:
    """Rewrite the numbers that nothing computes with: all at once, and one by one if that changes the outputs."""
    if outputs is None:
        return [(size, False) for size in sizes]
    before = outputs()
    several = [size for size in sizes if size.now is not None]
    if len(several) > 1 and _is_rewritten(several, log, before, outputs):
        return [(size, size.now is not None) for size in sizes]
    return [
        (size, size.now is not None and _is_rewritten([size], log, before, outputs))
        for size in sizes
    ]


def _is_rewritten(
    sizes: Sequence[WrittenSize],
    log: UndoLog,
    before: Sequence[Tensor],
    outputs: Callable[[], list[Tensor]],
) -> bool:
    """Rewrite numbers; take that back if the outputs change."""
    for size in sizes:
        # In the log before it is tried, so that an interrupt finds the way back.
        log.exchange([size.swap()])
    if _are_equal(before, outputs):
        return True
    for _ in sizes:
        held, attribute, old, _ = log.swaps.pop()
        held[attribute] = old
    return False


def _are_equal(before: Sequence[Tensor], outputs: Callable[[], list[Tensor]]) -> bool:
    try:
        after = outputs()
    except Exception:  # a forward that can't run with another number computes with it
        return False
    return len(after) == len(before) and all(map(torch.equal, before, after))


def _adapter_patterns(model: nn.Module, grown: set[nn.Module]) -> list[Swap]:
    """Return changes of PEFT's configurations: rank and alpha of each layer whose rank has changed.

    A layer is scaled by alpha / r, which stays as it is; so where it is built anew, alpha has to follow r.
    """
    swaps: list[Swap] = []
    for inner, adapter, config in _adapter_configs(model):
        ranks: dict[str, float] = {}
        alphas: dict[str, float] = {}
        for name, layer in inner.named_modules():
            if layer not in grown or not _is_adapted(layer, adapter):
                continue
            rank, scaling = vars(layer)["r"][adapter], vars(layer)["scaling"][adapter]
            alpha = scaling * (rank**0.5 if getattr(config, "use_rslora", False) else rank)
            # Anchored: a name is searched as an ending otherwise.
            ranks[f"^{name}"], alphas[f"^{name}"] = rank, alpha
            former = vars(layer).get("lora_alpha")
            if isinstance(former, dict):
                swaps.append((vars(layer), "lora_alpha", former, {**former, adapter: alpha}))
        for key, new in (("rank_pattern", ranks), ("alpha_pattern", alphas)):
            old = vars(config).get(key)
            if new and isinstance(old, dict):
                # The first pattern that fits counts.
                rest = {name: value for name, value in old.items() if name not in new}
                swaps.append((vars(config), key, old, {**new, **rest}))
    return swaps


def _adapter_configs(model: nn.Module) -> Iterator[tuple[nn.Module, str, Any]]:
    """Yield each configuration once, with the adapter's name and the module in which its names are searched."""
    seen: list[Any] = []
    for base in model.modules():
        configs = vars(base).get("peft_config")
        # LoraModel wraps what it adapts; a model of transformers with adapters of its own has the configuration itself.
        inner = getattr(base, "model", base) if hasattr(type(base), "prefix") else base
        for adapter, config in (configs if isinstance(configs, dict) else {}).items():
            if hasattr(config, "__dict__") and not any(config is one for one in seen):
                seen.append(config)
                yield inner, adapter, config


def _is_adapted(layer: nn.Module, adapter: str) -> bool:
    tables: Sequence[Any] = [vars(layer).get(key) for key in ("r", "scaling")]
    return all(isinstance(table, Mapping) and adapter in table for table in tables)
