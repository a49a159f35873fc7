"""The engine that keeps everything in an LMDB file on this machine: tables, reads, writes, and its rows."""
