"""The WCS solutions that files hold, and headerlets."""
