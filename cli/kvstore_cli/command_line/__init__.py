"""What the commands share: their flags and arguments, completion, and how they reach the service."""
