"""Corpora as LlamaIndex nodes."""
