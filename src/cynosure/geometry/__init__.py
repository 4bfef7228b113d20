"""From sources to the sky."""
