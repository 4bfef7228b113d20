"""Reference catalogues: read, built, fetched, verified."""
