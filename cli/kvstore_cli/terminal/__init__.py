"""Output to terminals and pipes, and the signals that end a command."""
