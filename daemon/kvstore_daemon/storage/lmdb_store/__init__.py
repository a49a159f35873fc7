"""The engine that keeps everything in an LMDB file on this machine."""
