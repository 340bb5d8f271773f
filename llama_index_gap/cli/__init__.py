"""llama-gap: the package from the command line."""
