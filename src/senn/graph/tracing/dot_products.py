"""Dot products of activations along all their units: attention with a single head.

Where queries and keys have several heads, their features are summed within each, and the heads are the units. One head
shows no such dimension. So the labels that take part are remembered, with those of the values that the products weight:
`senn.graph.single_heads` makes a guess of them, one unit of all, which a copy with two heads has to confirm.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from senn.graph.tracing.labels import distinct, varying
from senn.graph.tracing.recorded import Call


@dataclass(kw_only=True, eq=False)
class DotProduct:
    """One such product.

    Attributes:
        pairs: labels of what is multiplied (queries and keys).
        values: labels of what the products weight.
    """

    pairs: Tensor
    values: list[Tensor] = field(default_factory=list)


class DotProducts:
    """All such products of one forward pass.

    Attributes:
        found: in order of use.
    """

    def __init__(self) -> None:
        self.found: list[DotProduct] = []
        self._results: dict[int, DotProduct] = {}

    def begin(self, first: list[Tensor], second: list[Tensor]) -> DotProduct | None:
        """Note a product (..., i, k) by (..., k, j), if units lie along k only.

        Args:
            first: label maps of the first factor.
            second: label maps of the second.
        """
        left = [label_map for label_map in first if bool(label_map.any())]
        right = [label_map for label_map in second if bool(label_map.any())]
        along = [varying(one) == {one.dim() - 1} for one in left]
        along += [varying(one) == {one.dim() - 2} for one in right]
        if not left or not right or not all(along):
            return None
        pairs = distinct(torch.cat([one.flatten().cpu() for one in (*left, *right)]))
        self.found.append(DotProduct(pairs=pairs[pairs != 0]))
        return self.found[-1]

    def weigh(self, product: DotProduct, values: list[Tensor]) -> None:
        """Note what a product, after a softmax, weights.

        Args:
            product: the product.
            values: label maps, with features in the last dimension.
        """
        for label_map in values:
            if varying(label_map) == {label_map.dim() - 1}:
                labels = distinct(label_map.cpu())
                product.values.append(labels[labels != 0])

    def of(self, tensor: Tensor) -> DotProduct | None:
        """Return the product that a tensor was computed from; None if there is none."""
        return self._results.get(id(tensor))

    def note_result(self, tensor: Tensor, product: DotProduct) -> None:
        """Note that a tensor is such a product, or was computed from one."""
        self._results[id(tensor)] = product

    def after(self, call: Call) -> None:
        """Follow an operation on a product: scale, mask, softmax."""
        for tensor in call.tensors:
            product = self._results.get(id(tensor))
            if product is not None:
                for output in call.outputs:
                    self._results.setdefault(id(output), product)
