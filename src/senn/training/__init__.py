"""Training on tables in memory: `train(x, y, task=..., outputs=...)` gives a `Run`."""

from senn.training.callbacks import Callback
from senn.training.loop import train
from senn.training.recipe import Recipe, Task
from senn.training.run import Run

__all__ = ["Callback", "Recipe", "Run", "Task", "train"]
