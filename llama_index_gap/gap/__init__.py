"""The modality gap: measured, closed, calibrated."""
