"""Ranking above the index: pure functions over numpy arrays."""
