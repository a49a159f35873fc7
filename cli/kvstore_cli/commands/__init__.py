"""One module for each command; ``kvstore_cli.main`` imports a command's module only to run it."""
