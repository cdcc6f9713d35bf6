"""Candidates: units and layers that could be added to a model, and how they are drawn."""
