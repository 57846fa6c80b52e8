"""Layer 4, algorithms and data formats: native kernels, each with a NumPy reference that says what it means."""
