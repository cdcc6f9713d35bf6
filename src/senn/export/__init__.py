"""A grown model without senn: as plain PyTorch source, as a graph, as a folder for the hub.

Each function checks what it wrote against the model before it takes its name, and says how far outputs differ.
"""

from senn.export.check import Exported
from senn.export.graphs import to_onnx, to_pt2
from senn.export.hub import push_to_hub, to_hub
from senn.export.python import to_python
from senn.export.source import python_source

__all__ = ["Exported", "push_to_hub", "python_source", "to_hub", "to_onnx", "to_pt2", "to_python"]
