"""From the daemon's changes to the open streams: each read once, matched once, written once."""
