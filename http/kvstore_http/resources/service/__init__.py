"""What the service tells of itself: its state and figures, who is subscribed, what it can be asked."""
