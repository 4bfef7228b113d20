"""WCS solutions in files: headers, alternates and headerlets."""
