"""Sizes that a forward pass computes with in Python: where they come from, and which must change together."""
