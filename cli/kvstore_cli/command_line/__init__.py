"""What the commands share: their flags and arguments, and how they reach the service."""
