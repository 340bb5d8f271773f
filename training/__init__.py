"""Training of the demo's checkpoints; not part of the package."""
