"""A grown model without senn: as plain PyTorch source, a graph, or a folder for the hub."""

from senn.export.source import python_source

__all__ = ["python_source"]
