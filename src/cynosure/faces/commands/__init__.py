"""The verbs of the command, one module each; none imports another."""
