"""Ways to repair a converted network, one per file."""
