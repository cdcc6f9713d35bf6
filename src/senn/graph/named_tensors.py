"""Tensors and layers of a model by the names in its graph, and weights as matrices."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from senn.graph.types import CoupledDim, LinearMap


def get_tensor(model: nn.Module, name: str) -> Tensor:
    """Return a parameter or buffer.

    Args:
        model: the model.
        name: its full name, as in `state_dict`.
    """
    path, _, key = name.rpartition(".")
    return cast(Tensor, getattr(model.get_submodule(path), key))


def weight_matrix(model: nn.Module, one: LinearMap) -> Tensor:
    """Return the weight of a linear map as a matrix.

    Args:
        model: the model.
        one: the linear map.

    Returns:
        (out, in * kernel positions), or (out * kernel positions, in) for a transposed convolution; detached.
    """
    weight = get_tensor(model, one.weight).detach()
    if one.transposed:  # (in, out, *kernel): every output at every kernel position is a row
        return weight.flatten(1).mT
    return weight.movedim((one.out_dim, one.in_dim), (0, 1)).flatten(1)


def owned_columns(coupled: CoupledDim, kernel_numel: int) -> Tensor:
    """Return the columns of a consumer's weight matrix that each unit owns.

    Args:
        coupled: a dimension with the role `consumer`.
        kernel_numel: columns of one input: `LinearMap.kernel_numel`.

    Returns:
        (width, k * kernel_numel) long.
    """
    # Input channel i owns the columns i * kernel_numel ... (i + 1) * kernel_numel - 1, one for each kernel position.
    return (coupled.index[:, :, None] * kernel_numel + torch.arange(kernel_numel)).flatten(1)


def get_linear(model: nn.Module, name: str) -> nn.Linear:
    """Return a linear layer.

    Args:
        model: the model.
        name: its name, as in `model.get_submodule`.
    """
    return cast(nn.Linear, model.get_submodule(name))
