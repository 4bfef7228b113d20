"""Data structures and files: frames, tables, instruments, FITS, reference catalogues."""
