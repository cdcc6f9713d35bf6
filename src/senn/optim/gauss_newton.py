"""The exact generalised Gauss-Newton matrix of one batch, through products alone.

F = mean_i J_i^T H_i J_i with J_i = dy_i/dtheta. Vectors over the parameters are lists of tensors, rows over the
outputs (N, m). Everything runs on the graph of one forward pass, so that dropout and batch statistics are those of
that pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from senn.errors import UnsupportedError

Vector = list[Tensor]


def dot(left: Sequence[Tensor], right: Sequence[Tensor]) -> float:
    """Inner product, float64 over the tensors."""
    return float(sum(float((x * y).sum()) for x, y in zip(left, right, strict=True)))


class GaussNewton:
    """Products with J, J^T and F.

    Args:
        output: the network's outputs with their graph, (N, ...).
        parameters: what to differentiate by.
        curvature: rows u (N, m) to rows H u, as `LossMetric.product`.
    """

    def __init__(self, output: Tensor, parameters: Sequence[Tensor], curvature: Callable[[Tensor], Tensor]) -> None:
        self.output = output
        self.parameters = list(parameters)
        self.curvature = curvature
        # J u is the derivative of J^T w by w: the double-backward form of a forward-mode product.
        self._w = torch.zeros_like(output, requires_grad=True)
        pulled = torch.autograd.grad(
            output, self.parameters, self._w, create_graph=True, retain_graph=True, materialize_grads=True
        )
        self._pulled = [(index, x) for index, x in enumerate(pulled) if x.requires_grad]

    def push(self, u: Sequence[Tensor]) -> Tensor:
        """Rows J_i u, (N, m)."""
        try:
            (rows,) = torch.autograd.grad(
                [x for _, x in self._pulled],
                self._w,
                [u[index] for index, _ in self._pulled],
                retain_graph=True,
                materialize_grads=True,
            )
        except RuntimeError as error:
            raise UnsupportedError(f"the network cannot be differentiated twice ({error})") from error
        return rows.detach().reshape(len(rows), -1)

    def pull(self, rows: Tensor) -> Vector:
        """mean_i J_i^T r_i."""
        rows = (rows / len(rows)).to(self.output).reshape(self.output.shape)
        pulled = torch.autograd.grad(self.output, self.parameters, rows, retain_graph=True, materialize_grads=True)
        return list(pulled)

    def product(self, u: Sequence[Tensor]) -> Vector:
        """F u."""
        return self.pull(self.curvature(self.push(u)))


def conjugate_gradients(
    product: Callable[[Vector], Vector], right: Vector, iterations: int, tolerance: float
) -> Vector:
    """Solve M x = right for a symmetric positive definite M; stops at |M x - right| <= tolerance |right|."""
    x = [torch.zeros_like(b) for b in right]
    residual = [b.clone() for b in right]
    direction = [b.clone() for b in right]
    square = first = dot(residual, residual)
    for _ in range(iterations):
        if square <= tolerance**2 * first or square == 0:
            break
        image = product(direction)
        along = dot(direction, image)
        if along <= 0:  # rounding: nothing more to gain on this machine
            break
        step = square / along
        for xi, ri, di, mi in zip(x, residual, direction, image, strict=True):
            xi.add_(di, alpha=step)
            ri.sub_(mi, alpha=step)
        previous, square = square, dot(residual, residual)
        direction = [r + d * (square / previous) for r, d in zip(residual, direction, strict=True)]
    return x


@dataclass(frozen=True, kw_only=True)
class Model:
    """The best combination of directions under q(delta) = g^T delta + 1/2 delta^T F delta.

    Attributes:
        coefficients: one for each direction.
        linear: g^T delta.
        quadratic: delta^T F delta, without the damping.
    """

    coefficients: list[float]
    linear: float
    quadratic: float

    def change(self, scale: float = 1.0) -> float:
        """q(scale * delta), the predicted change of the loss."""
        return scale * self.linear + scale**2 / 2 * self.quadratic


def best_combination(
    matrix: GaussNewton,
    directions: Sequence[Sequence[Tensor]],
    gradient: Sequence[Tensor],
    decay: Sequence[float],
    damping: float,
) -> Model:
    """Minimise the exact quadratic model over the span of some directions (Martens and Grosse, section 7).

    Args:
        matrix: products with F.
        directions: V; zero ones get the coefficient zero.
        gradient: g, weight decay included.
        decay: weight decay of each parameter, a multiple of the identity in F.
        damping: added to F when the coefficients are chosen, but not in what they promise.
    """
    live = [index for index, u in enumerate(directions) if any(bool(x.any()) for x in u)]
    pushed = {i: matrix.push(directions[i]) for i in live}
    curved = {i: matrix.curvature(pushed[i]) for i in live}
    size = len(live)
    fisher, identity = torch.zeros(size, size, dtype=torch.float64), torch.zeros(size, size, dtype=torch.float64)
    for row, i in enumerate(live):
        for column, j in enumerate(live[: row + 1]):
            inner = [float((x * y).sum()) for x, y in zip(directions[i], directions[j], strict=True)]
            exact = float((pushed[i].double() * curved[j]).sum()) / len(pushed[i])
            exact += sum(d * x for d, x in zip(decay, inner, strict=True))
            fisher[row, column] = fisher[column, row] = exact
            identity[row, column] = identity[column, row] = sum(inner)
    slope = torch.tensor([dot(directions[i], gradient) for i in live], dtype=torch.float64)
    regular = fisher + damping * identity
    # Unit diagonal, and a ridge for two parallel directions. No lstsq: its last bits depend on memory alignment.
    length = regular.diagonal().clamp_min(1e-300).sqrt()
    unit = regular / torch.outer(length, length) + 1e-12 * torch.eye(size, dtype=torch.float64)
    solution = -torch.linalg.solve(unit, slope / length) / length
    coefficients = [0.0] * len(directions)
    for index, value in zip(live, solution.tolist(), strict=True):
        coefficients[index] = value
    return Model(
        coefficients=coefficients, linear=float(solution @ slope), quadratic=float(solution @ fisher @ solution)
    )
