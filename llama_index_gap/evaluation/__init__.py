"""Judging rankings: measures, data sets, and the experiments over them."""
