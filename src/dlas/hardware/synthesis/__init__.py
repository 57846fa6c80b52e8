"""What a design takes on a chip: area, clock, whether a board holds it, and the latency and energy that follow."""
