"""The service over HTTP, as the commands see it."""
