"""Training on tables in memory: `train(x, y, task=..., outputs=...)` gives a `Run`."""

from senn.schedule import GrowthSchedule
from senn.training.callbacks import Callback
from senn.training.growth_session import GrowthSession
from senn.training.recipe import TrainConfig, Task
from senn.training.run import TrainResult
from senn.training.tables import train

__all__ = ["Callback", "GrowthSession", "Recipe", "Rounds", "Run", "Task", "train"]
