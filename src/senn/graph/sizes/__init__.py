"""Sizes that a forward computes with in Python, and which of them must change together."""
