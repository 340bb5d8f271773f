"""What runs offline: a small made-up corpus, tiny models, and the demo over both."""
