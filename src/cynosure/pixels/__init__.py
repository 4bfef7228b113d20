"""From an image to its sources."""
