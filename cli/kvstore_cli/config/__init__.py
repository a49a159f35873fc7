"""Options: the table of them, and where each is set."""
