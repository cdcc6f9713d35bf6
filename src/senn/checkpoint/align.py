"""Aligning the children of a grown container with those of a fresh one: which is which, which is a copy of which."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from senn.checkpoint.match import count_disagreements
from senn.checkpoint.schema import Node, join
from senn.errors import SennError

Fits = Callable[[Node, nn.Module, str], bool]
Choice = tuple[int, list[int]]
"""Differing settings so far, and the numbers of the old children so far."""


def align_children(
    described: Sequence[tuple[str, Node]], old: Sequence[nn.Module], *, fits: Fits, path: str
) -> list[int]:
    """Find the number of the old child that each described one is, or is a copy of.

    The numbers rise by one or stay: a copy stands behind what it is like. Where several sequences fit, the one with the
    fewest differing settings is taken, by dynamic programming over the described children.

    Args:
        described: names and descriptions of more children than there are old ones.
        old: the children of the fresh container.
        fits: returns True if a module can become what is described at a path.
        path: of the container.

    Returns:
        A number for each described child.

    Raises:
        SennError: no sequence fits.
    """
    spare = len(described) - len(old)
    # number of the last old child -> the best choice that ends with it
    best: dict[int, Choice] = {-1: (0, [])}
    for index, (name, child) in enumerate(described):
        now: dict[int, Choice] = {}
        # Enough old children must be left for the described ones that follow, and each must get its turn.
        first, last = max(0, index - spare), min(index, len(old) - 1)
        for number in range(first, last + 1):
            before = _choices_before(best, number, child)
            if before and fits(child, old[number], join(path, name)):
                # Of equal ones the first: the next child is preferred to one more copy of the child before.
                cost, chosen = min(before, key=lambda choice: choice[0])
                cost += count_disagreements(child, old[number])
                now[number] = cost, [*chosen, number]
        best = now
    if len(old) - 1 not in best:
        place = path or "the model"
        raise SennError(f"{place} has {len(old)} parts, but {len(described)} others were saved")
    return best[len(old) - 1][1]


def _choices_before(best: dict[int, Choice], number: int, child: Node) -> list[Choice]:
    """List the choices that may come before an old child: those that end with the one before it, or with itself.

    Surgery copies residual blocks only, and these have children themselves.
    """
    may_be_copy = bool(child.children)
    earlier = (number - 1, number) if may_be_copy else (number - 1,)
    return [best[one] for one in earlier if one in best]


def without_shared(node: Node, path: str) -> list[tuple[str, Node]]:
    """Return the children of a container, none of which may stand for another module.

    Args:
        node: describes the container.
        path: of the container.

    Returns:
        Names and descriptions, in order.

    Raises:
        SennError: one of them stands for another module.
    """
    children = [(name, child) for name, child in node.children.items() if isinstance(child, Node)]
    if len(children) < len(node.children):
        raise SennError(
            f"{path or 'the model'} shares some of its parts, so that none can be added"
        )
    return children
