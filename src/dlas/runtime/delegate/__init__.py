"""dlas's accelerators inside the LiteRT interpreter: a delegate."""
