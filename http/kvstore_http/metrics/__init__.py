"""What a worker counts, in memory that all workers share, and how ``/metrics`` shows it."""
