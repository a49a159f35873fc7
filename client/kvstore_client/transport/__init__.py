"""How requests reach the daemon and answers come back, blocking or in an event loop."""
