"""What is done to a store from outside of the daemon: backup, restore, compaction, checks."""
