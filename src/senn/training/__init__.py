"""Training on tables in memory, by `train(x, y, task=..., outputs=...)`; growth in any loop, by `GrowthSession`."""

from typing import TYPE_CHECKING

from senn import _deprecated
from senn.schedule import GrowthSchedule
from senn.training.callbacks import Callback
from senn.training.growth_session import GrowthSession
from senn.training.metric import Metric
from senn.training.table_training import train
from senn.training.train_config import Task, TrainConfig
from senn.training.train_result import TrainResult

__all__ = [
    "Callback",
    "GrowthSchedule",
    "GrowthSession",
    "Metric",
    "Task",
    "TrainConfig",
    "TrainResult",
    "train",
]

if not TYPE_CHECKING:
    __getattr__ = _deprecated.old_names(__name__)
