"""Indexes documents on many machines at once, on a Ray cluster."""
