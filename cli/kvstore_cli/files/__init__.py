"""Files that the commands read, write whole, and keep their position in."""
