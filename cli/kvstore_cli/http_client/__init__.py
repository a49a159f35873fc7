"""The client of the HTTP service: requests, streams, pages, batches."""
