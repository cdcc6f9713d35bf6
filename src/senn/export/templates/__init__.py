"""Code that is copied into an exported `net.py`, so these modules import nothing from senn."""
