"""What client, daemon, facade and command share: the tables, the wire format, following changes."""
