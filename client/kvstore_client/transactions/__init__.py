"""Transactions: what was read is asserted, and what is to be written is written, in one atomic request."""
