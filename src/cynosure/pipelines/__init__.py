"""The doors (solve), and the machinery that runs them over images and tasks."""
