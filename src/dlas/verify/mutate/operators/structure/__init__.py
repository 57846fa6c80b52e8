"""Faults in what is computed: operators, their order and how they are wired."""
