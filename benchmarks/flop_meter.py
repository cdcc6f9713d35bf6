"""Floating-point operations of a run, by what they are for: training, looking (rounds of growth), validation.

Every operation that PyTorch's own counter has a formula for is counted (matrix products, convolutions, attention), and
the factorizations and solves of a look, which it hasn't. Elementwise operations are left out, for all arms alike.

A `FlopCounterMode` around a round would track modules by hooks on tensors, which keep graphs of former sizes alive, so
that changes of size fail; this mode sees operations alone, and a round decides the same with it as without.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import sdpa_backward_flop_count, shape_wrapper

import senn.flops

Shape = tuple[int, ...]
aten = torch.ops.aten


def _matrices(shape: Shape) -> int:
    count = 1
    for size in shape[:-2]:
        count *= size
    return count


def _cholesky(a: Shape, *rest: Any, **others: Any) -> int:
    return _matrices(a) * a[-1] ** 3 // 3


def _triangular(a: Shape, b: Shape, *rest: Any, out_shape: Any = None, **others: Any) -> int:
    # the right-hand sides may be broadcast over several matrices
    entries = 1
    for size in b if out_shape is None else out_shape:
        entries *= size
    return a[-1] * entries


def _solve(a: Shape, b: Shape, *rest: Any, **others: Any) -> int:
    columns = b[-1] if len(b) == len(a) else 1
    return _matrices(a) * (2 * a[-1] ** 3 // 3 + 2 * a[-1] ** 2 * columns)


def _inverse(a: Shape, *rest: Any, **others: Any) -> int:
    return _matrices(a) * 2 * a[-1] ** 3


def _cholesky_inverse(a: Shape, *rest: Any, **others: Any) -> int:
    return _matrices(a) * 2 * a[-1] ** 3 // 3


def _cholesky_solve(b: Shape, a: Shape, *rest: Any, **others: Any) -> int:
    return _matrices(a) * 2 * a[-1] ** 2 * b[-1]


def _eigh(a: Shape, *rest: Any, **others: Any) -> int:
    return _matrices(a) * 9 * a[-1] ** 3  # with eigenvectors


def _qr(a: Shape, *rest: Any, **others: Any) -> int:
    rows, columns = max(a[-2:]), min(a[-2:])
    return _matrices(a) * 4 * rows * columns**2


def _attention_backward(
    grad: Shape, query: Shape, key: Shape, value: Shape, *rest: Any, **others: Any
) -> int:
    return int(sdpa_backward_flop_count(grad, query, key, value))


OURS: dict[Any, Callable[..., int]] = {
    aten.linalg_cholesky_ex: _cholesky,
    aten.linalg_solve_triangular: _triangular,
    aten._linalg_solve_ex: _solve,
    aten.linalg_inv_ex: _inverse,
    aten.cholesky_inverse: _cholesky_inverse,
    aten.cholesky_solve: _cholesky_solve,
    aten._linalg_eigh: _eigh,
    aten.linalg_qr: _qr,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}
"""Formulas that PyTorch lacks, of the sizes of the arguments: leading terms, multiplications and additions apart."""

FORMULAS: dict[Any, Callable[..., int]] = {
    **{packet: shape_wrapper(formula) for packet, formula in OURS.items()},
    **senn.flops.FORMULAS,
}


class CountOperations(TorchDispatchMode):
    """Counts operations while it is open.

    Attributes:
        flops: so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        """Run an operation, and count it where there is a formula."""
        packet, kwargs = getattr(func, "_overloadpacket", None), kwargs or {}
        if packet not in FORMULAS and hasattr(func, "decompose"):
            # in inference mode, products arrive as linear or matmul
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        out = func(*args, **kwargs)
        if packet in FORMULAS:
            self.flops += int(FORMULAS[packet](*args, **kwargs, out_val=out))
        return out


KINDS = ("training", "looking", "validation")


class Meter:
    """Operations of one run.

    A step's are measured once for each size of the model, on a copy, and are in proportion to its rows.

    Attributes:
        spent: operations of each kind.
    """

    def __init__(self) -> None:
        self.spent = dict.fromkeys(KINDS, 0.0)
        self._by_size: dict[object, float] = {}

    @property
    def total(self) -> float:
        """What counts against a budget: training and looking; all arms validate alike."""
        return self.spent["training"] + self.spent["looking"]

    @contextmanager
    def counting(self, kind: str) -> Iterator[None]:
        """Count what is run inside."""
        with CountOperations() as counter:
            yield
        self.spent[kind] += counter.flops

    def step_cost(
        self, model: nn.Module, loss: Callable[..., Tensor], x: Tensor, *targets: Tensor
    ) -> float:
        """Operations of a step on these rows, forward and backward."""
        size = (*(tuple(one.shape) for one in model.parameters()), getattr(model, "widths", ()))
        if size not in self._by_size:
            twin = copy.deepcopy(model)
            with CountOperations() as counter, torch.random.fork_rng(devices=[]):
                loss(twin(x), *targets).backward()
            self._by_size[size] = counter.flops / len(x)
        return self._by_size[size] * len(x)

    def take_step(
        self, model: nn.Module, loss: Callable[..., Tensor], x: Tensor, *targets: Tensor
    ) -> None:
        """Count one step of training."""
        self.spent["training"] += self.step_cost(model, loss, x, *targets)
