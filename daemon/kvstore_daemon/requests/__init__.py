"""From a message on the ROUTER socket to its reply: whose turn it is, and what each op does."""
