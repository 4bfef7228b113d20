"""Solutions of the WCS: names, records, checks, files and the store."""
