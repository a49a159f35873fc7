"""The servers as processes: started, watched, logged, restarted."""
