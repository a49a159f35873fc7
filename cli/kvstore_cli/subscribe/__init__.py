"""Where the events of ``kvstore subscribe`` go."""
