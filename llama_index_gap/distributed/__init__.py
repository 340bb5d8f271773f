"""Documents put into an index by many machines at once, on a Ray cluster."""
