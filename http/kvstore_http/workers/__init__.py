"""The processes of the facade: one worker, or several under a parent."""
