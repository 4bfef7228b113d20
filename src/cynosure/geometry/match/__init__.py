"""Recognising stars: with a pointing, blind, from a WCS that is nearly right."""
