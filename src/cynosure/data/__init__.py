"""What flows: frames, tables, instruments, files, reference catalogues."""
