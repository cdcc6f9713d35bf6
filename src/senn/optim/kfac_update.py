"""K-FAC preconditioner of an optimizer: which parameters are in which block, and how a batch updates the blocks.

Blocks are kept by Parameter object. When a network grows, the blocks of the maps that change are dropped and estimated
anew (`NaturalGradient.state_made_anew`), while all others stay.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from senn.errors import SennError, UnsupportedError
from senn.kfac.layer_inputs import upcast
from senn.kfac.live_locations import live_gradients
from senn.optim.kfac_blocks import DiagonalBlock, KroneckerBlock


@dataclass(frozen=True, eq=False)
class Pass:
    """One forward pass: outputs with their graph, and (input, gradient edge of the output) for each linear map."""

    output: Tensor
    maps: dict[nn.Module, tuple[Tensor, GradientEdge]]


@dataclass(frozen=True, eq=False, kw_only=True)
class Batch:
    """What the loss says of a batch.

    Attributes:
        probes: draws output rows v (N, m) with E[v v^T] = H (`LossMetric.pseudo_grad`).
        live: finds the outputs that the loss depends on, (N, m) Boolean, or None for all.
        weight: sample weights (N,), or None.
    """

    probes: Callable[[], Tensor]
    live: Callable[[], Tensor | None]
    weight: Tensor | None


@contextmanager
def watching(
    modules: Sequence[nn.Module], names: Mapping[nn.Module, str]
) -> Iterator[dict[nn.Module, Any]]:
    """Collect inputs and output edges of linear maps while a forward pass runs inside.

    Args:
        modules: linear layers.
        names: of the layers, for messages.

    Yields:
        (input, gradient edge of the output) for each layer; filled while the pass runs.

    Raises:
        UnsupportedError: a layer is used twice in the pass.
    """
    # Edges and not outputs: an activation in place turns the output tensor into its own result.
    seen: dict[nn.Module, tuple[Tensor, GradientEdge]] = {}

    def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        if module in seen:
            raise UnsupportedError(
                f"{names[module]} is used more than once in a forward pass, which these factors can't describe: "
                "use method='cg'"
            )
        # under no_grad there is no edge, so that the layer's parameters get diagonal blocks
        if output.requires_grad:
            seen[module] = (args[0].detach(), get_gradient_edge(output))

    handles = [module.register_forward_hook(hook) for module in modules]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


class KFAC:
    """Blocks of the Fisher matrix of one model.

    Args:
        model: module whose linear layers get Kronecker factors.
        decay: of the moving averages.
        burn_in: draws of pseudo-gradients for the first batch of a block.
    """

    def __init__(self, model: nn.Module, decay: float, burn_in: int) -> None:
        self.model = model
        self.decay = decay
        self.burn_in = burn_in
        self.linear: dict[nn.Parameter, KroneckerBlock] = {}
        self.other: dict[nn.Parameter, DiagonalBlock] = {}

    def maps(self, trainable: set[nn.Parameter]) -> dict[nn.Module, str]:
        """Find the linear layers whose parameters are all trained and shared with no other module, with their names."""
        # tied weights belong to several modules, and one of them alone doesn't see all gradients
        owners = Counter(
            p for module in self.model.modules() for p in module.parameters(recurse=False)
        )
        found: dict[nn.Module, str] = {}
        for name, module in self.model.named_modules():
            # subclasses with a forward of their own may apply the weight otherwise
            if type(module).forward is nn.Linear.forward:
                own = list(module.parameters(recurse=False))
                plain = {id(p) for p in own} == {
                    id(p) for p in (module.weight, module.bias) if p is not None
                }
                if plain and all(p in trainable and owners[p] == 1 for p in own):
                    found[module] = name
        return found

    def layout(
        self, seen: Pass, trainable: Sequence[nn.Parameter]
    ) -> list[tuple[nn.Parameter, ...]]:
        """Divide the parameters into blocks, and drop the blocks of Parameters that are gone.

        Args:
            seen: the forward pass.
            trainable: all parameters that take part.

        Returns:
            The parameters of each block, those of linear layers first.
        """
        blocks = [
            (module.weight, module.bias) if module.bias is not None else (module.weight,)
            for module in seen.maps
        ]
        covered = {p for block in blocks for p in block}
        others = [p for p in trainable if p not in covered]
        weights = {block[0] for block in blocks}
        self.linear = {
            p: block for p, block in self.linear.items() if p in weights and _fits(block, p)
        }
        self.other = {p: block for p, block in self.other.items() if p in set(others)}
        return [*blocks, *((p,) for p in others)]  # type: ignore[list-item]

    def fresh(self, blocks: Sequence[tuple[nn.Parameter, ...]]) -> bool:
        """True if one of the blocks has seen no batch yet."""
        return any(block[0] not in self.linear and block[0] not in self.other for block in blocks)

    def update(
        self,
        seen: Pass,
        blocks: Sequence[tuple[nn.Parameter, ...]],
        batch: Batch,
    ) -> None:
        """Update all blocks with one batch; the graph is kept.

        Args:
            seen: the forward pass.
            blocks: from `layout`.
            batch: what is known of it.
        """
        fresh = self.fresh(blocks)
        maps = {module.weight: read for module, read in seen.maps.items()}
        linear = [block for block in blocks if block[0] in maps]
        edges = [maps[block[0]][1] for block in linear]
        others = [block[0] for block in blocks if block[0] not in maps]
        targets: list[Any] = [*edges, *others]
        pulled = []
        # one draw is a noisy estimate; a moving average smooths later ones, but a new block has no past
        for _ in range(self.burn_in if fresh else 1):
            # one backward pass for all blocks: it stops at the maps' outputs and at the other parameters
            v = batch.probes().to(seen.output).reshape(seen.output.shape)
            pulled.append(
                torch.autograd.grad(
                    seen.output, targets, v, retain_graph=True, materialize_grads=True
                )
            )
        live = _live(seen.output, edges, pulled, batch.live)
        for index, block in enumerate(linear):
            a = _rows(maps[block[0]][0], len(block) > 1)
            self.linear.setdefault(block[0], KroneckerBlock(self.decay)).update(
                a, [upcast(draw[index]) for draw in pulled], batch.weight, live[index]
            )
        for index, parameter in enumerate(others, len(edges)):
            self.other.setdefault(parameter, DiagonalBlock(self.decay)).update(
                [upcast(draw[index]) for draw in pulled], len(seen.output)
            )

    def update_if_due(
        self,
        seen: Pass,
        trainable: Sequence[nn.Parameter],
        batch: Batch,
        *,
        is_due: bool,
    ) -> None:
        """Update all blocks with one batch if it is time, or if one of them has seen no batch yet.

        Args:
            seen: the forward pass.
            trainable: all parameters that take part.
            batch: what is known of it.
            is_due: True if it is time.
        """
        blocks = self.layout(seen, trainable)
        if is_due or self.fresh(blocks):
            self.update(seen, blocks, batch)

    def precondition(
        self,
        seen: Pass,
        trainable: Mapping[nn.Parameter, Any],
        gradient: Sequence[Tensor],
        dampings: Sequence[float],
        *,
        invert: bool,
    ) -> list[Tensor]:
        """Compute F^-1 g, block by block.

        Args:
            seen: the forward pass.
            trainable: all parameters that take part, in the order of all vectors.
            gradient: g.
            dampings: damping plus weight decay of each parameter.
            invert: True to invert all blocks anew, not only those that never were.

        Returns:
            One tensor per parameter.
        """
        # blocks are ordered layers first, vectors as the parameter groups are
        gradients = dict(zip(trainable, gradient, strict=True))
        damping = dict(zip(trainable, dampings, strict=True))
        direction: dict[nn.Parameter, Tensor] = {}
        for parameters in self.layout(seen, list(trainable)):
            block = self.block(parameters)
            if invert or block.stale:
                # One damping serves a whole block, so a bias without weight decay shares that of its weight.
                block.refresh(damping[parameters[0]])
            steps = block.apply([gradients[p] for p in parameters])
            direction.update(zip(parameters, steps, strict=True))
        return [direction[p] for p in trainable]

    def block(self, parameters: tuple[nn.Parameter, ...]) -> KroneckerBlock | DiagonalBlock:
        """Look up the block of some parameters."""
        return (
            self.linear[parameters[0]]
            if parameters[0] in self.linear
            else self.other[parameters[0]]
        )

    def state(self) -> dict[str, Any]:
        """Collect the state of all blocks, by parameter name."""
        # by name, since Parameter objects don't survive a checkpoint
        names = {parameter: name for name, parameter in self.model.named_parameters()}
        return {
            kind: {names[p]: block.state() for p, block in blocks.items() if p in names}
            for kind, blocks in (("linear", self.linear), ("other", self.other))
        }

    def load(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """Restore what `state` collected, on a model with the same parameters.

        Raises:
            SennError: the model lacks a parameter, or has another shape for it.
        """
        parameters = dict(self.model.named_parameters())
        self.linear, self.other = {}, {}
        for name in [*state["linear"], *state["other"]]:
            if name not in parameters:
                raise SennError(f"the optimizer's state holds {name}, which the model doesn't have")
        for name, saved in state["linear"].items():
            block = self.linear[parameters[name]] = KroneckerBlock(self.decay)
            block.load(saved)
            if not _fits(block, parameters[name]):
                raise SennError(
                    f"the optimizer's state for {name} doesn't fit its shape {tuple(parameters[name].shape)}"
                )
        for name, saved in state["other"].items():
            self.other[parameters[name]] = DiagonalBlock(self.decay)
            self.other[parameters[name]].load(saved)


def _fits(block: KroneckerBlock, weight: Tensor) -> bool:
    rows, columns = len(block.outputs.current), len(block.inputs.current)
    return rows == weight.shape[0] and columns in (weight.shape[1], weight.shape[1] + 1)


def _live(
    output: Tensor,
    edges: Sequence[GradientEdge],
    pulled: Sequence[Sequence[Tensor]],
    live_outputs: Callable[[], Tensor | None],
) -> list[Tensor | None]:
    """Tell which rows of each map can change the loss, (N, ...) Boolean, or None for all.

    Args:
        output: the model's outputs, with their graph, which is kept.
        edges: of the maps' outputs.
        pulled: for each draw, pseudo-gradients at the maps' outputs first.
        live_outputs: finds the outputs that the loss depends on.
    """
    # a row that has a pseudo-gradient is live, so there is nothing to find out where all have one
    largest = [
        reduce(torch.maximum, (draw[n].abs().amax(-1) for draw in pulled))
        for n in range(len(edges))
    ]
    if all(bool((one > 0).all()) for one in largest):
        return [None] * len(edges)
    found = live_gradients(output, edges, live_outputs())
    masks = [one if one is None else (one != 0).any(-1) for one in found]
    # a map that nothing reaches in this batch keeps all of its rows
    return [
        mask if mask is not None and bool(mask.any()) and not bool(mask.all()) else None
        for mask in masks
    ]


def _rows(a: Tensor, bias: bool) -> Tensor:
    """Convert inputs (N, ..., in) to float32 at least, with a trailing 1 for the bias."""
    a = upcast(a)
    return torch.cat([a, a.new_ones(*a.shape[:-1], 1)], -1) if bias else a
