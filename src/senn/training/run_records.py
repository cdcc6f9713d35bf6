"""Records of a run's history apart from those of growth: its start, its epochs and its end."""

from __future__ import annotations

from torch import nn

from senn.training.metric import as_metric
from senn.training.round_records import Record
from senn.training.run_state import RunState
from senn.training.train_config import Task, TrainConfig
from senn.training.train_result import (
    TrainResult,
    architecture,
    count_parameters,
    layer_names,
)


def start_record(
    model: nn.Module,
    recipe: TrainConfig,
    state: RunState,
    *,
    task: Task,
    train_rows: int,
    validation_rows: int,
    flops: int,
) -> Record:
    """Build the record of what is about to happen.

    Args:
        model: the model as it begins.
        recipe: optimizer and policy.
        state: planned numbers of epochs and steps.
        task: `classification` or `regression`.
        train_rows: number of rows to train on.
        validation_rows: number of rows to validate on; 0 for none.
        flops: floating-point operations of a forward pass, per row.

    Returns:
        JSON-able record.
    """
    return {
        "event": "start",
        "epoch": 0,
        "step": 0,
        "task": task,
        "epochs": state.config.epochs,
        "steps": state.config.steps,
        "train_rows": train_rows,
        "validation_rows": validation_rows,
        **_sizes(model),
        "optimizer": recipe.optimizer,
        "policy": _policy_name(recipe),
        "flops": flops,
    }


def epoch_record(
    model: nn.Module,
    recipe: TrainConfig,
    state: RunState,
    *,
    train_loss: float,
    validation: dict[str, float],
    lr: float,
    flops: int,
) -> Record:
    """Build the record of an epoch that has ended.

    Args:
        model: the model after the epoch.
        recipe: the metric that is watched, if any.
        state: position of the run.
        train_loss: mean of the losses before the steps of the epoch.
        validation: validation figures; empty if there are none.
        lr: learning rate of the last step.
        flops: floating-point operations of a forward pass, per row.

    Returns:
        JSON-able record.
    """
    metric = as_metric(recipe.monitor)
    watched = {} if metric is None else {"validation_metric": validation.get(metric.name)}
    return {
        "event": "epoch",
        "epoch": state.epoch,
        "epochs": state.config.epochs,
        "step": state.step,
        "steps": state.config.steps,
        "train_loss": train_loss,
        "validation_loss": validation.get("loss"),
        "validation_score": validation.get("accuracy", validation.get("r2")),
        **watched,
        "lr": lr,
        **_sizes(model),
        "flops": flops,
        "seconds": state.seconds,
    }


def members_record(count: int, state: RunState) -> Record:
    """Build the record of further networks that are about to be trained.

    Args:
        count: number of networks, the one that is kept included.
        state: position of the run.
    """
    return {"event": "members", "epoch": state.epoch, "step": state.step, "members": count}


def end_record(result: TrainResult, reason: str) -> Record:
    """Build the record of how a run ended.

    Args:
        result: the run, all other records included.
        reason: why it ended.

    Returns:
        JSON-able record.
    """
    # Counted, since the best epoch may lie before the last.
    epochs = sum(record["event"] == "epoch" for record in result.history)
    return {"event": "end", "epochs": epochs, "reason": reason, **outcome(result)}


def outcome(result: TrainResult) -> Record:
    """Return what the record of the end and `results.json` both say of a run.

    Args:
        result: the run.
    """
    return {
        "architecture": list(result.architecture),
        "layers": list(layer_names(result.model)),
        "parameters": result.parameters,
        "seconds": result.seconds,
        "best_epoch": result.best_epoch,
        "kept": result.kept,
        "validation": dict(result.validation),
        "output_scale": result.output_scale,
        "members": result.members,
        "interrupted": result.interrupted,
        "threads": [dict(change) for change in result.threads],
        "frontier": None if result.frontier is None else result.frontier.to_dict(),
    }


def _sizes(model: nn.Module) -> Record:
    return {
        "architecture": list(architecture(model)),
        "layers": list(layer_names(model)),
        "parameters": count_parameters(model),
    }


def _policy_name(recipe: TrainConfig) -> str | None:
    if not recipe.grow:
        return None
    # By name, since a policy object isn't JSON.
    policy = recipe.policy or "price"
    return policy if isinstance(policy, str) else type(policy).__name__
