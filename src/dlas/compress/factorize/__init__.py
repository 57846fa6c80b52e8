"""Replace a weight by a product of smaller ones."""
