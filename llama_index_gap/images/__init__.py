"""Opening images safely, and fetching them."""
