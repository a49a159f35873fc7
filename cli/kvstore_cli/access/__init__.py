"""Identities as the commands see them, at the service or in a data folder, and what a login stores."""
