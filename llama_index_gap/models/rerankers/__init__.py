"""Rerankers: one file per family."""
