"""Layer 2, architectures that dlas can build, train or recognise from a checkpoint."""
