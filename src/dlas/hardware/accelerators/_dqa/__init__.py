"""Parts of the activation quantiser: its arithmetic, its words, its cycles and its hardware."""
