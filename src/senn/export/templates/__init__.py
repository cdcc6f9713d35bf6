"""Code that goes into an exported `net.py` as it stands; so these modules import nothing of senn's."""
