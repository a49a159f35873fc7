"""How long a test waits for what must come."""

PATIENCE_SECONDS = 150.0
"""No promise about speed: longer than a busy machine takes, and shorter than the limit of a test in a whole
run, so that a failure says for what it waited. A test that is run by itself meets its own limit first."""
