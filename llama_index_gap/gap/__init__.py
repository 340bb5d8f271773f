"""The mathematics of the modality gap: measures, aligners, hubs, backgrounds, calibrators."""
