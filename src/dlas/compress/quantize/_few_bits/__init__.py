"""What the methods with 4-bit weights share: levels, layers, training and repair of statistics."""
