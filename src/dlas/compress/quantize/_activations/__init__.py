"""What the methods with few-bit activations share: where they round, and which channels matter."""
