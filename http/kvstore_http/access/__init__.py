"""Who makes a request: credentials, and the daemon's table of identities as a worker has it."""
