"""The exact generalized Gauss-Newton matrix of one batch, through products alone.

F = mean_i J_i^T H_i J_i with J_i = dy_i/dtheta. Vectors over the parameters are lists of tensors, rows over the outputs
(N, m). Everything runs on the graph of one forward pass, so that dropout and batch statistics are those of that pass.
Products with F cost two backward passes (Schraudolph 2002, *Fast curvature matrix-vector products for second-order
gradient descent*); F itself is never formed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from senn.errors import UnsupportedError

Vector = list[Tensor]


def dot(left: Sequence[Tensor], right: Sequence[Tensor]) -> float:
    """Compute the inner product of two vectors.

    Args:
        left: one tensor per parameter.
        right: tensors of the same shapes.

    Returns:
        The sum over the tensors' inner products, in float64.
    """
    return float(sum(float((x * y).sum()) for x, y in zip(left, right, strict=True)))


def pull(output: Tensor, parameters: Sequence[Tensor], rows: Tensor) -> Vector:
    """Multiply rows by the transposed Jacobian, mean_i J_i^T r_i, and keep the graph.

    Args:
        output: outputs of the network with their graph, (N, ...).
        parameters: parameters to differentiate by.
        rows: r, (N, m).

    Returns:
        One tensor per parameter; zeros for those that the outputs don't depend on.
    """
    rows = (rows / len(rows)).to(output).reshape(output.shape)
    return list(
        torch.autograd.grad(output, parameters, rows, retain_graph=True, materialize_grads=True)
    )


class GaussNewton:
    """Products with J, J^T and F.

    Args:
        output: outputs of the network with their graph, (N, ...).
        parameters: parameters to differentiate by.
        curvature: maps rows u (N, m) to rows H u, as `LossMetric.product` does.
    """

    def __init__(
        self, output: Tensor, parameters: Sequence[Tensor], curvature: Callable[[Tensor], Tensor]
    ) -> None:
        self.output = output
        self.parameters = list(parameters)
        self.curvature = curvature
        # J^T w is linear in w, so J u is the derivative of <J^T w, u> by w, at any w: a forward-mode product by two
        # backward passes, for operations that have no forward-mode rule.
        self._w = torch.zeros_like(output, requires_grad=True)
        pulled = torch.autograd.grad(
            output,
            self.parameters,
            self._w,
            create_graph=True,
            retain_graph=True,
            materialize_grads=True,
        )
        # parameters without influence have a gradient of zeros that doesn't depend on w
        self._pulled = [(index, x) for index, x in enumerate(pulled) if x.requires_grad]

    def push(self, u: Sequence[Tensor]) -> Tensor:
        """Multiply by the Jacobian: rows J_i u, (N, m).

        Raises:
            UnsupportedError: the network can't be differentiated twice.
        """
        try:
            (rows,) = torch.autograd.grad(
                [x for _, x in self._pulled],
                self._w,
                [u[index] for index, _ in self._pulled],
                retain_graph=True,
                materialize_grads=True,
            )
        except RuntimeError as error:
            raise UnsupportedError(
                f"the network can't be differentiated twice ({error})"
            ) from error
        return rows.detach().reshape(len(rows), -1)

    def pull(self, rows: Tensor) -> Vector:
        """Multiply rows r (N, m) by the transposed Jacobian: mean_i J_i^T r_i."""
        return pull(self.output, self.parameters, rows)

    def product(self, u: Sequence[Tensor]) -> Vector:
        """Multiply a vector by the matrix: F u."""
        return self.pull(self.curvature(self.push(u)))


def conjugate_gradients(
    product: Callable[[Vector], Vector], right: Vector, iterations: int, tolerance: float
) -> Vector:
    """Solve M x = right for a symmetric positive definite M.

    Args:
        product: maps x to M x.
        right: the right-hand side.
        iterations: products at most.
        tolerance: relative residual |M x - right| / |right| at which to stop.

    Returns:
        x, of the shapes of `right`.
    """
    x = [torch.zeros_like(b) for b in right]
    residual = [b.clone() for b in right]
    direction = [b.clone() for b in right]
    square = first = dot(residual, residual)
    for _ in range(iterations):
        if square <= tolerance**2 * first or square == 0:
            break
        image = product(direction)
        curvature = dot(direction, image)
        # M is positive definite, so this is rounding: there is nothing more to gain
        if curvature <= 0:
            break
        step = square / curvature
        for xi, ri, di, mi in zip(x, residual, direction, image, strict=True):
            xi.add_(di, alpha=step)
            ri.sub_(mi, alpha=step)
        previous, square = square, dot(residual, residual)
        direction = [r + d * (square / previous) for r, d in zip(residual, direction, strict=True)]
    return x


def solve_damped(
    exact: GaussNewton,
    gradient: Vector,
    dampings: Sequence[float],
    iterations: int,
    tolerance: float,
) -> Vector:
    """Solve (F + D) d = g by conjugate gradients, D diagonal with one number per parameter tensor.

    Args:
        exact: products with F.
        gradient: g.
        dampings: D, damping plus weight decay of each parameter.
        iterations: products with F at most.
        tolerance: relative residual at which to stop.

    Returns:
        d, of the shapes of g.
    """

    def product(u: Vector) -> Vector:
        of_parameter = zip(exact.product(u), dampings, u, strict=True)
        return [image + damping * x for image, damping, x in of_parameter]

    return conjugate_gradients(product, gradient, iterations, tolerance)


@dataclass(frozen=True, kw_only=True)
class Model:
    """Best combination of directions under q(delta) = g^T delta + 1/2 delta^T F delta.

    Attributes:
        coefficients: one for each direction.
        linear: g^T delta, in the loss's own unit.
        quadratic: delta^T F delta, without the damping.
    """

    coefficients: list[float]
    linear: float
    quadratic: float

    def change(self, scale: float = 1.0) -> float:
        """Predict the change of the loss for a scaled step, q(scale * delta)."""
        return scale * self.linear + scale**2 / 2 * self.quadratic


def best_combination(
    matrix: GaussNewton,
    directions: Sequence[Sequence[Tensor]],
    gradient: Sequence[Tensor],
    decay: Sequence[float],
    damping: float,
) -> Model:
    """Minimize the exact quadratic model over the span of some directions (Martens and Grosse 2015, section 7).

    With directions V the coefficients are -(V^T (F + damping I) V)^-1 V^T g.

    Args:
        matrix: products with F.
        directions: V; zero ones get the coefficient zero.
        gradient: g, weight decay included.
        decay: weight decay of each parameter, a multiple of the identity in F.
        damping: added to F when the coefficients are chosen, but not in the change that they predict.

    Returns:
        The coefficients and the model along their combination.
    """
    # a zero direction would make the system singular; the first step has no last one
    live = [index for index, u in enumerate(directions) if any(bool(x.any()) for x in u)]
    # u^T F v = mean_i (J_i u)^T H_i (J_i v): one push for each direction, and no pull
    pushed = {i: matrix.push(directions[i]) for i in live}
    curved = {i: matrix.curvature(pushed[i]) for i in live}
    size = len(live)
    fisher, identity = (
        torch.zeros(size, size, dtype=torch.float64),
        torch.zeros(size, size, dtype=torch.float64),
    )
    for row, i in enumerate(live):
        for column, j in enumerate(live[: row + 1]):
            inner = [
                float((x * y).sum()) for x, y in zip(directions[i], directions[j], strict=True)
            ]
            exact = float((pushed[i].double() * curved[j]).sum()) / len(pushed[i])
            # weight decay adds decay times the identity to F, parameter by parameter
            exact += sum(d * x for d, x in zip(decay, inner, strict=True))
            fisher[row, column] = fisher[column, row] = exact
            identity[row, column] = identity[column, row] = sum(inner)
    slope = torch.tensor([dot(directions[i], gradient) for i in live], dtype=torch.float64)
    regular = fisher + damping * identity
    # A unit diagonal, and a ridge for two parallel directions. Not lstsq: its last bits depend on memory alignment.
    length = regular.diagonal().clamp_min(1e-300).sqrt()
    unit = regular / torch.outer(length, length) + 1e-12 * torch.eye(size, dtype=torch.float64)
    solution = -torch.linalg.solve(unit, slope / length) / length
    coefficients = [0.0] * len(directions)
    for index, value in zip(live, solution.tolist(), strict=True):
        coefficients[index] = value
    return Model(
        coefficients=coefficients,
        linear=float(solution @ slope),
        quadratic=float(solution @ fisher @ solution),
    )
