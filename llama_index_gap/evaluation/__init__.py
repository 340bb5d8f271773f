"""Evaluation of rankings: metrics, data sets and experiments."""
