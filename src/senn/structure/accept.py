"""What can be analysed at all: one clear sentence for what can't."""

from __future__ import annotations

from torch import nn
from torch.nn.parameter import UninitializedParameter

from senn import batch
from senn.batch import Inputs
from senn.errors import SennError


def check_model(model: object) -> None:
    """Refuse what isn't a module whose parts can be exchanged.

    Raises:
        SennError: it is none, or one without shapes yet.
    """
    if not isinstance(model, nn.Module):
        raise SennError(f"analyse needs an nn.Module, not a {type(model).__name__}.")
    for name, parameter in model.named_parameters():
        if isinstance(parameter, UninitializedParameter):
            raise SennError(f"The parameter {name} has no shape yet: run the model once before it is analysed.")


def check_inputs(_model: nn.Module, inputs: Inputs) -> None:
    """Refuse example inputs that hold no sample.

    Raises:
        SennError: they hold none.
    """
    tensors = batch.tensors(inputs)
    if not tensors or any(tensor.numel() == 0 for tensor in tensors):
        raise SennError("The example inputs hold no sample.")
