"""The database of solutions."""
