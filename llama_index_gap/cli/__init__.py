"""llama-gap: the command line of the package."""
