"""The rows, by family. A row is a generator of samples: every contender once, in this round's order."""
