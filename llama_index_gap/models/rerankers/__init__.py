"""Rerankers, one file for each family."""
