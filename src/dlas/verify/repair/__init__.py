"""Put a converted network right, one proven change at a time."""
