"""What 'make docs' does beside MkDocs: it writes the pages from docs/ and from the code, and checks what was
built."""
