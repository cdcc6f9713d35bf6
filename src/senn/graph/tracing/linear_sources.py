"""What an activation is a sum of: which weights made it, and which parameters scaled that on the way.

A normalization that subtracts the mean of its units keeps the old ones' outputs if new units enter as the mean of what
enters. Where that is a sum of g W a, new rows are means of g W. Where something else lies between (an activation,
another normalization), no new row can give that mean.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from senn.graph.tracing.label_maps import LabelMaps
from senn.graph.tracing.recorded import Call, Sources, WeightUse

# Linear operations that do the same to all units.
_LINEAR_NAMES = (
    "to_copy clone detach alias lift_fresh view unsafe_view reshape expand unsqueeze squeeze transpose "
    "permute t native_dropout neg mean sum slice select split split_with_sizes unbind index index_select "
    "gather roll flip constant_pad_nd repeat repeat_interleave avg_pool1d avg_pool2d avg_pool3d "
    "adaptive_avg_pool2d copy add sub rsub cat stack im2col unfold upsample_nearest1d upsample_nearest2d "
    "upsample_bilinear2d masked_fill"
)
_LINEAR = frozenset(_LINEAR_NAMES.split())


class LinearSources:
    """Terms of all activations of one forward pass.

    Args:
        trace: label maps of the pass.

    Attributes:
        raw_reads: (weight, dimension) of maps that read a sum of such terms as it is, past any normalization.
    """

    def __init__(self, trace: LabelMaps) -> None:
        self.trace = trace
        self.raw_reads: set[tuple[str, int]] = set()
        self._known: dict[int, Sources] = {}
        self._ended: set[int] = set()
        self._roots: dict[int, int] = {}

    def of(self, tensor: Tensor) -> Sources:
        """Return the terms of a tensor."""
        known = self._known.get(id(tensor))
        if known is not None:
            return known
        name = self.parameter(tensor)
        return Sources() if name is None else Sources(gains={name: ()})

    def of_root(self, identity: int) -> Sources:
        """Return the terms of the tensor that a statistic is taken of, by its identity."""
        return self._known.get(identity, Sources())

    def after(self, call: Call, uses: Sequence[WeightUse]) -> None:
        """Follow an operation that its rule has followed.

        Args:
            call: the operation.
            uses: uses of weights that it made.
        """
        for tensor in call.tensors if uses else ():
            terms = self._known.get(id(tensor))
            if terms is not None and terms.obstacle is None:
                self.raw_reads.update((use.weight, use.in_dim) for use in uses)
        if not any(map(self.trace.is_labeled, call.outputs)):
            return
        found = self._made(call, uses)
        for output in call.outputs:
            if id(output) not in self._ended:
                self._known[id(output)] = found

    def join(self, tensor: Tensor, root: Tensor) -> None:
        """Record that a tensor has the entries of another, or centered or scaled ones, in any shape."""
        self._roots[id(tensor)] = self.root(root)

    def root(self, tensor: Tensor) -> int:
        """Return the identity of the tensor whose entries, or centered entries, a tensor holds."""
        return self._roots.get(id(tensor), id(tensor))

    def parameter(self, tensor: Tensor) -> str | None:
        """Return the full name of the parameter whose entries a tensor holds; None if it holds none, or one only."""
        if tensor.numel() <= 1:
            return None
        view = self.trace.weight_of(tensor)
        return self.trace.parameter_name(self.root(tensor)) if view is None else view.name

    def end(self, tensor: Tensor, obstacle: str) -> None:
        """Record that a tensor is no linear function of any weight.

        Args:
            tensor: the tensor.
            obstacle: why, as a noun.
        """
        self._known[id(tensor)] = Sources(obstacle=obstacle)
        self._ended.add(id(tensor))

    def same(self, tensor: Tensor, output: Tensor) -> None:
        """Record that an output is a sum of the same terms as another tensor, up to what all units have in common."""
        self._known[id(output)] = self.of(tensor)

    def _made(self, call: Call, uses: Sequence[WeightUse]) -> Sources:
        trace, operation = self.trace, call.operation
        if uses or operation == "embedding":
            names = [use.weight for use in uses]
            for tensor in call.tensors:
                name = self.parameter(tensor)
                names += [name] if name is not None else []
            return Sources(gains=dict.fromkeys(names, ()))
        inputs = [tensor for tensor in call.tensors if trace.is_labeled(tensor)]
        if operation in _LINEAR:
            return _sum([self.of(tensor) for tensor in inputs])
        first = call.args[0] if call.args else None
        parameters = [tensor for tensor in inputs if self.parameter(tensor) is not None]
        others = [tensor for tensor in inputs if self.parameter(tensor) is None]
        if operation == "mul" and len(others) == 1:
            return _scaled(self.of(others[0]), [str(self.parameter(one)) for one in parameters])
        if operation == "div" and len(others) == 1 and others[0] is first and not parameters:
            return self.of(others[0])
        known = [self.of(tensor).obstacle for tensor in others]
        earlier = next((obstacle for obstacle in known if obstacle is not None), None)
        return Sources(obstacle=earlier or f"{operation} in {trace.place}")


def _sum(terms: Sequence[Sources]) -> Sources:
    gains: dict[str, tuple[str, ...]] = {}
    for term in terms:
        gains.update(term.gains)
    obstacles = [term.obstacle for term in terms if term.obstacle is not None]
    return Sources(gains=gains, obstacle=obstacles[0] if obstacles else None)


def _scaled(term: Sources, by: Sequence[str]) -> Sources:
    gains = {name: (*known, *by) for name, known in term.gains.items()}
    return Sources(gains=gains, obstacle=term.obstacle)
