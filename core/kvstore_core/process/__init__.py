"""What every process of kvstore needs of the system: files, signals, logs, and word to its parent."""
