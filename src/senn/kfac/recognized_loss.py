"""Losses with a closed form found inside a function of the user's own, by its autograd graph.

Cross-entropy is linear in the log-probabilities that `log_softmax` (or `logsumexp`) makes, whoever wrote it down: over
flattened tokens, shifted, masked, smoothed, weighted, divided by a temperature, distilled, summed over several heads.
So each such operation in the graph is one term

    H = J^T total (diag(p) - p p^T) J       total = - sum_c dL / d log p_c

if what it reads is a re-indexing of the outputs, which index tensors pulled back through J tell. None of this is
believed: a random product with the Hessian must equal that of autograd (Freivalds 1977), or the loss counts as unknown.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from senn.kfac.loss_graph import LossGraph, random_rows
from senn.kfac.loss_hessians import (
    LOGIT,
    DiagonalHessian,
    LossHessian,
    SoftmaxHessian,
    SumHessian,
)

TOLERANCE = 1e-4
"""Relative difference of two products with one Hessian that rounding explains: float32 sums of many classes.

A thousandth of the curvature that goes unnoticed changes no decision; rounding alone stays below a tenth of this.
"""

SOFTMAX = ("LogSoftmaxBackward0", "LogsumexpBackward0")
"""Autograd nodes of softmax likelihoods."""


def recognize(graph: LossGraph) -> LossHessian | None:
    """Find the closed form of a loss whose curvature lies in softmax likelihoods, one for each position.

    Args:
        graph: the loss at a batch's outputs.

    Returns:
        The Hessians; None if the loss isn't understood.
    """
    graph.check_twice()
    found = _recognized(graph)
    if found is not None or not graph.operations(*SOFTMAX):
        return found
    # Where all samples are fitted perfectly, curvature is less than its rounding, and its products prove nothing here:
    # the form then has to be exact all along the way from outputs of zero.
    if any(_recognized(one) is None for one in graph.toward_zero()):
        return None
    return _recognized(graph, rounding=graph.rounding)


def _recognized(graph: LossGraph, rounding: float = 0.0) -> LossHessian | None:
    """Find the closed form, as far as products tell that differ by no more than rounding."""
    found = _likelihoods(graph)
    if not found:
        return _of_log_probabilities(graph) or _of_probabilities(graph)
    terms = _merged(found)
    if terms is None:
        return None
    u = random_rows(graph.rows)
    difference = graph.product(u) - _sum(terms).product(u)
    if _is_small(difference, _sum(terms).product(u), rounding):
        return _sum(terms)
    # the rest may be a loss of other outputs, number by number: that of a second head, say
    ones = torch.ones_like(u)
    rest = DiagonalHessian(graph.product(ones) - _sum(terms).product(ones))
    softmax_only = torch.stack([_support(term) for term in terms]).any(0)
    h = torch.where(softmax_only, 0.0, rest.h)
    whole = _sum(terms, DiagonalHessian(h.clamp_min(0)))
    return whole if is_exact(graph, whole) else None


def is_exact(graph: LossGraph, hessian: LossHessian) -> bool:
    """Compare a random product with the Hessian that autograd has."""
    u = random_rows(graph.rows)
    own = hessian.product(u)
    return _is_small(graph.product(u) - own, own)


def _is_small(difference: Tensor, product: Tensor, rounding: float = 0.0) -> bool:
    own = product.norm(dim=1)
    # relative to each sample, with a floor for those that hardly count, and one for rounding of each number
    allowed = (
        TOLERANCE * own.clamp_min(1e-3 * float(own.max())) + rounding * product.shape[1] ** 0.5
    )
    return bool((difference.norm(dim=1) <= allowed).all())


# ---- softmax likelihoods --------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False, kw_only=True)
class _Likelihood:
    """A softmax in a loss.

    Attributes:
        log_p: log-probabilities in the shape of the operation's input.
        total: of each position, of size 1 along `dim`.
        dim: the dimension of classes.
        edge: where the operation's input comes from.
    """

    log_p: Tensor
    total: Tensor
    dim: int
    edge: GradientEdge


def _likelihoods(graph: LossGraph) -> list[SoftmaxHessian] | None:
    """All softmax likelihoods of a loss; None if one doesn't read the outputs as they are."""
    found = []
    for node in graph.operations(SOFTMAX[0]):
        slope = graph.slope(GradientEdge(node, 0))
        if slope is not None:
            dim, log_p = _signed(node._saved_dim), node._saved_result.detach()
            total = -slope.sum(dim, keepdim=True)
            found.append(_Likelihood(log_p=log_p, total=total, dim=dim, edge=_input(node)))
    for node in graph.operations(SOFTMAX[1]):
        slope, dims = graph.slope(GradientEdge(node, 0)), node._saved_dim
        if slope is not None and len(dims) == 1:
            dim, x, total = _signed(dims[0]), node._saved_self.detach(), slope
            if not node._saved_keepdim:
                total = total.unsqueeze(dim)
            log_p = x.log_softmax(dim)
            found.append(_Likelihood(log_p=log_p, total=total, dim=dim, edge=_input(node)))
    terms = [_at_outputs(graph, one) for one in found]
    return None if None in terms else [term for term in terms if term is not None]


