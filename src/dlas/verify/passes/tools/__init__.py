"""One optimiser per module; ``dlas.verify.passes.tool`` says what it must do."""
