"""The search for scales of few-bit weights: what varies, how it is judged, and how it evolves."""
