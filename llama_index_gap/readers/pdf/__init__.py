"""Reads texts, figures and pages of PDF files in a separate process."""
