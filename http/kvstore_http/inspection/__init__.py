"""What operators ask of all workers: who is subscribed, and which requests were slow."""
