"""The history of a run as figures and as an HTML report."""
