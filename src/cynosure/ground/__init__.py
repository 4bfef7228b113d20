"""Foundations: errors, settings, numerics, celestial geometry, files, threads, kernels."""
