"""Order of a group's dimensions."""

from __future__ import annotations

from senn.graph.sizes.solver import NoSolutionError
from senn.graph.types import CoupledDim


def in_order(dims: list[CoupledDim]) -> list[CoupledDim]:
    """Sort dimensions: producers by module, then elementwise tensors, then consumers.

    Two label classes of one group may lie in one dimension, one after the other; then they stay together.

    Raises:
        NoSolutionError: one dimension has two roles.
    """
    by_tensor: dict[tuple[str, int], list[CoupledDim]] = {}
    for coupled in dims:
        same = by_tensor.setdefault((coupled.name, coupled.dim), [])
        if same and same[0].role != coupled.role:
            raise NoSolutionError(f"{coupled.name} both makes and reads its units")
        same.append(coupled)
    together = [coupled for same in by_tensor.values() for coupled in same]
    makers = [coupled.module for coupled in together if coupled.role == "producer"]

    def place(coupled: CoupledDim) -> int:
        if coupled.role == "producer":
            return makers.index(coupled.module)
        return len(makers) + (coupled.role == "consumer")

    return sorted(together, key=place)
