"""Where the data is stored: the engines' interface, and what all engines share."""
