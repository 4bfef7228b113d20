"""Catalogue matching: with a pointing, blind, or from a WCS that is nearly right."""
