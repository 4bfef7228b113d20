"""What all stand on: errors, settings, numbers, the sky."""
