"""A graph of tasks: what depends on what, run by any executor with the same bits, and resumed."""
