"""The journal in front of LMDB: written and synced with each commit, kept in memory, put into LMDB later."""
