"""Fitting a WCS to pairs of stars."""
