"""Where the store is kept: an interface, and what each engine shares with the others."""
