"""Encoders, one file for each family."""
