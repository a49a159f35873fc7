"""Options: what there are, where each is set, and what they are as flags."""
