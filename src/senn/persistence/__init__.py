"""Models on disk: `model.safetensors` for the numbers, `model.json` for how to rebuild what holds them. Never pickle.

A folder of its own per model. The JSON describes the tree of modules: class, tensor shapes and plain numbers of each.
Trees of PyTorch's and senn's own layers are rebuilt from it alone; a model of other classes is built small by its owner
and *regrown*: its tensors and attributes are resized, inserted layers and repeated blocks put in again.

The JSON carries a checksum of the numbers and one of itself, so that a half-copied or altered folder is refused.
"""

from senn.persistence.files import DESCRIPTION, WEIGHTS
from senn.persistence.folder import load, load_extra, save
from senn.persistence.optimizers import optimizer_param_names, rebind_optimizer
from senn.persistence.sizes import ModuleSnapshot, resize_like, tensor_shapes, describe_shapes

__all__ = ["DESCRIPTION", "WEIGHTS", "Parts", "held", "hold", "load", "load_extra", "regrow", "save", "shapes", "sizes"]
