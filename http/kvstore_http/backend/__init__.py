"""The way to the daemon: what the requests of one moment ask goes out as one."""
