"""The commands, one or several alike in a module, imported only to run one."""
