"""A grown model without senn: as plain PyTorch source, as a graph, as a folder for the Hugging Face hub.

Each function reads back what it wrote and compares it with the model before renaming it. What it returns says how much
the outputs differ.
"""

from senn.export.check import Exported
from senn.export.graphs import to_onnx, to_pt2
from senn.export.hub import push_to_hub, to_hub
from senn.export.module_source import python_source
from senn.export.python_folder import to_python

__all__ = ["Exported", "push_to_hub", "python_source", "to_hub", "to_onnx", "to_pt2", "to_python"]
