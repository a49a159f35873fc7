"""The commands, one or several alike in a module, which ``kvstore_cli.main`` imports only to run one."""
