"""How a Trainer calls its model: inputs, targets and outputs of a call, and the processes that make it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from accelerate.state import PartialState  # type: ignore[import-untyped]
from torch import Tensor
from transformers import TrainingArguments

from senn.errors import SennError
from senn.integrations.loop_checks import refuse_strategy
from senn.pytree import prediction


def labeled(called: Mapping[str, Any]) -> tuple[dict[str, Any], Any]:
    """Split the keyword arguments that a model is called with into inputs and targets.

    The labels are among the inputs too: some models can't do without them, since they always compute a loss, or make
    the inputs of their decoder from them.

    Raises:
        SennError: there are no `labels` among them.
    """
    inputs = {name: value for name, value in called.items() if name != "num_items_in_batch"}
    if called.get("labels") is None:
        raise SennError(
            "the model isn't called with labels, as under label smoothing or a loss function of the Trainer's: "
            "say by prepare=... what the targets are"
        )
    return inputs, called["labels"]


def logits(result: Any) -> Tensor:
    """Find the tensor that the loss takes in what a model called with labels returns: `logits`, or all but the loss.

    Raises:
        UnsupportedError: it isn't clear which tensor is meant.
    """
    if isinstance(result, Mapping) and "logits" not in result:
        result = {name: value for name, value in result.items() if name != "loss"}
    elif type(result) is tuple and len(result) > 1 and _is_scalar(result[0]):
        result = result[1]  # with return_dict=False: loss, logits, ...
    return prediction(result)


def _is_scalar(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() == 0


def check_processes(args: TrainingArguments) -> None:
    """Refuse a Trainer that takes its model apart.

    Raises:
        SennError: it runs by DataParallel, FSDP or DeepSpeed.
    """
    if args.n_gpu > 1:
        refuse_strategy("DataParallel")
    distributed = PartialState().distributed_type.value
    if distributed != "NO" and not distributed.startswith("MULTI_"):
        refuse_strategy(distributed)
