"""The doors, and what runs them."""
