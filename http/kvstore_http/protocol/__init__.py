"""HTTP as this service speaks it: targets, queries, preconditions, bodies, problems."""
