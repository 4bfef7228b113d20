"""The interfaces for people and programs: the command, the report, the server."""
