"""FITS files in and out: one reader, one writer, cards, WCS's, which extensions are science."""
