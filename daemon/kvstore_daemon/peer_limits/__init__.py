"""What those who connect can make the daemon keep is bounded here, in bytes."""
