"""Candidates: units and layers that could be added to a model, and how they are sampled.

`candidate_config` holds the settings, `sampling` decides where candidates go, `initializers` draw the weights of units
and `initialization` those of all else; `new_layers` are the layers that could be inserted, and `gain_ascent` optimizes
units before they are scored.
"""
