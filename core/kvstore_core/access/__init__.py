"""Who may do what: grants, what an operation needs, tokens, identities; no sockets and no data files."""
