"""What a processor can do at most, measured on it."""
