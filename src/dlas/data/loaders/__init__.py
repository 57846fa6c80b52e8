"""Data set loaders, one module each."""
