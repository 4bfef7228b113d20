"""What is kept: names, solutions, verdicts."""
