"""Requests to the daemon: those of one turn of the loop are sent as one."""
