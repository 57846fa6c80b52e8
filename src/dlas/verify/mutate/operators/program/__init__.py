"""Faults in the tensor programs that TVM makes of operators."""
