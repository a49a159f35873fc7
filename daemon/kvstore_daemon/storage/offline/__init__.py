"""Work on a store from outside the daemon: backup, restore, compaction, checks."""
