"""What people see: the command, the report."""
