"""Every kernel, by kind of operator."""
