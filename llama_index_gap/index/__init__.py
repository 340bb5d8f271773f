"""DualIndex: what goes in, which model made it, where its images lie."""
