"""Measures the modality gap of an index, and recommends mitigations."""
