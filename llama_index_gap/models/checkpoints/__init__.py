"""Reading checkpoints: files, weights, tokenizers."""
