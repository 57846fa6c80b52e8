"""What accelerators of integer matrix products share: geometry, schedule, driver and the design around the array."""
