"""Reads checkpoints: files, weights, tokenizers."""
