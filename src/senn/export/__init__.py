"""A grown model without senn: as plain PyTorch source, as a graph, as a folder for the hub.

Each function checks what it wrote against the model before it takes its name, and says how far outputs differ.
"""

from senn.export.check import Exported
from senn.export.graphs import to_onnx, to_pt2
from senn.export.hub import push_to_hub, to_hub
from senn.export.module_source import python_source
from senn.export.python_folder import to_python

__all__ = ["Exported", "push_to_hub", "python_source", "to_hub", "to_onnx", "to_pt2", "to_python"]