def _input(node: Any) -> GradientEdge:
    return GradientEdge(*node.next_functions[0])


def _signed(dim: int) -> int:
    # autograd keeps dimensions as unsigned numbers of 64 bits
    return dim - (1 << 64) if dim >= 1 << 63 else dim


def _at_outputs(graph: LossGraph, one: _Likelihood) -> SoftmaxHessian | None:
    """Express a softmax by the outputs, if each line of them along a dimension is one position's classes."""
    shape, samples = one.log_p.shape, len(graph.leaf)
    dim = one.dim % len(shape)
    classes = shape[dim]
    # index tensors: the position and the class of each entry, from 1
    positions = torch.arange(1, one.log_p.numel() // classes + 1, device=one.log_p.device)
    without = (*shape[:dim], 1, *shape[dim + 1 :])
    one_class = [1] * len(shape)
    one_class[dim] = classes
    number = torch.arange(1, classes + 1, device=one.log_p.device)
    pulled = [
        graph.pull(one.edge, indices.to(one.log_p.dtype).expand(shape))
        for indices in (positions.view(without), number.view(one_class))
    ]
    if pulled[0] is None or pulled[1] is None:
        return None
    # a constant factor c of the outputs, such as a temperature: H is c^2 times that of the softmax's own input
    extreme = pulled[1].flatten()[pulled[1].abs().argmax()]
    factor = float(extreme) / classes
    if not factor:
        return None
    indices = [(index / factor).round() for index in pulled if index is not None]
    rows_log_p = one.log_p.movedim(dim, -1).reshape(-1, classes)
    total = (samples * factor**2) * one.total.movedim(dim, -1).flatten()
    for layout, axis in _layouts(graph.leaf.shape, classes):
        arranged = [index.view(layout) for index in indices]
        # most layouts are ruled out by a sample alone
        first = int((arranged[1] != 0).flatten(1).any(1).nonzero()[0, 0])
        if _lines([index[first : first + 1] for index in arranged], axis, classes) is not None:
            lines = _lines(arranged, axis, classes)
            if lines is not None:
                return _softmax(rows_log_p, total, lines, graph.leaf.view(layout), axis)
    return None


def _layouts(shape: torch.Size, classes: int) -> Iterator[tuple[tuple[int, ...], int]]:
    """Ways to lay out the outputs, with the dimension along which the classes may lie; first of all as they are."""
    # along dimension 0 lie the samples
    for axis in range(1, len(shape)):
        yield tuple(shape), axis
    for axis in range(1, len(shape)):
        before, size, after = shape[:axis], shape[axis], shape[axis + 1 :]
        # several positions in one dimension, one after the other or class by class
        if size > classes and size % classes == 0:
            yield (*before, size // classes, classes, *after), axis + 1
            yield (*before, classes, size // classes, *after), axis
    if len(shape) > 2:
        yield (shape[0], shape[1:].numel()), 1


@dataclass(frozen=True, eq=False, kw_only=True)
class _Lines:
    """Lines of the outputs along one dimension, and what they hold.

    Attributes:
        used: (lines,) which of all lines are read.
        columns: (length,) which entries of each of these are.
        position: (used lines,) of each.
        order: (classes,) class of each of the columns.
    """

    used: Tensor
    columns: Tensor
    position: Tensor
    order: Tensor


def _lines(indices: list[Tensor], axis: int, classes: int) -> _Lines | None:
    """Read the lines along an axis; None if it isn't that of the classes."""
    position, number = (index.movedim(axis, -1).flatten(0, -2) for index in indices)
    used = (number != 0).any(1)
    if not used.any():
        return None
    columns = number[used.nonzero()[0, 0]] != 0
    if int(columns.sum()) != classes:
        return None
    if not used.all():
        position, number = position[used], number[used]
    if not columns.all():
        outside = number[:, ~columns]
        if outside.any():
            return None
        position, number = position[:, columns], number[:, columns]
    order = number[0].long() - 1
    if not (number == number[0]).all() or not (position == position[:, :1]).all():
        return None
    if not torch.equal(order.sort().values, torch.arange(classes, device=order.device)):
        return None
    found = position[:, 0].long() - 1
    return _Lines(used=used, columns=columns, position=found, order=order)


def _softmax(
    log_p: Tensor, total: Tensor, lines: _Lines, leaf: Tensor, axis: int
) -> SoftmaxHessian | None:
    if not bool(((lines.position >= 0) & (lines.position < len(log_p))).all()):
        return None
    moved = leaf.movedim(axis, -1).shape
    own = log_p[lines.position]
    if not torch.equal(lines.order, torch.arange(len(lines.order), device=leaf.device)):
        own = own[:, lines.order]
    own = own.clamp_min_(-LOGIT).exp_().to(leaf)
    totals = leaf.new_zeros(len(lines.used))
    totals[lines.used] = total[lines.position].to(leaf)
    if not (lines.used.all() and lines.columns.all()):
        p = leaf.new_zeros(len(lines.used), moved[-1])
        at = lines.used.nonzero()[:, 0], lines.columns.nonzero()[:, 0]
        p[at[0][:, None], at[1]] = own
        own = p
    # a negative weight is no likelihood: the loss isn't convex there
    if bool((totals < -1e-6 * totals.abs().max()).any()):
        return None
    return SoftmaxHessian(
        p=own.view(moved).movedim(-1, axis).contiguous(),
        total=totals.clamp_min_(0).view(*moved[:-1], 1).movedim(-1, axis),
        dim=axis,
    )


def _support(term: SoftmaxHessian) -> Tensor:
    """Outputs that a softmax reads, (N, m) Boolean."""
    # probabilities are at least e^-LOGIT where there is one
    return (term.p > 0).flatten(1)


def _merged(terms: list[SoftmaxHessian]) -> list[SoftmaxHessian] | None:
    """Add likelihoods of the same outputs, such as those of two targets mixed; None if others overlap."""
    found: list[SoftmaxHessian] = []
    for term in terms:
        for number, other in enumerate(found):
            joined = _joined(other, term)
            if joined is not None:
                found[number] = joined
                break
        else:
            if any(bool((_support(term) & _support(other)).any()) for other in found):
                return None
            found.append(term)
    return found


def _joined(one: SoftmaxHessian, other: SoftmaxHessian) -> SoftmaxHessian | None:
    """Make one of two likelihoods that have each line whole, and the same p wherever both have one."""
    if one.dim != other.dim or one.p.shape != other.p.shape:
        return None
    both = ((one.p > 0) == (other.p > 0)).all(one.dim, keepdim=True)
    alone = [(term.p > 0).any(one.dim, keepdim=True) for term in (one, other)]
    same = torch.isclose(one.p, other.p, rtol=1e-4, atol=1e-7)
    shared = alone[0] & alone[1]
    if bool((shared & ~(both & same.all(one.dim, keepdim=True))).any()):
        return None
    return replace(one, p=torch.maximum(one.p, other.p), total=one.total + other.total)


def _sum(terms: list[SoftmaxHessian], rest: DiagonalHessian | None = None) -> LossHessian:
    if len(terms) == 1 and rest is None:
        return terms[0]
    parts: list[tuple[LossHessian, Tensor]] = [(term, _support(term)) for term in terms]
    if rest is not None:
        parts.append((rest, rest.h > 0))
    return SumHessian(tuple(parts))


# ---- likelihoods of probabilities: the Fisher matrix rather than the Hessian ----------------------------------------


def _of_log_probabilities(graph: LossGraph) -> SoftmaxHessian | None:
    """`nll_loss` of log-probabilities as outputs: it is linear, and its Fisher is that of cross-entropy."""
    found = []
    for node in graph.operations("NllLossBackward0", "NllLoss2DBackward0"):
        slope, log_p = graph.slope(_input(node)), node._saved_self.detach()
        if slope is None or float(log_p.logsumexp(1).abs().max()) > 1e-2:
            return None
        total = -slope.sum(1, keepdim=True)
        one = _Likelihood(log_p=log_p, total=total, dim=1, edge=_input(node))
        found.append(_at_outputs(graph, one))
    terms = _merged([term for term in found if term is not None])
    if not terms or None in found or len(terms) > 1:
        return None
    # all else must be linear, too
    return terms[0] if not graph.product(random_rows(graph.rows)).any() else None


def _of_probabilities(graph: LossGraph) -> DiagonalHessian | None:
    """`binary_cross_entropy` of probabilities p as outputs: H = w / (p (1 - p)), the mean of w d2l/dp2 over t ~ p."""
    nodes = graph.operations("BinaryCrossEntropyBackward0")
    if len(nodes) != 1:
        return None
    (node,) = nodes
    target = node._saved_target.detach()
    pulled = [graph.pull(_input(node), x) for x in (torch.ones_like(target), target)]
    if (
        pulled[0] is None
        or pulled[1] is None
        or not bool(((pulled[0] == 0) | (pulled[0] == 1)).all())
    ):
        return None
    h = graph.product(torch.ones_like(graph.rows))
    if not is_exact(graph, DiagonalHessian(h)):
        return None
    p, t = graph.leaf.detach().flatten(1), pulled[1].flatten(1)
    variance = (p * (1 - p)).clamp_min(1e-12)
    # d2l/dp2 = w (p^2 - 2 t p + t) / (p (1 - p))^2: what it holds beyond w / (p (1 - p)) is divided out
    spread = (p**2 - 2 * t * p + t).clamp_min(1e-12)
    return DiagonalHessian(h * variance / spread)
