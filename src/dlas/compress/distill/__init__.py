"""Train a smaller network to follow a larger one."""
