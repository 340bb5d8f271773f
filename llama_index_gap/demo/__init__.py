"""The offline demo: a small made-up corpus and tiny models."""
