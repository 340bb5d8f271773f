"""DualIndex: its nodes, its models and its images."""
