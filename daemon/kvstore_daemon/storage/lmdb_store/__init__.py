"""The engine that keeps everything in an LMDB file on this machine, with a journal in front of it."""
