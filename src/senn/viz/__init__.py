"""Figures and HTML reports of the history of a run."""
