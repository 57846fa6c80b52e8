"""The accelerators: each a design in RTL with its exact transaction-level twin."""
