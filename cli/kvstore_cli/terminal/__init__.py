"""What people and pipes are given, and what is read from them."""
