"""One module per theme; each row of its ``RULES`` translates an operator in both directions."""
