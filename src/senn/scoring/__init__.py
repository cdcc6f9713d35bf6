"""Scoring of candidates: statistics of a round's batches, and what each change is worth by them."""
