"""What the methods with 8-bit integers share: which tensors are quantised, how, and with what bias."""
