"""Who is let in: the files of identities and keys, and the table of now."""
