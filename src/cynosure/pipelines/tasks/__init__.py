"""A graph of tasks with dependencies, run by any executor with the same bits, and resumed."""
