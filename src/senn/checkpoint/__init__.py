"""Models on disk: `model.safetensors` for the numbers, `model.json` for how to rebuild what holds them. Never pickle.

Each model has a folder of its own. The JSON describes the tree of modules: each one's class, tensor shapes and plain
numbers. Trees of PyTorch's and senn's own layers are rebuilt from it alone. A model of other classes is built small by
its owner and *resized*: its tensors and attributes get the saved sizes, and inserted layers and repeated blocks are put
in again.

The JSON carries a checksum of the numbers and one of itself, so that a half-copied or altered folder is refused.
"""

from typing import TYPE_CHECKING

from senn import _deprecated
from senn.checkpoint.model_files import DESCRIPTION, WEIGHTS
from senn.checkpoint.module_shapes import (
    ModuleSnapshot,
    describe_shapes,
    resize_like,
    tensor_shapes,
)
from senn.checkpoint.optimizer_names import optimizer_param_names, rebind_optimizer
from senn.checkpoint.save_and_load import load, load_extra, save

__all__ = [
    "DESCRIPTION",
    "WEIGHTS",
    "ModuleSnapshot",
    "describe_shapes",
    "load",
    "load_extra",
    "optimizer_param_names",
    "rebind_optimizer",
    "resize_like",
    "save",
    "tensor_shapes",
]

if not TYPE_CHECKING:
    __getattr__ = _deprecated.old_names(__name__)
