"""Parts of the shift accelerator: levels of weights, and the array of shifters."""
