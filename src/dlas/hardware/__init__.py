"""Layer 6, hardware: the devices a network can be measured on, or estimated for."""
