"""FITS files: one reader, one writer, cards, WCS's, and the choice of science extensions."""
