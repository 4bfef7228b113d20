"""Products: simulated scenes and their catalogues."""
