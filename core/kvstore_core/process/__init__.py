"""What a process of kvstore needs of the system: files, signals, limits, logs, child processes."""
