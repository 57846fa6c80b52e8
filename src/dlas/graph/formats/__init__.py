"""File formats, one module each: read into a Model and, where possible, written from one."""
