"""Parts of the accelerator of transposed convolutions: schedule and cycle model, protocol and driver, hardware."""
