"""An index measured as it stands: collected, judged, recommended on, reported."""
