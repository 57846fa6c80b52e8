"""The pictures: one self-contained HTML page per study."""
